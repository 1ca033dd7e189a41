"""The recipe for a data folder that comes without one: the nearest shipped recipe, fitted to the folder's images.

The idea is the fingerprint of nnU-Net (Isensee et al., Nature Methods 2021): rules decide, from what a folder holds.
`look` reads labels and the headers of images; `choose` needs nothing but the fingerprint.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median_high
from typing import Any

from defectseg.config import Recipe, change_recipe, load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.data.split import SPLIT_NAME, leave_out_test, read_split, read_split_groups
from defectseg.data.synthetic import is_synthetic
from defectseg.errors import DataError, ImageError
from defectseg.image.read import read_size
from defectseg.model.devices import resolve_device

SizeHW = tuple[int, int]

# Sizes and numbers of the images that a recipe was made for, where it does not say them itself.
_WHOLE_HW, _IMAGES = {"neu900": (200, 200), "severstal": (256, 1600)}, {"neu900": 600, "severstal": 12_568}
_SMALL_PX = 256 * 512  # a crop of Severstal
_MANY = 1_000  # as far from the 87 images of severstal-small as from the 12,568 of severstal, in factors
_ENOUGH_TO_HOLD_OUT, _FEW, _TOO_FEW = 500, 20, 5
_LOOKS, _LARGEST_BATCH = 6, 32
_MINUTES_FOR_FOUR = 25.0  # half of what severstal-small gives its four models
_WHY = {
    "demo": "These are sheets of `data synthesize`, which a small network learns from random weights.",
    "neu900": "The images are small and hardly one is clean: they are learned whole.",
    "severstal": "Many images and a CUDA device: a large encoder, and smaller batches if its memory asks for them.",
    "severstal-small": "Few images, or no CUDA device: a light encoder, and many crops of each image.",
}


@dataclass(frozen=True)
class Fingerprint:
    """What the choice depends on.

    Attributes:
        sizes: (H, W) in px -> number of readable images, without those of test.
        clean: images without a defect.
        classes: class -> images that show it.
        units: groups, counting images without one; or the numbered folds of split.csv, if they are fewer.
        synthetic: whether the images say that `data synthesize` has made them.
        device: cpu, cuda or mps.
        minutes: the time allowed; None: as the recipe says.
    """

    sizes: Mapping[SizeHW, int]
    clean: int
    classes: Mapping[str, int]
    units: int
    synthetic: bool = False
    device: str = "cpu"
    minutes: float | None = None

    @property
    def images(self) -> int:
        """Number of images."""
        return sum(self.sizes.values())

    @property
    def size_hw(self) -> SizeHW:
        """The size of all images; or if they differ, the median of each side, rounded up to a multiple of 32 px."""
        step, sides = 32 if len(self.sizes) > 1 else 1, zip(*Counter(self.sizes).elements(), strict=True)
        height, width = (math.ceil(median_high(side) / step) * step for side in sides)
        return height, width


def choose_recipe(root: Path, device: str, overrides: Sequence[str] = ()) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe for a data folder and a device, as `choose` says. Raises as `look` and `choose`."""
    of_time = [override for override in overrides if override.startswith("training.max_minutes")]
    minutes = change_recipe(Recipe(), of_time, "recipe").training.max_minutes
    return choose(look(root, device=device, minutes=minutes), overrides)


def look(root: Path, *, device: str = "auto", minutes: float | None = None) -> Fingerprint:
    """The fingerprint of a data folder on a device.

    Raises:
        UsageError, ResourceError: there is no such device.
        DataError: the folder is faulty.
    """
    folder, split = open_data_folder(root), root / SPLIT_NAME
    folds = read_split(split, folder.image_ids) if split.is_file() else {}
    folder = leave_out_test(folder, folds)
    groups = {**folder.groups, **read_split_groups(split, folder.image_ids)}
    size_of: dict[str, SizeHW] = {}
    for image_id in folder.image_ids:
        with suppress(ImageError):  # training will name those that cannot be read
            size_of[image_id] = read_size(folder.image_path(image_id))
    shown = {image_id: folder.classes_of(image_id) for image_id in size_of}
    clean = sum(not classes and image_id not in folder.unknown for image_id, classes in shown.items())
    counts = Counter(class_id for classes in shown.values() for class_id in classes)
    by_class = {name: counts[class_id] for class_id, name in enumerate(folder.class_names, start=1)}
    units = len({groups.get(image_id, f"/{image_id}") for image_id in size_of})
    units = min(units, len({fold for fold in folds.values() if isinstance(fold, int)}) or units)
    synthetic = all(is_synthetic(folder.image_path(image_id)) for image_id in size_of)
    sizes = Counter(size_of.values())
    return Fingerprint(sizes, clean, by_class, units, synthetic, resolve_device(device).type, minutes)


def choose(found: Fingerprint, overrides: Sequence[str] = ()) -> tuple[Recipe, tuple[str, ...]]:
    """The recipe for a fingerprint, with `key=value` overrides; and what was taken and why, in sentences.

    Raises:
        ConfigError: invalid overrides.
        DataError: too few images with a defect.
    """
    if (defective := found.images - found.clean) < _TOO_FEW:
        told = f"{defective} of {found.images} images show a defect; a recipe is chosen for {_TOO_FEW} or more."
        raise DataError(f"{told} Label more, or name a recipe, such as severstal-small, to train all the same.")
    hardly_clean, many = found.clean < 0.05 * found.images, found.images >= _MANY
    large = "severstal" if many and found.device == "cuda" else "severstal-small"
    small = "neu900" if hardly_clean and math.prod(found.size_hw) <= _SMALL_PX else large
    name = "demo" if found.synthetic else small
    content = load_recipe(name).model_dump(mode="json")
    content["training"]["fit_memory"] = name == "severstal"
    why = [_WHY[name], *_fit_stages(found, name, content), *_fit_folds(found, content)]
    weights, counts = content["loss"]["positive_weights"], [*found.classes.values()]
    if weights and [weight > 1 for weight in weights] != [count < max(counts) for count in counts]:
        content["loss"]["positive_weights"] = None
        why.append("All classes weigh the same, since the recipe's weights are for those of Severstal.")
    if hardly_clean:
        content["model"]["classification_head"] = False
        why.append(
            f"{found.clean} images are clean, so no gate is trained. Sound steel may raise false alarms: add some."
        )
    if rare := [f"{one} ({count})" for one, count in found.classes.items() if count < _TOO_FEW]:
        why.append(f"Fewer than {_TOO_FEW} images show {', '.join(rare)}: expect little there.")
    if many and name == "severstal-small":
        why.append("For so many, severstal is better, but needs a CUDA device. Others need more time (max_minutes).")
    recipe = change_recipe(Recipe.model_validate(content), overrides, name)
    return recipe, (*_summary(found, name, recipe), *why, *(f"As asked: {override}" for override in overrides))


def _fit_stages(found: Fingerprint, name: str, content: dict[str, Any]) -> list[str]:
    """Crops that fit the images, and a second stage on whole images or on the tiles that prediction cuts."""
    data, training, why = content["data"], content["training"], []
    crop_hw = _part(found.size_hw, math.prod(data["crop_hw"] or [_SMALL_PX]))
    first = _same_steps(found, name, {**training, **data}, crop_hw, looks=_LOOKS)
    second = training["second_stage"]
    data |= {key: first[key] for key in ("crop_hw", "samples_per_epoch")}
    training |= {key: first[key] for key in ("epochs", "batch_size")}
    if content["augment"]["quarter_turns"] and not (len(found.sizes) == 1 and crop_hw[0] == crop_hw[1]):
        content["augment"]["quarter_turns"], content["inference"]["tta"] = 0.0, "flips"
        why.append("Nothing is turned by 90 degrees, because the images are not squares of one size.")
    view_hw = found.size_hw
    if any(side > most for side, most in zip(view_hw, content["inference"]["tile_hw"], strict=True)):
        step_px = (second["batch_size"] or 0) * math.prod(second["crop_hw"] or _WHOLE_HW[name])
        view_hw = _part(view_hw, max(step_px, math.prod(crop_hw)))
        content["inference"]["tile_hw"] = [max(side, 256) for side in view_hw]  # more than their overlap
        why += [f"Prediction cuts images into tiles of {_by(view_hw)}."] if view_hw != found.size_hw else []
    if second["epochs"] and math.prod(view_hw) >= 4 / 3 * math.prod(crop_hw):
        second |= _same_steps(found, name, second, view_hw)
    elif second["epochs"]:
        second["epochs"] = 0
        why.append("The crops show nearly whole images, so there is no second stage for these.")
    return why


def _fit_folds(found: Fingerprint, content: dict[str, Any]) -> list[str]:
    """What is held out to choose the thresholds on."""
    data, training = content["data"], content["training"]
    data["folds"] = max(2, min(data["folds"], found.units))
    short = found.minutes is not None and found.minutes < _MINUTES_FOR_FOUR
    if found.images < _FEW or found.units < 2:
        data["fold"], training["threshold_folds"] = None, 0
        return ["Too few images or groups to hold some out: only a part val of split.csv would be scored. Label more."]
    if training["threshold_folds"] and (found.images >= _ENOUGH_TO_HOLD_OUT or short):
        data["fold"], data["folds"] = "auto", min(5, found.units)
        return [f"{'The time is short' if short else 'There are images enough'}: one fold is held out for thresholds."]
    training["threshold_folds"] = min(training["threshold_folds"], data["folds"])
    return []


def _part(size_hw: SizeHW, most_px: int) -> SizeHW:
    """The size of the largest, squarest part of an image with at most so many px: its sides, or multiples of 32."""
    short, long = sorted(size_hw)
    short = min(short, math.isqrt(most_px) // 32 * 32)
    long = min(long, most_px // short // 32 * 32)
    return (short, long) if size_hw[0] <= size_hw[1] else (long, short)


def _same_steps(
    found: Fingerprint, name: str, stage: Mapping[str, Any], crop_hw: SizeHW, looks: int = 0
) -> dict[str, Any]:
    """The keys of a stage with other crops, for as many steps, and pixels a step, as the recipe has on its own data.

    If the recipe says how many crops an epoch has, there are at least `looks` crops of each image in all.
    """
    whole, samples, epochs = stage["crop_hw"] is None, stage["samples_per_epoch"], stage["epochs"]
    step_px = stage["batch_size"] * math.prod(_WHOLE_HW[name] if whole else stage["crop_hw"])
    batch = min(_LARGEST_BATCH, max(1, round(step_px / math.prod(crop_hw))))
    crops = round((samples or _IMAGES[name]) * batch / stage["batch_size"])
    if samples is not None:
        crops = max(crops, math.ceil(looks * found.images / epochs))
    elif found.images >= crops:
        epochs, crops = max(1, round(epochs * crops / found.images)), None
    hw = None if whole and [*found.sizes] == [crop_hw] else crop_hw
    return {"crop_hw": hw, "batch_size": batch, "samples_per_epoch": crops, "epochs": epochs}


def _summary(found: Fingerprint, name: str, recipe: Recipe) -> tuple[str, str]:
    """What was found, and what was taken."""
    sizes = " to ".join(dict.fromkeys(_by([*map(end, zip(*found.sizes, strict=True))]) for end in (min, max)))
    share, training, crop_hw = found.clean / found.images, recipe.training, recipe.data.crop_hw
    of = (
        f"{found.images:,} images of {sizes} px, {share:.0%} clean, {len(found.classes)} classes, device {found.device}"
    )
    epochs = f"{training.epochs} epoch{'s' * (training.epochs > 1)}"
    crops = f"{epochs} of {recipe.data.samples_per_epoch or found.images:,} crops"
    limit = f", at most {training.max_minutes:g} minutes" if training.max_minutes else ""
    taken = f"{_by(crop_hw) if crop_hw else 'none: whole images'}, batch {training.batch_size}, {crops}{limit}"
    return f"Recipe {name}, chosen from the data: {of}.", f"Crop {taken}."


def _by(size_hw: Sequence[int]) -> str:
    return f"{size_hw[0]}x{size_hw[1]}"
