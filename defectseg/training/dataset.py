"""Crops to train on, each a function of (seed, epoch, position): no worker, process or order changes them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from defectseg.config import DataConfig
from defectseg.data.images import decode
from defectseg.data.labels import DataFolder
from defectseg.training.augment import Augment


@dataclass(frozen=True)
class CropKey:
    """Which crop: the epoch, the position in it, the image, and whether it must lie on a defect, and on which class."""

    epoch: int
    position: int
    image_id: str
    on_defect: bool
    class_id: int | None = None


@dataclass(frozen=True)
class Batch:
    """Tensors of N crops.

    Attributes:
        images: uint8 (N, 1, H, W).
        masks: bool (N, C, H, W).
        ignore: bool (N, H, W).
        image_ids: N ImageIds.
    """

    images: Tensor
    masks: Tensor
    ignore: Tensor
    image_ids: tuple[str, ...]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Self:
        """The same batch on another device; Accelerate calls this."""
        images, masks, ignore = (
            tensor.to(device, non_blocking=non_blocking) for tensor in (self.images, self.masks, self.ignore)
        )
        return replace(self, images=images, masks=masks, ignore=ignore)


class CropSampler(Sampler[CropKey]):
    """Chooses the images of each epoch.

    A share of the positions goes to images with a defect (a part of it to each class alike, so that a rare one is seen
    as often as a common one), the others to all images; each group is gone through in a new random order before any
    image comes again.

    Args:
        folder: labels, to know which images have a defect.
        image_ids: images to train on.
        config: share of defect crops, crops in an epoch.
        seed: of the run.
    """

    def __init__(self, folder: DataFolder, image_ids: Sequence[str], config: DataConfig, seed: int) -> None:
        self.image_ids = list(image_ids)
        self.defective = [image_id for image_id in image_ids if folder.classes_of(image_id)]
        self.length = config.samples_per_epoch or len(self.image_ids)
        self.share = config.defect_crops if self.defective else 0.0
        self.balance = config.class_balance
        by_class = {
            class_id: [image_id for image_id in self.defective if class_id in folder.classes_of(image_id)]
            for class_id in range(1, folder.num_classes + 1)
        }
        self.by_class = {class_id: members for class_id, members in by_class.items() if members}
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch, from 0, that the next iteration gives."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[CropKey]:
        rng = np.random.default_rng([self.seed, self.epoch])
        num_on_defect = round(self.share * self.length)
        num_each = round(self.balance * num_on_defect) // max(1, len(self.by_class))
        chosen: list[tuple[str, bool, int | None]] = []
        for class_id, members in self.by_class.items():
            chosen += [(image_id, True, class_id) for image_id in _cycle(members, num_each, rng)]
        chosen += [(image_id, True, None) for image_id in _cycle(self.defective, num_on_defect - len(chosen), rng)]
        chosen += [(image_id, False, None) for image_id in _cycle(self.image_ids, self.length - num_on_defect, rng)]
        for position, index in enumerate(rng.permutation(len(chosen))):
            yield CropKey(self.epoch, position, *chosen[index])


class CropDataset(Dataset[tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]]):
    """Cuts and augments what the sampler chooses.

    Args:
        folder: images and labels.
        crop_hw: size of a crop, or None for whole images.
        augment: random changes.
        seed: of the run.
    """

    def __init__(self, folder: DataFolder, crop_hw: tuple[int, int] | None, augment: Augment, seed: int) -> None:
        self.folder = folder
        self.crop_hw = crop_hw
        self.augment = augment
        self.seed = seed

    def __getitem__(self, key: CropKey) -> tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]:
        """Image uint8 (h, w) and layers uint8 (h, w, C + 1): a mask of 0 and 1 for each class, then what to ignore."""
        rng = np.random.default_rng([self.seed, key.epoch, key.position, 1])
        pixels = decode(self.folder.image_path(key.image_id)).pixels
        masks, ignore = self.folder.masks_of(key.image_id, (pixels.shape[0], pixels.shape[1]))
        layers = np.concatenate([masks, ignore[None]]).view(np.uint8)
        if self.crop_hw is not None:
            corner = place_crop(masks, self.crop_hw, on_defect=key.on_defect, class_id=key.class_id, rng=rng)
            pixels, layers = cut(pixels, layers, corner, self.crop_hw)
        image, changed = self.augment(pixels, np.ascontiguousarray(layers.transpose(1, 2, 0)), int(rng.integers(2**31)))
        return key, image, changed


def collate(items: Sequence[tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]]) -> Batch:
    """Stack crops of one size into tensors."""
    keys, images, layers = zip(*items, strict=True)
    stacked = torch.from_numpy(np.stack(layers)).permute(0, 3, 1, 2).bool()
    return Batch(
        images=torch.from_numpy(np.stack(images))[:, None],
        masks=stacked[:, :-1].contiguous(),
        ignore=stacked[:, -1].contiguous(),
        image_ids=tuple(key.image_id for key in keys),
    )


def place_crop(
    masks: NDArray[np.bool_],
    crop_hw: tuple[int, int],
    *,
    on_defect: bool,
    rng: np.random.Generator,
    class_id: int | None = None,
) -> tuple[int, int]:
    """Top-left corner (row, column) of a random crop; negative or past the end where the image is smaller.

    Args:
        masks: bool (C, H, W).
        crop_hw: size of the crop in px.
        on_defect: the crop must hold a pixel of a defect.
        rng: source of chance.
        class_id: the class of that defect; None for a random one of the image.
    """
    size_hw = masks.shape[1:]
    present = np.flatnonzero(masks.any(axis=(1, 2))) if on_defect else np.array([], int)
    if not present.size:
        return _random_corner(size_hw, crop_hw, rng)
    pixels = np.flatnonzero(masks[rng.choice(present) if class_id is None else class_id - 1])
    target = np.unravel_index(rng.choice(pixels), size_hw)
    return _random_corner(size_hw, crop_hw, rng, around=(int(target[0]), int(target[1])))


def cut(
    pixels: NDArray[np.uint8], layers: NDArray[np.uint8], corner: tuple[int, int], crop_hw: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Cut a crop from an image (H, W) and its layers (L, H, W); beyond the image the crop is black and ignored."""
    height, width = pixels.shape
    top, left = corner
    inside = (slice(max(top, 0), min(top + crop_hw[0], height)), slice(max(left, 0), min(left + crop_hw[1], width)))
    part, part_layers = pixels[inside], layers[:, *inside]
    if part.shape == crop_hw:
        return part, part_layers
    rows = slice(inside[0].start - top, inside[0].stop - top)
    columns = slice(inside[1].start - left, inside[1].stop - left)
    image = np.zeros(crop_hw, np.uint8)
    image[rows, columns] = part
    padded = np.zeros((len(layers), *crop_hw), np.uint8)
    padded[-1] = 1
    padded[:, rows, columns] = part_layers
    return image, padded


def _random_corner(
    size_hw: Sequence[int], crop_hw: Sequence[int], rng: np.random.Generator, around: tuple[int, int] | None = None
) -> tuple[int, int]:
    corner = []
    for axis, (length, crop) in enumerate(zip(size_hw, crop_hw, strict=True)):
        first, last = min(0, length - crop), max(0, length - crop)
        if around is not None and length > crop:
            first, last = max(first, around[axis] - crop + 1), min(last, around[axis])
        corner.append(int(rng.integers(first, last + 1)))
    return corner[0], corner[1]


def _cycle(items: Sequence[str], count: int, rng: np.random.Generator) -> Iterator[str]:
    """`count` items: all of them in a random order, then all in another, and so on."""
    while count > 0:
        for index in rng.permutation(len(items))[:count]:
            yield items[index]
        count -= len(items)
