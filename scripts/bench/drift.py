#!/usr/bin/env python
"""How often `drift` is right: simulated nights of real images.

Each trial divides the groups of a data set at random. The images of three quarters make at most 60 coils, on which the
description is trained; those of the last quarter make the 20 coils of a night. A coil is of whole groups. Each has a
gain (standard deviation 8 %) and an offset (4 grey levels) of its own. The night is unchanged, or all its images
change, or those from some coil on. Beside `drift`, the same test on the mean brightness alone, and on the share of
black alone. With --lamp, the light fades from 1.00 to 0.40 on the images that each fold of a run held out, which its
model scores at each level. Descriptions are stored in --cache; --fresh computes them again.
Usage: OPENBLAS_NUM_THREADS=1 python scripts/bench/drift.py [DATA...] [--trials 1000] [--lamp RUN DATA] [--cache DIR]
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.stats import beta, norm
from scipy.stats import t as student

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.drift.verdict import LIGHT_LEVEL, OTHER_LEVEL, began, camera_shift, in_words, more_defects
from defectseg.image.appearance import VERSION, readable
from defectseg.image.measure import appearance_of
from defectseg.model.appearance import LEAST_GROUPS, Appearance
from defectseg.train.appearance import fit_appearance

Values = NDArray[np.float64]
Pixels = NDArray[np.uint8]

LIGHTS = 13  # pairs of gain and offset, of which each coil draws one
_QUANTILES = norm.ppf((np.arange(LIGHTS) + 0.5) / LIGHTS)
GAINS = 1 + 0.08 * _QUANTILES
OFFSETS = 4 * np.random.default_rng(0).permutation(_QUANTILES)
LAMP = np.linspace(1, 0.4, 31)
COILS, TRAINING_COILS = 20, 60
BASELINES = {"brightness": 0, "share of black": -1}  # of the readable numbers


def rounded(grey: NDArray[np.floating]) -> Pixels:
    return np.asarray(np.clip(np.rint(grey), 0, 255), np.uint8)


def darker(grey: NDArray[np.floating]) -> Pixels:
    return rounded(grey * 0.75)


def blurred(grey: NDArray[np.floating]) -> Pixels:
    return np.asarray(cv2.GaussianBlur(rounded(grey), (0, 0), 1), np.uint8)


def noisy(grey: NDArray[np.floating]) -> Pixels:
    return rounded(grey + np.random.default_rng(grey.size).normal(0, 5, grey.shape))


CHANGES: dict[str, Callable[[NDArray[np.floating]], Pixels]] = {
    "unchanged": rounded, "darker by 25 %": darker, "blurred, sigma 1": blurred, "noise, sd 5": noisy,
}  # fmt: skip
WORDS = {"darker by 25 %": "darker", "blurred, sigma 1": "blurred", "noise, sd 5": "noisier"}


@dataclass(frozen=True)
class Described:
    """Descriptions of the images of a data set: of each change and light, and of each level of the lamp."""

    changed: Values  # (changes, images, LIGHTS, 45)
    lamp: Values  # (images, levels, 45)
    has_defect: NDArray[np.bool_]
    image_ids: list[str]
    groups: NDArray[np.str_]


def described(folder: DataFolder, cache: Path, *, fresh: bool) -> Described:
    path = cache / f"{folder.root.name}-{VERSION}.npz"
    if fresh or not path.exists():
        rows, lamps = [], []
        for number, image_id in enumerate(folder.image_ids):
            print(f"\r{folder.root.name}: {number + 1} of {len(folder.image_ids)}", end="", file=sys.stderr)
            grey = folder.decode(image_id).pixels.astype(np.float32)
            lit = [grey * gain + offset for gain, offset in zip(GAINS, OFFSETS, strict=True)]
            rows.append([[appearance_of(change(one)) for one in lit] for change in CHANGES.values()])
            lamps.append([appearance_of(rounded(grey * level)) for level in LAMP])
        print(file=sys.stderr)
        cache.mkdir(parents=True, exist_ok=True)
        has_defect = [bool(folder.classes_of(image_id)) for image_id in folder.image_ids]
        changed = np.array(rows, np.float32).swapaxes(0, 1)
        np.savez(path, changed=changed, lamp=np.array(lamps), has_defect=has_defect)
    stored = np.load(path)
    arrays = (stored["changed"].astype(float), stored["lamp"].astype(float), stored["has_defect"])
    groups = np.array([folder.groups.get(image_id, image_id) for image_id in folder.image_ids])
    return Described(*arrays, list(folder.image_ids), groups)


Coils = list[NDArray[np.intp]]
"""The images of each coil."""


def make_coils(of: Described, images: NDArray[np.intp], most: int, generator: np.random.Generator) -> Coils:
    """At most so many coils, each of whole groups of the data set, such as the images of one tile."""
    names = generator.permutation(np.unique(of.groups[images]))
    coils = [images[np.isin(of.groups[images], names[number::most])] for number in range(most)]
    return [coil for coil in coils if len(coil)]


def divided(of: Described, parts: int, generator: np.random.Generator) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The images of random groups for training, and those of one of so many parts for the night."""
    names = generator.permutation(np.unique(of.groups))
    is_first = np.isin(of.groups, names[len(names) // parts :])
    return np.flatnonzero(is_first), np.flatnonzero(~is_first)


def train(of: Described, images: NDArray[np.intp], generator: np.random.Generator) -> Appearance:
    """The description of a model that was trained on at most 60 coils of these images."""
    coils = make_coils(of, images, TRAINING_COILS, generator)
    sizes, joined = [len(coil) for coil in coils], np.concatenate(coils)
    lights = np.repeat(generator.integers(LIGHTS, size=len(coils)), sizes)
    names = np.repeat(np.arange(len(coils)), sizes).astype(str)
    rows = of.changed[0, joined, lights].astype(np.float32)
    trained = fit_appearance(list(rows), list(names), of.has_defect[joined])
    assert trained is not None
    return trained


@dataclass(frozen=True)
class Night:
    """Means, shares of images with a defect and numbers of images of the coils of a night."""

    means: Values
    shares: Values
    images: Values

    def residuals(self, trained: Appearance) -> Values:
        return self.means - [trained.expected(has_defect=share) for share in self.shares]


def night_of(of: Described, coils: Coils, lights: NDArray[np.intp], changes: NDArray[np.intp]) -> Night:
    parts = [of.changed[change, coil, light] for coil, light, change in zip(coils, lights, changes, strict=True)]
    return night_with(of, coils, parts)


def night_with(of: Described, coils: Coils, parts: Sequence[Values]) -> Night:
    """The night of coils whose images have these descriptions."""
    shares = np.array([of.has_defect[coil].mean() for coil in coils])
    return Night(np.array([part.mean(axis=0) for part in parts]), shares, np.array([float(len(one)) for one in coils]))


def baseline(night: Night, trained: Appearance, number: int) -> bool:
    """The same test on one readable number alone."""
    usual = np.array([readable(trained.expected(has_defect=share))[number] for share in night.shares])
    spread = np.sqrt(np.diag(trained.covariance(len(night.images) / float((1 / night.images).sum()))))
    low, high = (readable(np.array(trained.mean) + sign * spread)[number] for sign in (-1, 1))
    along = (np.array([readable(mean)[number] for mean in night.means]) - usual) / max(1e-6, abs(high - low) / 2)
    error = np.sqrt(max(1, along.var(ddof=1)) * (1 / len(along) + 1 / trained.groups))
    return bool(2 * student.sf(abs(along.mean()) / error, len(along) - 1) < LIGHT_LEVEL + OTHER_LEVEL)


def share(hits: Sequence[bool]) -> str:
    """A share with its one-sided bounds of 95 %."""
    found, count = sum(hits), len(hits)
    low = beta.ppf(0.05, found, count - found + 1) if found else 0
    high = beta.ppf(0.95, found + 1, count - found) if found < count else 1
    return f"{100 * found / max(1, count):.1f} % ({100 * low:.1f} to {100 * high:.1f})" if count else "-"


def simulate(name: str, of: Described, trials: int, pooled: dict[str, list[bool]]) -> None:
    """Nights of one data set, all changes."""
    generator, seen = np.random.default_rng(1), dict[str, list[bool]]()
    for _ in range(trials):
        for_training, for_night = divided(of, 4, generator)
        trained = train(of, for_training, generator)
        coils = make_coils(of, for_night, COILS, generator)
        lights = generator.integers(LIGHTS, size=COILS)
        begins = int(generator.integers(5, COILS - 9))
        for number, change in enumerate(CHANGES):
            night = night_of(of, coils, lights, np.full(COILS, number))
            found = camera_shift(night.residuals(trained), night.images, trained)
            seen.setdefault(f"{change}: drift", []).append(found is not None)
            for baseline_name, column in BASELINES.items():
                seen.setdefault(f"{change}: {baseline_name}", []).append(baseline(night, trained, column))
            if number and found is not None:
                seen.setdefault(f"{change}: words", []).append(
                    WORDS[change] in in_words(night.means, night.shares, night.images, trained)
                )
            if number:
                night = night_of(of, coils, lights, np.where(np.arange(COILS) < begins, 0, number))
                residuals = night.residuals(trained)
                found = camera_shift(residuals, night.images, trained)
                seen.setdefault(f"{change}: from the middle of the night on", []).append(found is not None)
                first = None if found is None else began(residuals @ found.direction)
                if first is not None:
                    seen.setdefault(f"{change}: the told beginning is right within one coil", []).append(
                        abs(first - begins) <= 1
                    )
    for what, hits in seen.items():
        print(f"{name}: {what}: {share(hits)}", flush=True)
        pooled.setdefault(what, []).extend(hits)


def more_sheets(name: str, of: Described, trials: int, pooled: dict[str, list[bool]]) -> None:
    """Half of the groups train. 64 % of their images have a defect, 95 % of those of the night, in the same light."""
    generator, seen = np.random.default_rng(2), dict[str, list[bool]]()
    for _ in range(trials):
        for_training, for_night = divided(of, 2, generator)
        thinned = [thin(of, for_training, 0.64, generator), thin(of, for_night, 0.95, generator)]
        if min(map(len, thinned)) < LEAST_GROUPS:
            return
        trained, coils = train(of, thinned[0], generator), make_coils(of, thinned[1], COILS, generator)
        night = night_of(of, coils, generator.integers(LIGHTS, size=len(coils)), np.zeros(len(coils), int))
        if trained.threshold is None or len(coils) < COILS:
            continue
        camera = camera_shift(night.residuals(trained), night.images, trained) is not None
        more = more_defects(night.shares, np.zeros(0), trained)[0] is not None
        seen.setdefault("64 % -> 95 % defective: no camera verdict", []).append(not camera)
        seen.setdefault("64 % -> 95 % defective: more defects", []).append(more)
    for what, hits in seen.items():
        print(f"{name}: {what} (about {len(thinned[1]) / COILS:.0f} images a coil): {share(hits)}", flush=True)
        pooled.setdefault(what, []).extend(hits)


def thin(of: Described, images: NDArray[np.intp], share: float, generator: np.random.Generator) -> NDArray[np.intp]:
    """As many of these images as have together this share with a defect."""
    ill, sound = (generator.permutation(images[of.has_defect[images] == has]) for has in (True, False))
    size = min(len(ill) / share, len(sound) / (1 - share))
    return np.sort(np.concatenate([ill[: round(share * size)], sound[: round((1 - share) * size)]]))


def fade(run: Path, folder: DataFolder, of: Described) -> None:
    """The lamp: at which level it is noticed, and the positive Dice there, for each fold of a run."""
    import csv

    from defectseg.evaluate.metrics import Counts, count_pairs
    from defectseg.inference.predictor import Predictor
    from defectseg.model.locate import model_paths

    numbers = {image_id: number for number, image_id in enumerate(of.image_ids)}
    for model in model_paths(str(run)):
        with (model.parent / "split.csv").open(encoding="utf-8") as handle:
            folds = {row["ImageId"]: row["fold"] for row in csv.DictReader(handle)}
        own = model.parent.name.rpartition("-")[2] if "-" in model.parent.name else "0"
        own = own if own.isdigit() else "0"
        held = np.array([numbers[one] for one, fold in folds.items() if fold == own and one in numbers])
        rest = np.array([numbers[one] for one, fold in folds.items() if fold != own and one in numbers])
        generator = np.random.default_rng(3)
        trained, coils = train(of, rest, generator), make_coils(of, held, COILS, generator)
        predictor = Predictor.load(model)
        noticed: dict[str, str] = {}
        first = 0.0
        for step, level in enumerate(LAMP):
            pairs: Counts = {}
            for number in held:
                image_id = of.image_ids[number]
                pixels = rounded(folder.decode(image_id).pixels * np.float32(level))
                masks = predictor(pixels).masks
                truth, _ = folder.masks_of(image_id, (pixels.shape[0], pixels.shape[1]))
                pairs |= count_pairs(image_id, masks, truth)
            dice = float(np.mean([pair.dice for pair in pairs.values() if pair.true_px]))
            first = first or dice
            night = night_with(of, coils, [of.lamp[coil, step] for coil in coils])
            found = camera_shift(night.residuals(trained), night.images, trained)
            alarms = {"drift": found is not None}
            alarms |= {name: baseline(night, trained, column) for name, column in BASELINES.items()}
            for name, alarm in alarms.items():
                if alarm and name not in noticed:
                    noticed[name] = f"at {level:.2f}, Dice {dice - first:+.3f}"
            if step % 5 == 0:
                print(f"{model.parent.name}: lamp {level:.2f}: positive Dice {dice:.3f} {alarms}", flush=True)
        print(f"{run.name} {model.parent.name}: Dice {first:.3f}, {len(coils)} coils; noticed: {noticed}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, nargs="*")
    parser.add_argument("--trials", type=int, default=1000, help="of all data sets together")
    parser.add_argument("--lamp", type=Path, nargs=2, metavar=("RUN", "DATA"), action="append", default=[])
    parser.add_argument("--cache", type=Path, default=Path("drift-cache"))
    parser.add_argument("--fresh", action="store_true")
    options = parser.parse_args()
    cv2.setNumThreads(1)
    pooled: dict[str, list[bool]] = {}
    for data in options.data:
        of = described(open_data_folder(data), options.cache, fresh=options.fresh)
        names, counts = np.unique(of.groups, return_counts=True)
        print(f"{data.name}: {len(of.image_ids)} images; {(counts >= 10).sum()} of {len(names)} groups have 10")
        trials = -(-options.trials // len(options.data))
        simulate(data.name, of, trials, pooled)
        more_sheets(data.name, of, trials, pooled)
    for what, hits in pooled.items():
        print(f"all: {what}: {share(hits)}")
    for run, data in options.lamp:
        folder = open_data_folder(data)
        fade(run, folder, described(folder, options.cache, fresh=False))


if __name__ == "__main__":
    main()
