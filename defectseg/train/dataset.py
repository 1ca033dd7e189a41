"""Crops to train on, each a function of (seed, epoch, position): no worker, process or order changes them."""

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
from defectseg.train.augment import Augment
from defectseg.train.crops import Place, cut, place_crop

HIDING = 2
"""In the layer of what to ignore: a defect may be there."""


@dataclass(frozen=True)
class CropKey:
    """Which crop: the epoch, the position in it, the image, where in it, and on a defect of which class (None: any)."""

    epoch: int
    position: int
    image_id: str
    place: Place = "anywhere"
    class_id: int | None = None


class Batch(NamedTuple):
    """Tensors of N crops, as a tuple, which torch and Accelerate know how to pin and to move.

    Attributes:
        images: uint8 (N, 1, H, W).
        masks: bool (N, C, H, W).
        ignore: bool (N, H, W).
        unknown: bool (N, C), pairs in which ignored pixels may hide the class.
        image_ids: N ImageIds.
    """

    images: Tensor
    masks: Tensor
    ignore: Tensor
    unknown: Tensor
    image_ids: Sequence[str]


class CropSampler(Sampler[CropKey]):
    """Chooses the images of each epoch.

    A share of the positions goes to defects (a part of it to each class alike, so that a rare one is seen as often as
    a common one), the others anywhere; each group of images is gone through in a new random order before any image
    comes again.

    Args:
        folder: labels, to know which images have a defect.
        image_ids: images to train on.
        config: shares of the crops, crops in an epoch.
        seed: of the run.
    """

    def __init__(self, folder: DataFolder, image_ids: Sequence[str], config: DataConfig, seed: int) -> None:
        self.image_ids = list(image_ids)
        self.defective = [image_id for image_id in image_ids if folder.classes_of(image_id)]
        self.config = config
        self.length = config.samples_per_epoch or len(self.image_ids)
        by_class = {
            class_id: [image_id for image_id in self.defective if class_id in folder.classes_of(image_id)]
            for class_id in range(1, folder.num_classes + 1)
        }
        self.by_class = {class_id: members for class_id, members in by_class.items() if members}
        self.seed = seed
        self.begin(0)

    def begin(self, epoch: int, *, share_done: float = 0.0, start: int = 0) -> None:
        """Choose what the next iterations give.

        Args:
            epoch: from 0.
            share_done: which share of the training, 0..1, lies before it: it lowers the class balance.
            start: position of the first crop: an interrupted epoch had those before.
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
    """Cuts and augments what the sampler chooses.

    Attributes:
        folder: images and labels.
        crop_hw: size of a crop, or None for whole images.
        augment: random changes.
        seed: of the run.
        cache: ImageId -> decoded image, uint8 (H, W); images that are not in it are read at each access.
        black_limit: a crop with a larger share of black is drawn again, see `place_crop`.
    """

    folder: DataFolder
    crop_hw: tuple[int, int] | None
    augment: Augment
    seed: int
    cache: Mapping[str, NDArray[np.uint8]] = field(default_factory=dict)
    black_limit: float = 1.0

    def __getitem__(self, key: CropKey) -> tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]:
        """Image uint8 (h, w) and layers uint8 (h, w, C + 1): a mask of 0 and 1 for each class, then what to ignore.

        The last layer is 0 for pixels that count, 1 for ignored ones that hide nothing, as borders and all beyond the
        image, and HIDING for ignored ones that may hide a defect (see `hiding_pixels`).
        """
        rng = np.random.default_rng([self.seed, key.epoch, key.position, 1])
        pixels = self.cache.get(key.image_id)
        if pixels is None:
            pixels = self.folder.decode(key.image_id).pixels
        masks, ignore = self.folder.masks_of(key.image_id, (pixels.shape[0], pixels.shape[1]))
        layers = np.concatenate([masks, ignore[None]]).view(np.uint8)
        if ignore.any():
            layers[-1, hiding_pixels(masks, ignore)] = HIDING
            masks &= ~ignore  # a defect is looked for where it is seen
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
            pixels, layers = cut(pixels, layers, corner, self.crop_hw)
        # A copy, since the cache is read-only and a crop of it must not keep the whole image alive.
        image, changed = self.augment(
            pixels.copy(), np.ascontiguousarray(layers.transpose(1, 2, 0)), int(rng.integers(2**31))
        )
        return key, image, changed


def collate(items: Sequence[tuple[CropKey, NDArray[np.uint8], NDArray[np.uint8]]]) -> Batch:
    """Stack crops of one size into tensors."""
    keys, images, layers = zip(*items, strict=True)
    stacked = torch.from_numpy(np.stack(layers)).permute(0, 3, 1, 2)
    masks, last = stacked.bool()[:, :-1].contiguous(), stacked[:, -1].contiguous()
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
    """`count` items: all of them in a random order, then all in another, and so on."""
    while count > 0:
        for index in rng.permutation(len(items))[:count]:
            yield items[index]
        count -= len(items)
