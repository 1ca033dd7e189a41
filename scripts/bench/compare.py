#!/usr/bin/env python
"""How often `compare` is wrong: verdicts on halves of a data set, drawn again and again.

Each model answers once for each image, out of fold. In each trial half of the groups are drawn without replacement.
- swapped: A and B, and A and A with mirrored views, are swapped at random within each group, so that any difference
  is chance.
- worse on purpose: A against fewer epochs, against A without one class, and against A with other pixel thresholds.
With --predictions, it also tells how many images of another data set a verdict needs, from the spread of the paired
differences of two result folders.
Usage: python scripts/bench/compare.py DATA A B WEAK [--predictions DATA RESULTS RESULTS]
"""

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta

from defectseg.compare.compare import compare
from defectseg.compare.sources import Side, open_folders, open_source
from defectseg.compare.verdict import (
    BETTER,
    KAGGLE_DICE,
    MARGIN,
    WORSE,
    Verdict,
    contributions_of,
    groups_needed,
    judge,
)
from defectseg.data.groups import groups_of
from defectseg.evaluate.bootstrap import number_groups
from defectseg.evaluate.metrics import PairCounts
from defectseg.evaluate.score import Score
from defectseg.progress import silent

USEFUL_MARGIN = 0.03
SHIFTED = {f"pixel thresholds {pixel}": pixel for pixel in (0.05, 0.2, 0.8, 0.9)}

Table = NDArray[np.float64]


def answer(data: Path, run: str, *, pixel: float | None = None, tta: str | None = None) -> Side:
    """The answers of a run of folds, out of fold; with other pixel thresholds, or views, if these are given."""
    source, infos = open_source(run), []
    for info in source.infos:
        values = (pixel,) * info.num_classes if pixel is not None else info.thresholds.pixel
        inference = info.recipe.inference.model_copy(update={} if tta is None else {"tta": tta})
        thresholds = info.thresholds.model_copy(update={"pixel": values})
        recipe = info.recipe.model_copy(update={"inference": inference})
        infos.append(info.model_copy(update={"thresholds": thresholds, "recipe": recipe}))
    side = Side(replace(source, infos=tuple(infos)), open_folders([source], data)[0], "all")
    side.answer("auto", silent)
    print(f"{run} {pixel or ''} {tta or ''}: {len(side.score.sheets)} images", flush=True)
    return side


def without_class(score: Score, class_id: int) -> Score:
    """The same answers, but nothing of one class."""
    counts = {
        (image_id, number): PairCounts(pair.true_px, 0, 0, pair.unknown) if number == class_id else pair
        for (image_id, number), pair in score.counts.items()
    }
    sheets = {
        image_id: replace(
            sheet, labelled=tuple((number, px, found and number != class_id) for number, px, found in sheet.labelled)
        )
        for image_id, sheet in score.sheets.items()
    }
    return replace(score, counts=counts, sheets=sheets)


def trials(
    a: Table, b: Table, of: Table, group: NDArray[np.int64], count: int, *, swap: bool = False
) -> Iterator[Verdict]:
    """Verdicts on half of the groups each."""
    generator, groups = np.random.default_rng(0), int(group.max()) + 1
    for _ in range(count):
        chosen = np.isin(group, generator.permutation(groups)[: groups // 2])
        swapped = (generator.random(groups) < 0.5)[group][chosen, None] & swap
        numbers = np.unique(group[chosen], return_inverse=True)[1]
        one, other = a[chosen], b[chosen]
        yield judge(np.where(swapped, other, one), np.where(swapped, one, other), of[chosen], numbers)


def told(name: str, answers: Sequence[bool]) -> None:
    """Print a share with its two one-sided bounds of 95 %."""
    hits, count = sum(answers), len(answers)
    low = beta.ppf(0.05, hits, count - hits + 1) if hits else 0
    high = beta.ppf(0.95, hits + 1, count - hits) if hits < count else 1
    bounds = f"95 % bounds: above {100 * low:.1f}, below {100 * high:.1f}"
    print(f"{name}: {100 * hits / count:.1f} % of {count} ({bounds})", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("runs", nargs=3, metavar="RUN")
    parser.add_argument("--trials", type=int, default=1000)
    parser.add_argument("--predictions", nargs=3, metavar=("DATA", "A", "B"))
    options = parser.parse_args()
    a, b, weak = (answer(options.data, run) for run in options.runs)
    folder, views = a.folder, answer(options.data, options.runs[0], tta="flips")
    others = {f"fewer epochs ({options.runs[2]})": weak.score}
    others |= {f"without {name}": without_class(a.score, index) for index, name in enumerate(folder.class_names, 1)}
    others |= {name: answer(options.data, options.runs[0], pixel=pixel).score for name, pixel in SHIFTED.items()}
    image_ids = sorted(a.score.sheets.keys() & b.score.sheets.keys() & weak.score.sheets.keys())
    groups = groups_of(folder, image_ids)
    group = number_groups(groups[image_id] for image_id in image_ids)
    of_a, of = contributions_of(a.score, image_ids, folder.num_classes)
    of_b, _ = contributions_of(b.score, image_ids, folder.num_classes)
    print(f"{len(image_ids)} images, {group.max() + 1} groups ({groups.source}); half in each trial")
    print(f"A against B, all images: {judge(of_a, of_b, of, group).differences[KAGGLE_DICE]}")
    of_views, _ = contributions_of(views.score, image_ids, folder.num_classes)
    for name, other in {"A and B": of_b, "A and A with mirrored views": of_views}.items():
        needed(name, (other - of_a)[:, 0] / of[:, 0])
        verdicts = [*trials(of_a, other, of, group, options.trials, swap=True)]
        told(f"{name}, swapped: better or worse, without vetoes", [one.on_dice in (BETTER, WORSE) for one in verdicts])
        told(f"{name}, swapped: a veto", [bool(one.vetoes) for one in verdicts])
        for margin in (MARGIN, USEFUL_MARGIN):
            met = [replace(one, margin=margin).meets("not-worse") for one in verdicts]
            told(f"{name}, swapped: --require not-worse --margin {margin} is met", met)
    for name, score in others.items():
        of_other, _ = contributions_of(score, image_ids, folder.num_classes)
        loss = -(judge(of_a, of_other, of, group).differences[KAGGLE_DICE].difference or 0)
        verdicts = [*trials(of_a, of_other, of, group, options.trials)]
        told(f"{name}, loss {loss:+.4f}: --require not-worse refuses", [not one.meets("not-worse") for one in verdicts])
    if options.predictions:
        data, *results = options.predictions
        frame = compare(results[0], results[1], Path(data), allow_seen=True)
        differences = np.zeros(int(str(frame.content["images"])))
        differences[: len(frame.images)] = frame.images["dice_difference"]
        needed(data, differences)


def needed(title: str, differences: NDArray[np.float64]) -> None:
    """How many images tell, with 80 %, that a model which is equally good is not worse by more than the margin."""
    spread = differences.std(ddof=1)
    for margin in (MARGIN, USEFUL_MARGIN):
        images = groups_needed(spread, margin)
        print(f"{title}: spread of the paired differences {spread:.4f}; margin {margin}: {images:,.0f} images")


if __name__ == "__main__":
    main()
