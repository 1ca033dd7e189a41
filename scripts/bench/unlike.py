#!/usr/bin/env python
"""How well single images that are unlike the training images are told from those that are like them.

The groups of each data folder are divided into five parts; the description is fitted on four, and judges the images of
the fifth: as they are, and changed on purpose. Images of the other folders are those of a foreign line. Columns: AUROC
against the unchanged images of the fifth part, by distance, by mean brightness and by the share of black (how far from
the mean of the training images); the share flagged; how often the word is right for flagged images.
Severstal has no groups: `defectseg data split DATA` writes those that it finds.
Usage: python scripts/bench/unlike.py DATA DATA [DATA ...] [--unknown IMAGES] [--seeds 3]
"""

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from defectseg.data.folder import open_data_folder
from defectseg.data.groups import groups_of
from defectseg.image.appearance import readable
from defectseg.image.find import find_images
from defectseg.image.measure import appearance_of
from defectseg.image.read import decode, is_blank
from defectseg.machine import machine_facts
from defectseg.model.appearance import Appearance
from defectseg.train.appearance import fit_appearance

Pixels = NDArray[np.uint8]
FOLDS = 5
AS_IT_IS = "as they are"


def rows(factor: float, how: int) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.asarray(
        cv2.resize(pixels, (pixels.shape[1], max(1, round(pixels.shape[0] * factor))), interpolation=how), np.uint8
    )


def blur(along: float, across: float) -> Callable[[Pixels], Pixels]:
    size_wh = (7 if along else 1), (7 if across else 1)
    return lambda pixels: np.asarray(cv2.GaussianBlur(pixels, size_wh, along or 1e-6, sigmaY=across or 1e-6), np.uint8)


def gain(factor: float) -> Callable[[Pixels], Pixels]:
    return lambda pixels: np.asarray(np.clip(np.rint(pixels * factor), 0, 255), np.uint8)


def noise(pixels: Pixels) -> Pixels:
    generator = np.random.default_rng(int(pixels.sum()))
    return np.asarray(np.clip(np.rint(pixels + generator.normal(0, 5, pixels.shape)), 0, 255), np.uint8)


def jpeg(pixels: Pixels) -> Pixels:
    encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 40])[1]
    return np.asarray(cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE), np.uint8)


CHANGES: dict[str, tuple[Callable[[Pixels], Pixels], str]] = {  # and the word that fits
    AS_IT_IS: (lambda pixels: pixels, ""),
    "blur 1 px": (blur(1, 1), "blurred"),
    "blur 1 px along": (blur(1, 0), "blurred along"),
    "blur 1 px across": (blur(0, 1), "blurred across"),
    "rows doubled, linear": (rows(2, cv2.INTER_LINEAR), "blurred across"),
    "rows doubled, cubic": (rows(2, cv2.INTER_CUBIC), "blurred across"),
    "rows doubled, repeated": (rows(2, cv2.INTER_NEAREST), "blurred across"),
    "rows halved, averaged": (rows(0.5, cv2.INTER_AREA), ""),
    "rows halved, dropped": (lambda pixels: np.ascontiguousarray(pixels[::2]), ""),
    "noise 5": (noise, "sharper or noisier"),
    "darker by 25 %": (gain(0.75), "darker"),
    "brighter by 25 %": (gain(1.25), "brighter"),
    "JPEG 40": (jpeg, ""),
}


@dataclass(frozen=True)
class Line:
    """A data folder: the descriptions of its images after each change, (N, 45)."""

    name: str
    groups: NDArray[np.str_]
    has_defect: NDArray[np.bool_]
    looks: dict[str, NDArray[np.float32]]


def read_line(root: Path) -> Line:
    folder = open_data_folder(root)
    known = [(one, folder.decode(one).pixels) for one in folder.image_ids]
    known = [(one, pixels) for one, pixels in known if not is_blank(pixels)]
    names = groups_of(folder, folder.image_ids)
    return Line(
        folder.root.name,
        np.array([names[one] for one, _ in known]),
        np.array([bool(folder.classes_of(one)) for one, _ in known]),
        {name: np.array([appearance_of(change(one)) for _, one in known]) for name, (change, _) in CHANGES.items()},
    )


def scores_of(
    trained: Appearance, looks: NDArray[np.float32], has_defect: NDArray[np.bool_] | None
) -> NDArray[np.float64]:
    """Distance, and how far brightness and black are from the mean, (N, 3); has_defect None: the smaller one."""
    usual = readable(trained.mean)
    scores = []
    for number, one in enumerate(looks):
        choices = (False, True) if has_defect is None else (bool(has_defect[number]),)
        now = readable(one)
        distance = min(trained.distance(one, has_defect=choice) for choice in choices)
        apart = abs(now.brightness - usual.brightness), abs(now.black_percent - usual.black_percent)
        scores.append((distance, *apart))
    return np.array(scores)


def auroc(own: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    ranks = rankdata(np.concatenate([own, other]))
    return float((ranks[len(own) :].sum() - len(other) * (len(other) + 1) / 2) / (len(own) * len(other)))


def judge(line: Line, others: dict[str, NDArray[np.float32]], seeds: int) -> tuple[int, int]:
    """Print the table of a line.

    Returns:
        How many unseen images it flags, and of how many.
    """
    names, group = np.unique(line.groups, return_inverse=True)
    found: dict[str, list[tuple[float, ...]]] = {}
    words: dict[str, list[bool]] = {}
    flagged = seen = 0
    for seed in range(seeds):
        fold_of = np.random.default_rng(seed).permutation(len(names)) % FOLDS
        for fold in range(FOLDS):
            out = fold_of[group] == fold
            own_looks, has_defect = line.looks[AS_IT_IS], line.has_defect
            trained = fit_appearance(list(own_looks[~out]), list(line.groups[~out]), has_defect[~out])
            assert trained is not None, "a data folder of one group"
            assert trained.threshold is not None, "fewer than 30 groups"
            own = scores_of(trained, own_looks[out], has_defect[out])
            flagged, seen = flagged + int((own[:, 0] > trained.threshold).sum()), seen + len(own)
            trials = {name: (looks[out], has_defect[out]) for name, looks in line.looks.items()}
            for name, (looks, defects) in {**trials, **{name: (one, None) for name, one in others.items()}}.items():
                scores = scores_of(trained, looks, defects)
                beyond = scores[:, 0] > trained.threshold
                columns = tuple(auroc(own[:, number], scores[:, number]) for number in range(3))
                found.setdefault(name, []).append((*columns, 100 * float(beyond.mean())))
                word = CHANGES[name][1] if name in CHANGES else ""
                for one, defect in zip(looks[beyond], has_defect[out][beyond] if word else [], strict=False):
                    words.setdefault(name, []).append(
                        word in trained.in_words(one, has_defect=float(defect)).split(", ")
                        or (word in ("darker", "brighter") and word in trained.in_words(one, has_defect=float(defect)))
                    )
    print(f"\n{line.name}: {len(group)} images, {len(names)} groups, {seeds} x {FOLDS} fits\n")
    print("| images | AUROC | brightness alone | black alone | flagged | the word is right |\n| --- | " + "--- | " * 5)
    for name, results in found.items():
        mean = np.mean(results, axis=0)
        right = f"{100 * np.mean(words[name]):.0f} % of {len(words[name])}" if name in words else ""
        print(f"| {name} | {mean[0]:.3f} | {mean[1]:.3f} | {mean[2]:.3f} | {mean[3]:.1f} % | {right} |", flush=True)
    return flagged, seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="+")
    parser.add_argument("--unknown", type=Path, help="images for which nothing is expected, judged by the first folder")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    cv2.setNumThreads(1)
    print(machine_facts())
    lines = [read_line(root) for root in options.data]
    unknown = [decode(one.path).pixels for one in find_images([options.unknown])] if options.unknown else []
    totals = np.zeros(2, int)
    for line in lines:
        others = {f"foreign: {one.name}": one.looks[AS_IT_IS] for one in lines if one is not line}
        if unknown and line is lines[0]:
            others[str(options.unknown.name)] = np.array([appearance_of(one) for one in unknown])
        totals += judge(line, others, options.seeds)
    print(f"\nUnseen images of the own line flagged: {totals[0]} of {totals[1]}, {100 * totals[0] / totals[1]:.2f} %")


if __name__ == "__main__":
    main()
