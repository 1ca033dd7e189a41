"""Folds and images of a training. Each image is decoded once for all runs of a command."""

import logging
import os
import sys
from collections import Counter
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.data.split import SPLIT_NAME, Fold, Folds, make_folds, read_split, read_split_groups
from defectseg.errors import DataError, ImageError, UsageError
from defectseg.image.measure import appearance_of
from defectseg.image.read import DecodedImage, bit_depth_warnings, is_blank
from defectseg.inference.stream import check_answer
from defectseg.inference.tiles import in_order
from defectseg.machine import cores
from defectseg.model.info import ModelInfo
from defectseg.progress import some

log = logging.getLogger(__name__)

# The network, its activations and the data loader's workers need the rest.
_SHARE_OF_FREE_MEMORY = 0.25
_CGROUP = Path("/sys/fs/cgroup")

Groups = Mapping[str, str]


@dataclass(frozen=True)
class Part:
    """ImageIds of one run, for training and validation, and the sizes (H, W) in px of its training images."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    train_sizes: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Images:
    """The images of a data folder, shared by all runs of a command.

    Attributes:
        data: the data folder, without the images of test.
        folds: ImageId -> fold or part, for all images, those of test too.
        sizes: ImageId -> (H, W) in px, for readable images.
        unreadable: (ImageId, reason) of unreadable images.
        cache: ImageId -> pixels, uint8 (H, W), read-only; empty if images are decoded again for each crop.
        bit_depth: the bit depth of all 16-bit images; None if there are none, if they differ, or if it is unknown.
        appearances: ImageId -> what it looks like, see `appearance_of`, for readable images that are not blank.
    """

    data: DataFolder
    folds: Folds
    sizes: Mapping[str, tuple[int, int]]
    unreadable: tuple[tuple[str, str], ...]
    cache: Mapping[str, NDArray[np.uint8]]
    bit_depth: int | None
    appearances: Mapping[str, NDArray[np.float32]]

    def part(self, fold: Fold | None) -> Part:
        """The images of the run that validates on `fold`; None: no validation. Images of val are not for training.

        Raises:
            DataError: too few images, or no training image has a defect.
        """
        readable = [image_id for image_id in self.data.image_ids if image_id in self.sizes]
        train = tuple(image_id for image_id in readable if self.folds[image_id] not in (fold, "val"))
        val = tuple(image_id for image_id in readable if self.folds[image_id] == fold)
        root = self.data.root
        if not train or (fold is not None and not val):
            raise DataError(f"{root}: {len(train)} images to train on and {len(val)} to validate on; give more.")
        if not any(self.data.classes_of(image_id) for image_id in train):
            raise DataError(f"{root}: none of the {len(train)} images to train on has a mask. Check train.csv.")
        return Part(train, val, frozenset(self.sizes[image_id] for image_id in train))


def check_data(data: DataFolder, info: ModelInfo) -> None:
    """Raise DataError if a model was trained on other data."""
    if (info.class_names, info.data_fingerprint) != (data.class_names, data.fingerprint()):
        raise DataError(f"{data.root}: not the data that the training began with: images or labels differ. Train anew.")


def find_folds(data: DataFolder, split: Path, *, folds: int, seed: int) -> tuple[Folds, Groups]:
    """ImageId -> fold or part: from `split` if it exists, else from split.csv in the data folder, else newly made.

    Also ImageId -> group, from the same place and from groups.csv; images that share none are not in it.

    Args:
        split: the split.csv of the run folder, which exists on resuming.
        folds, seed: the recipe's, for new folds.

    Raises:
        DataError: the split.csv lacks images.
        UsageError: more folds than images.
    """
    path = split if split.is_file() else data.root / SPLIT_NAME
    if not path.is_file():
        log.info("no %s: making %d folds that keep copies together", SPLIT_NAME, folds)
        return make_folds(data, folds=folds, seed=seed)
    found = read_split(path, data.image_ids)
    if unlisted := [image_id for image_id in data.image_ids if image_id not in found]:
        if path == split:
            raise DataError(f"{data.root}: not the data that this training began with: {unlisted[0]} is new.")
        raise DataError(f"{path}: gives no fold for {some(unlisted)}. Run: defectseg data split {data.root}")
    groups = {**data.groups, **read_split_groups(path, data.image_ids)}
    return {image_id: found[image_id] for image_id in data.image_ids}, groups


def join_val(found: Folds) -> Folds:
    """The same folds, with val as a part of train, or where these have numbers, as one more.

    Raises:
        UsageError: there is no val.
    """
    if "val" not in found.values():
        raise UsageError("no image is in val of the split. Leave it out.", argument="use_val")
    numbers = [fold for fold in found.values() if isinstance(fold, int)]
    joined: Fold = max(numbers) + 1 if numbers else "train"
    return {image_id: joined if fold == "val" else fold for image_id, fold in found.items()}


def divide_train(data: DataFolder, found: Folds, groups: Groups, *, folds: int, seed: int) -> tuple[Folds, Groups]:
    """The same folds and groups, with new numbered folds for the images of train, if there are any.

    Raises:
        UsageError: more folds than images.
    """
    train = tuple(image_id for image_id in data.image_ids if found[image_id] == "train")
    if not train:
        return found, groups
    log.info("making %d folds of the %d images of train, which keep copies together", folds, len(train))
    divided, joined = make_folds(replace(data, image_ids=train, groups=groups), folds=folds, seed=seed)
    return {**found, **divided}, {**groups, **joined}


def read_images(
    data: DataFolder, folds: Folds, *, keep: bool | Literal["auto"], left_out: Collection[Fold | None] = ()
) -> Images:
    """Decode every image and its masks once to check them, and cache the pixels if they fit in memory.

    Call this before the data loader forks its workers, so that they share the cache.

    Args:
        data: the data folder.
        folds: ImageId -> fold or part.
        keep: the recipe's `data.cache`; auto: cache if all images fit in a quarter of the free memory.
        left_out: folds that are not cached because no run trains on them.

    Raises:
        DataError: the validation of an image would take more memory than is allowed.
        LabelError: a run-length exceeds its image.
    """

    def read(image_id: str) -> tuple[DecodedImage, NDArray[np.float32] | None] | str:
        try:
            decoded = data.decode(image_id)
        except ImageError as error:
            return str(error)
        check_answer(data.image_path(image_id), decoded.pixels, data.num_classes)  # now, not at the first validation
        data.masks_of(image_id, (decoded.pixels.shape[0], decoded.pixels.shape[1]))
        return decoded, None if is_blank(decoded.pixels) else appearance_of(decoded.pixels)

    threads, budget_bytes, used_bytes = min(8, cores()), _budget_bytes(keep), 0
    cache: dict[str, NDArray[np.uint8]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    unreadable = [(image.image_id, image.fault) for image in data.faulty]
    bit_depths: set[int | None] = set()
    brightest: Counter[int | None] = Counter()
    appearances: dict[str, NDArray[np.float32]] = {}
    with ThreadPoolExecutor(threads) as pool:
        results = in_order(pool, read, data.image_ids, most=2 * threads)
        for image_id, result in zip(data.image_ids, results, strict=True):
            if isinstance(result, str):
                log.warning("left out: %s (%s)", image_id, result)
                unreadable.append((image_id, result))
                continue
            one, appearance = result
            if appearance is not None:
                appearances[image_id] = appearance
            pixels = one.pixels
            sizes[image_id] = (pixels.shape[0], pixels.shape[1])
            brightest[one.brightest16] += 1
            if (one.bit_depth, one.brightest16) != (None, None):
                bit_depths.add(one.bit_depth)
            if folds[image_id] not in left_out:
                pixels.setflags(write=False)
                cache[image_id] = pixels
                used_bytes += pixels.nbytes
                if used_bytes > budget_bytes:
                    cache.clear()
    if cache:
        log.info("%d decoded images in memory (%.0f MB)", len(cache), used_bytes / 1e6)
    for warning in bit_depth_warnings(brightest):
        log.warning("%s", warning)
    bit_depth = bit_depths.pop() if len(bit_depths) == 1 else None
    return Images(data, folds, sizes, tuple(unreadable), cache, bit_depth, appearances)


def _budget_bytes(keep: bool | Literal["auto"]) -> float:
    if keep != "auto":
        return float("inf") if keep else 0.0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun; each process has its own cache
    return _SHARE_OF_FREE_MEMORY * _free_memory_bytes() / processes


def _free_memory_bytes() -> int:
    """Free memory of the machine, or of its container if that has less; 0 if unknown."""
    if sys.platform != "linux":  # os.sysconf is absent, or does not know it
        return 0
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        limit, used = (int((_CGROUP / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit - used)
