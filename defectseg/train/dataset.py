"""Training crops. Each depends only on (seed, epoch, position), not on workers, processes or order."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, Sampler

from defectseg.config import DataConfig
from defectseg.data.folder import DataFolder, hiding_pixels, unknown_classes
from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.train.augment import Augment
from defectseg.train.crops import Place, cut, place_crop

HIDING = 2
"""Value in the ignore layer for ignored pixels that may hide a defect."""


@dataclass(frozen=True)
class CropKey:
    """Identifies a crop.

    Attributes:
        epoch: from 0.
        position: index within the epoch.
        image_id: the image to crop.
        place: `defect`: the crop contains a defect.
        class_id: class of that defect; None: any.
    """

    epoch: int
    position: int
    image_id: str
    place: Place = "anywhere"
    class_id: int | None = None


class Batch(NamedTuple):
    """N crops. Being a tuple, torch and Accelerate can pin it and move it to a device.

    Attributes:
        images: uint8 (N, 1, H, W).
        masks: bool (N, C, H, W).
        ignore: bool (N, H, W).
        unknown: bool (N, C), True if ignored pixels may hide the class in the crop.
        image_ids: N ImageIds.
    """

    images: Tensor
    masks: Tensor
    ignore: Tensor
    unknown: Tensor
    image_ids: Sequence[str]


class CropSampler(Sampler[CropKey]):
    """Chooses the crops of each epoch.

    A share of the crops contains a defect. Part of that share is split equally among the classes, so that rare classes
    are seen as often as common ones. The other crops lie anywhere. Within each group, no image repeats until all
    images have been used.

    Args:
        folder: labels.
        image_ids: images to train on.
        config: shares of the crops, crops per epoch.
        seed: seed of the run.
    """

    def __init__(self, folder: DataFolder, image_ids: Sequence[str], config: DataConfig, seed: int) -> None:
        self.image_ids = list(image_ids)
        self.defective = [image_id for image_id in image_ids if folder.classes_of(image_id)]
        self.config = config
        self.length = config.samples_per_epoch or len(self.image_ids)
        ids = range(1, folder.num_classes + 1)
        by_class = {number: [one for one in self.defective if number in folder.classes_of(one)] for number in ids}
        self.by_class = {class_id: members for class_id, members in by_class.items() if members}
        self.seed = seed
        self.begin(0)

    def begin(self, epoch: int, *, share_done: float = 0.0, start: int = 0) -> None:
        """Set the epoch that the next iterations yield.

        Args:
            epoch: from 0.
            share_done: share of the training done so far, 0..1; lowers the class balance.
            start: position of the first crop, to continue an interrupted epoch.
        """
        self.epoch, self.share_done, self.start = epoch, share_done, start

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[CropKey]:
        rng = np.random.default_rng([self.seed, self.epoch])
        num_defect = round(self.config.defect_crops * self.length) if self.defective else 0
        until = self.config.balance_until
        left = 1.0 if until == 1 else max(0.0, 1 - self.share_done / until)
        num_each = round(left * self.config.class_balance * num_defect) // max(1, len(self.by_class))
        chosen: list[tuple[str, Place, int | None]] = []
        for class_id, members in self.by_class.items():
            chosen += [(image_id, "defect", class_id) for image_id in _cycle(members, num_each, rng)]
        chosen += [(image_id, "defect", None) for image_id in _cycle(self.defective, num_defect - len(chosen), rng)]
        rest = self.length - len(chosen)
        chosen += [(image_id, "anywhere", None) for image_id in _cycle(self.image_ids, rest, rng)]
        order = rng.permutation(len(chosen))
        for position in range(self.start, len(chosen)):
            yield CropKey(self.epoch, position, *chosen[order[position]])


@dataclass(frozen=True)
class CropDataset(Dataset[tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]]):
    """Cuts and augments the crops that the sampler chooses.

    Attributes:
        folder: images and labels.
        crop_hw: size of a crop in px; None: whole images.
        augment: from `build_augment`.
        seed: seed of the run.
        cache: ImageId -> decoded image, uint8 (H, W). Other images are decoded for each crop.
        black_limit: largest share of black pixels in a crop, see `place_crop`.
    """

    folder: DataFolder
    crop_hw: tuple[int, int] | None
    augment: Augment
    seed: int
    cache: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    black_limit: float = 1.0

    def __getitem__(self, key: CropKey) -> tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]:
        """Key, image uint8 (h, w), and layers uint8 (C + 1, h, w): a 0/1 mask per class, then the ignore layer.

        The ignore layer is 0 for pixels that count, 1 for ignored pixels that hide nothing (borders, padding), and
        HIDING for ignored pixels that may hide a defect (see `hiding_pixels`).
        """
        rng = np.random.default_rng([self.seed, key.epoch, key.position, 1])
        pixels = self.cache.get(key.image_id)
        if pixels is None:
            pixels = self.folder.decode(key.image_id).pixels
        size_hw, last = (pixels.shape[0], pixels.shape[1]), self.folder.num_classes
        masks = dict(self.folder.labelled_masks(key.image_id, size_hw))
        ignore = masks.pop(IGNORE_CLASS_ID, None)
        layers = {class_id - 1: mask.view(np.uint8) for class_id, mask in masks.items()}
        if ignore is not None:
            hiding = hiding_pixels(np.stack([np.zeros_like(ignore), *masks.values()]), ignore)
            layers[last] = np.where(hiding, np.uint8(HIDING), ignore.view(np.uint8))
            masks = {class_id: mask & ~ignore for class_id, mask in masks.items()}  # place crops on visible pixels
        corner = (0, 0)
        if self.crop_hw is not None:
            corner = place_crop(
                pixels,
                masks,
                self.crop_hw,
                place=key.place,
                rng=rng,
                class_id=key.class_id,
                black_limit=self.black_limit,
            )
        crop = cut(pixels, layers, corner, self.crop_hw or size_hw, num_layers=last + 1)
        return key, *self.augment(*crop, int(rng.integers(2**31)))


def collate(items: Sequence[tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]]) -> Batch:
    """Stack crops of equal size into a batch."""
    keys, images, layers = zip(*items, strict=True)
    masks = torch.from_numpy(np.stack([one[:-1] for one in layers])).view(torch.bool)
    last = torch.from_numpy(np.stack([one[-1] for one in layers]))
    ignore, hiding = last.bool(), last == HIDING
    unknown = [unknown_classes(*one) for one in zip(masks.numpy(), ignore.numpy(), hiding.numpy(), strict=True)]
    return Batch(
        images=torch.from_numpy(np.stack(images))[:, None],
        masks=masks,
        ignore=ignore,
        unknown=torch.from_numpy(np.stack(unknown)),
        image_ids=tuple(key.image_id for key in keys),
    )


def _cycle(items: Sequence[str], count: int, rng: np.random.Generator) -> Iterator[str]:
    """`count` items: repeated passes over all items, each in a new random order."""
    while count > 0:
        for index in rng.permutation(len(items))[:count]:
            yield items[index]
        count -= len(items)
