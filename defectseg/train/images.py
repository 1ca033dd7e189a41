"""What is trained on: folds, and the images of a data folder, each decoded once for all runs of a command."""

import logging
import os
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder
from defectseg.data.split import SPLIT_NAME, make_folds, read_split
from defectseg.errors import DataError, ImageError
from defectseg.image.read import DecodedImage, LowBitDepth, find_low_bit_depth
from defectseg.inference.tiles import in_order
from defectseg.machine import cores
from defectseg.model.info import ModelInfo

log = logging.getLogger(__name__)

# The rest is for the network, its activations and the loader's workers.
_SHARE_OF_FREE_MEMORY = 0.25
_CGROUP = Path("/sys/fs/cgroup")


@dataclass(frozen=True)
class Part:
    """The images of one run: ImageIds to train and to validate on, and the sizes (H, W) of the former in px."""

    train: tuple[str, ...]
    val: tuple[str, ...]
    train_sizes: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Images:
    """The images of a data folder, as all runs of a command share them.

    Attributes:
        data: the labels.
        folds: ImageId -> fold, of all images.
        sizes: ImageId -> (H, W) in px, of the images that can be read.
        unreadable: (ImageId, reason) of the others.
        cache: ImageId -> pixels, uint8 (H, W), read-only; empty where the images are read anew for each crop.
        bit_depth: what all 16-bit images were read with; None where there are none, where they differ, or where it is
            not known.
        low_bit_depth: set where most 16-bit images seem to come from a camera of fewer bits.
    """

    data: DataFolder
    folds: Mapping[str, int]
    sizes: Mapping[str, tuple[int, int]]
    unreadable: tuple[tuple[str, str], ...]
    cache: Mapping[str, NDArray[np.uint8]]
    bit_depth: int | None
    low_bit_depth: LowBitDepth | None

    def part(self, fold: int | None) -> Part:
        """The images of the run that holds back `fold`; None: of one on everything.

        Raises:
            DataError: too few images, or none to train on with a defect.
        """
        readable = [image_id for image_id in self.data.image_ids if image_id in self.sizes]
        train = tuple(image_id for image_id in readable if self.folds[image_id] != fold)
        val = tuple(image_id for image_id in readable if self.folds[image_id] == fold)
        root = self.data.root
        if not train or (fold is not None and not val):
            raise DataError(f"{root}: {len(train)} images to train on and {len(val)} to validate on; give more.")
        if not any(self.data.classes_of(image_id) for image_id in train):
            raise DataError(
                f"{root}: none of the {len(train)} images to train on has a mask to learn. Check train.csv."
            )
        return Part(train, val, frozenset(self.sizes[image_id] for image_id in train))


def check_data(data: DataFolder, info: ModelInfo) -> None:
    """Raise DataError where these are not the data that a model was trained on."""
    if (info.class_names, info.data_fingerprint) != (data.class_names, data.fingerprint()):
        raise DataError(
            f"{data.root}: not the data that this training began with: images or labels differ. "
            "Resume with the same data folder, or train anew in another run folder."
        )


def find_folds(data: DataFolder, split: Path, *, folds: int, seed: int) -> dict[str, int]:
    """ImageId -> fold of all images: of `split`, else of split.csv in the data folder, else new ones.

    Args:
        split: the split.csv of the training that is resumed; it need not exist.
        folds, seed: of the recipe, for new folds.

    Raises:
        DataError: a split.csv that does not name all images.
        UsageError: more folds than images.
    """
    path = split if split.is_file() else data.root / SPLIT_NAME
    if not path.is_file():
        log.info("no %s: making %d folds that keep copies together", SPLIT_NAME, folds)
        return make_folds(data, folds=folds, seed=seed)
    found = read_split(path)
    if unlisted := [image_id for image_id in data.image_ids if image_id not in found]:
        if path == split:
            raise DataError(f"{data.root}: not the data that this training began with: {unlisted[0]} is new.")
        raise DataError(
            f"{path}: gives no fold for {len(unlisted)} images (first: {unlisted[0]}). "
            f"Run: defectseg data split {data.root}"
        )
    return {image_id: found[image_id] for image_id in data.image_ids}


def read_images(
    data: DataFolder, folds: Mapping[str, int], *, keep: bool | Literal["auto"], left_out: int | None = None
) -> Images:
    """Decode every image once, with its masks, and keep the pixels where they take little of the free memory.

    To be called before the loader forks its workers, so that all of them share the one copy.

    Args:
        folds: ImageId -> fold.
        keep: `data.cache`: whether to keep the pixels; auto: in at most a quarter of the free memory.
        left_out: the fold whose pixels nobody wants, since no run trains on them.

    Raises:
        LabelError: a run-length that does not fit its image: training on a part of the labels would hide it.
    """

    def read(image_id: str) -> DecodedImage | str:
        try:
            decoded = data.decode(image_id)
        except ImageError as error:
            return str(error)
        data.masks_of(image_id, (decoded.pixels.shape[0], decoded.pixels.shape[1]))
        return decoded

    threads, budget_bytes, used_bytes = min(8, cores()), _budget_bytes(keep), 0
    cache: dict[str, NDArray[np.uint8]] = {}
    sizes: dict[str, tuple[int, int]] = {}
    unreadable = [(image.image_id, image.fault) for image in data.faulty]
    bit_depths: set[int | None] = set()
    brightest: Counter[int | None] = Counter()
    with ThreadPoolExecutor(threads) as pool:
        results = in_order(pool, read, data.image_ids, most=2 * threads)
        for image_id, one in zip(data.image_ids, results, strict=True):
            if isinstance(one, str):
                log.warning("left out: %s (%s)", image_id, one)
                unreadable.append((image_id, one))
                continue
            pixels = one.pixels
            sizes[image_id] = (pixels.shape[0], pixels.shape[1])
            brightest[one.brightest16] += 1
            if (one.bit_depth, one.brightest16) != (None, None):
                bit_depths.add(one.bit_depth)
            if folds[image_id] != left_out:
                pixels.setflags(write=False)
                cache[image_id] = pixels
                used_bytes += pixels.nbytes
                if used_bytes > budget_bytes:
                    cache.clear()
    if cache:
        log.info("%d decoded images in memory (%.0f MB)", len(cache), used_bytes / 1e6)
    low = find_low_bit_depth(brightest)
    if low is not None:
        log.warning("%s Set data.bit_depth to %d, or to 16 if that is right.", low, low.bit_depth)
    return Images(
        data,
        folds,
        sizes,
        tuple(unreadable),
        cache,
        bit_depth=bit_depths.pop() if len(bit_depths) == 1 else None,
        low_bit_depth=low,
    )


def _budget_bytes(keep: bool | Literal["auto"]) -> float:
    if keep != "auto":
        return float("inf") if keep else 0.0
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # set by torchrun; each of them keeps its own
    return _SHARE_OF_FREE_MEMORY * _free_memory_bytes() / processes


def _free_memory_bytes() -> int:
    """Free memory, of the container where it has less than the machine; 0 where the system does not tell."""
    try:
        free = max(0, os.sysconf("SC_AVPHYS_PAGES")) * max(0, os.sysconf("SC_PAGE_SIZE"))
    except (AttributeError, ValueError, OSError):
        return 0
    try:
        limit, used = (int((_CGROUP / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, max(0, limit - used))
