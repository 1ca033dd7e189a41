"""Which crops an epoch has, where they lie, and that only (seed, epoch, position) decides it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from defectseg.config import AugmentConfig, DataConfig
from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.table import IGNORE_CLASS_ID, LabelTable
from defectseg.image import rle
from defectseg.image.read import decode
from defectseg.train.augment import build_augment
from defectseg.train.dataset import Batch, CropDataset, CropKey, CropSampler, collate

STILL = AugmentConfig(horizontal_flip=0, vertical_flip=0, brightness_contrast=0)
LIVELY = AugmentConfig(brightness_contrast=1)


@pytest.fixture(scope="module")
def folder(data_folder: Path) -> DataFolder:
    return open_data_folder(data_folder)


def _labels(classes: Mapping[str, tuple[int, ...]]) -> DataFolder:
    """A folder of which only the labels are looked at."""
    table = LabelTable(
        {image_id: dict.fromkeys(ids, "1 1") for image_id, ids in classes.items() if ids}, frozenset(classes)
    )
    return DataFolder(Path("nowhere"), tuple(sorted(classes)), table, ("a", "b", "c", "d"), {})


TEN = _labels({f"{index}.jpg": ((1,) if index < 3 else (2,) if index == 3 else ()) for index in range(10)})


def _decoded(folder: DataFolder, image_ids: Sequence[str]) -> dict[str, NDArray[np.uint8]]:
    images = {image_id: decode(folder.image_path(image_id)).pixels for image_id in image_ids}
    for pixels in images.values():
        pixels.setflags(write=False)
    return images


def _epoch(sampler: CropSampler, epoch: int = 0) -> list[CropKey]:
    sampler.begin(epoch)
    return list(sampler)


# The sampler


@pytest.mark.parametrize(
    ("share", "samples", "defects"), [(0.0, 40, 0), (0.25, 40, 10), (1.0, 40, 40), (0.5, 64, 32), (0.5, None, 5)]
)
def test_an_epoch_has_the_wanted_number_of_crops_and_share_of_defects(
    share: float, samples: int | None, defects: int
) -> None:
    sampler = CropSampler(TEN, TEN.image_ids[:9], DataConfig(defect_crops=share, samples_per_epoch=samples), 0)
    keys = _epoch(sampler, 4)
    if samples is None:  # one for each image
        samples, defects = 9, 4
    assert len(sampler) == samples
    assert [(key.epoch, key.position) for key in keys] == [(4, position) for position in range(samples)]
    assert {key.image_id for key in keys} <= {*TEN.image_ids[:9]}
    on_defects = [key.place == "defect" for key in keys]
    assert sum(on_defects) == defects
    assert all(TEN.classes_of(key.image_id) for key in keys if key.place == "defect")
    if samples == 64:
        assert 8 < sum(on_defects[:32]) < 24, "they are mixed with the others"


def test_no_image_repeats_before_all_others_of_its_group() -> None:
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(defect_crops=0.5, samples_per_epoch=50), 3)
    keys = _epoch(sampler)
    # 25 defect crops over 4 images: each 6 times, one 7 times. 25 others over 10 images: 2 or 3 times.
    assert sorted(Counter(key.image_id for key in keys if key.place == "defect").values()) == [6, 6, 6, 7]
    assert sorted(Counter(key.image_id for key in keys if key.place == "anywhere").values()) == [2] * 5 + [3] * 5


@pytest.mark.parametrize(
    ("until", "share_done", "each"),
    [(0.5, 0.0, 20), (0.5, 0.25, 10), (0.5, 0.5, 0), (0.5, 0.9, 0), (1.0, 0.9, 20)],
)
def test_the_class_balance_falls_to_natural_frequencies(until: float, share_done: float, each: int) -> None:
    config = DataConfig(defect_crops=0.5, class_balance=1.0, balance_until=until, samples_per_epoch=80)
    sampler = CropSampler(TEN, TEN.image_ids, config, 0)
    sampler.begin(0, share_done=share_done)
    keys = [key for key in sampler if key.place == "defect"]
    counts = Counter(key.class_id for key in keys)
    assert [counts[class_id] for class_id in (1, 2, None)] == [each, each, 40 - 2 * each]
    assert all(key.class_id in (None, *TEN.classes_of(key.image_id)) for key in keys)


def test_an_epoch_can_start_at_a_position() -> None:
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=30), 0)
    whole = _epoch(sampler, 1)
    sampler.begin(1, start=12)
    assert list(sampler) == whole[12:]
    assert len(sampler) == 30
    assert _epoch(sampler, 1) == whole


def test_without_any_defect_all_crops_are_random() -> None:
    clean = _labels({"a.jpg": (), "b.jpg": (IGNORE_CLASS_ID,)})
    keys = _epoch(CropSampler(clean, clean.image_ids, DataConfig(defect_crops=1.0, class_balance=1.0), 0))
    assert [key.place for key in keys] == ["anywhere", "anywhere"]


def test_epochs_and_seeds_differ_and_repeat() -> None:
    config = DataConfig(samples_per_epoch=30)
    one, again, other = (CropSampler(TEN, TEN.image_ids, config, seed) for seed in (1, 1, 2))
    assert _epoch(one, 0) == _epoch(again, 0)
    assert _epoch(one, 5) == _epoch(again, 5)
    assert [key.image_id for key in _epoch(one, 0)] != [key.image_id for key in _epoch(one, 1)]
    assert [key.image_id for key in _epoch(one, 0)] != [key.image_id for key in _epoch(other, 0)]


class _Keys(torch.utils.data.Dataset[CropKey]):
    def __getitem__(self, key: CropKey) -> CropKey:
        return key


def test_processes_share_an_epoch_between_them() -> None:
    def shard(index: int, epoch: int) -> list[CropKey]:
        sampler = CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=24), 0)
        loader = DataLoader(_Keys(), batch_size=4, sampler=sampler, collate_fn=list, drop_last=True)
        prepared = prepare_data_loader(loader, num_processes=2, process_index=index, put_on_device=False)
        sampler.begin(epoch)
        return [key for batch in prepared for key in batch]

    for epoch in (0, 3):
        parts = [shard(index, epoch) for index in range(2)]
        whole = _epoch(CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=24), 0), epoch)
        assert [len(part) for part in parts] == [12, 12]
        assert sorted(parts[0] + parts[1], key=lambda key: key.position) == whole


# Crops


def _dataset(folder: DataFolder, seed: int = 0, crop_hw: tuple[int, int] | None = (32, 48)) -> CropDataset:
    return CropDataset(folder, crop_hw, build_augment(LIVELY), seed)


def test_a_crop_depends_on_seed_epoch_and_position_alone(folder: DataFolder) -> None:
    keys = [CropKey(2, position, image_id) for position, image_id in enumerate(folder.image_ids[:6])]
    first, second = _dataset(folder), _dataset(folder)
    expected = {key.position: first[key][1:] for key in keys}
    np.random.seed(9)
    torch.manual_seed(9)
    for key in reversed(keys):
        for ours, theirs in zip(second[key][1:], expected[key.position], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_another_seed_epoch_or_position_makes_another_crop(folder: DataFolder) -> None:
    image_id = folder.image_ids[0]
    crops = [
        _dataset(folder, seed)[CropKey(epoch, position, image_id)][1].tobytes()
        for seed, epoch, position in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(crops)) == 4


def test_a_crop_shows_its_image_and_the_masks_there(folder: DataFolder) -> None:
    image_id = next(image_id for image_id in folder.image_ids if folder.classes_of(image_id))
    pixels = decode(folder.image_path(image_id)).pixels
    masks, _ = folder.masks_of(image_id, (64, 128))
    key, image, layers = CropDataset(folder, (32, 48), build_augment(STILL), 0)[CropKey(0, 0, image_id, "defect")]
    assert key.image_id == image_id
    assert (image.shape, layers.shape) == ((32, 48), (5, 32, 48))
    places = [
        (top, left)
        for top in range(64 - 32 + 1)
        for left in range(128 - 48 + 1)
        if np.array_equal(pixels[top : top + 32, left : left + 48], image)
    ]
    assert len(places) == 1
    (top, left) = places[0]
    np.testing.assert_array_equal(layers[:4], masks[:, top : top + 32, left : left + 48])
    assert not layers[4].any()
    assert layers[:4].any()


def _labelled(folder: DataFolder, masks: Mapping[int, NDArray[np.bool_]]) -> DataFolder:
    """The first image of a folder with these masks instead of its own."""
    image_id = folder.image_ids[0]
    table = LabelTable({image_id: {c: rle.encode(mask) for c, mask in masks.items()}}, frozenset({image_id}))
    return DataFolder(folder.root, (image_id,), table, folder.class_names, {})


def test_without_a_crop_size_items_are_whole_images_from_the_cache(folder: DataFolder) -> None:
    ignore = np.zeros((64, 128), np.bool_)
    ignore[10:20, 30:50] = True
    data = replace(_labelled(folder, {IGNORE_CLASS_ID: ignore}), root=Path("nowhere"))
    cache = _decoded(folder, data.image_ids)
    item = CropDataset(data, None, build_augment(STILL), 0, cache)[CropKey(0, 0, data.image_ids[0], "defect")]
    np.testing.assert_array_equal(item[1], cache[data.image_ids[0]])
    batch = collate([item])
    np.testing.assert_array_equal(batch.ignore[0].numpy(), ignore)
    assert not batch.masks.any()


def test_classes_are_unknown_where_ignored_pixels_may_hide_them(folder: DataFolder) -> None:
    # A defect with a border of 4 px at columns 10 to 19, something to ignore at 100 to 109, and padding below.
    defect, ignore = np.zeros((2, 64, 128), np.bool_)
    defect[20:30, 10:20] = ignore[16:34, 6:24] = ignore[50:, 100:110] = True
    ignore &= ~defect
    data = _labelled(folder, {2: defect, IGNORE_CLASS_ID: ignore})
    columns = np.broadcast_to(np.arange(128, dtype=np.uint8), (64, 128))
    dataset = CropDataset(data, (96, 48), build_augment(STILL), 0, cache={data.image_ids[0]: columns})
    cases = set()
    for position in range(60):
        batch = collate([dataset[CropKey(0, position, data.image_ids[0])]])
        left = int(batch.images.max()) - 47
        shown, hides = left < 20, left + 47 >= 100
        cases.add((shown, hides, bool(batch.ignore[0, 16:34].any())))
        assert batch.unknown.tolist() == [[hides, hides and not shown, hides, hides]]
    assert len(cases) > 3


def test_crops_are_placed_on_visible_defects(folder: DataFolder) -> None:
    defect, ignore = np.zeros((2, 64, 128), np.bool_)
    defect[:, 5:25] = defect[:, 100:104] = ignore[:, :30] = True
    data = _labelled(folder, {1: defect, IGNORE_CLASS_ID: ignore})
    dataset = CropDataset(data, (64, 20), build_augment(STILL), 0)
    for position in range(20):
        layers = dataset[CropKey(0, position, data.image_ids[0], "defect")][2]
        assert (layers[0] > layers[-1]).any()


def test_an_image_with_a_hidden_defect_is_not_sampled_as_defective(tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    for name in "abcd":
        cv2.imwrite(str(tmp_path / f"train_images/{name}.png"), np.zeros((20, 30), np.uint8))
    rows = ["a.png,1,1 5", "a.png,255,401 200", "b.png,255,1 5", "c.png,1,1 5", "c.png,255,1 600"]
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]))
    data = open_data_folder(tmp_path)
    sampler = CropSampler(data, data.image_ids, DataConfig(crop_hw=None), 0)
    assert (sampler.defective, sampler.by_class) == (["a.png"], {1: ["a.png"]})


def test_a_batch_stacks_images_masks_and_ignored_pixels(folder: DataFolder) -> None:
    dataset = _dataset(folder)
    items = [dataset[CropKey(0, position, folder.image_ids[position])] for position in range(3)]
    batch = collate(items)
    assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (3, 1, 32, 48))
    assert (batch.masks.dtype, batch.masks.shape) == (torch.bool, (3, 4, 32, 48))
    assert (batch.ignore.dtype, batch.ignore.shape) == (torch.bool, (3, 32, 48))
    assert batch.image_ids == folder.image_ids[:3]
    for index, (_, image, layers) in enumerate(items):
        np.testing.assert_array_equal(batch.images[index, 0].numpy(), image)
        np.testing.assert_array_equal(batch.masks[index].numpy(), layers[:4].astype(bool))


def test_a_batch_moves_with_all_its_tensors() -> None:
    zero = torch.zeros(1)
    batch = send_to_device(Batch(zero, zero, zero, zero, ("a",)), torch.device("meta"))
    assert isinstance(batch, Batch)
    assert {tensor.device.type for tensor in batch[:4]} == {"meta"}
    assert batch.image_ids == ("a",)


def test_black_crops_are_drawn_again(folder: DataFolder) -> None:
    pixels = np.full((40, 400), 120, np.uint8)
    pixels[:, 200:] = 7
    image_id = folder.image_ids[0]
    unlabelled = _labelled(folder, {})

    def most(black_limit: float) -> float:
        dataset = CropDataset(unlabelled, (40, 80), build_augment(STILL), 0, {image_id: pixels}, black_limit)
        return max(float((dataset[CropKey(0, position, image_id)][1] == 7).mean()) for position in range(60))

    assert most(0.3) <= 0.3
    assert most(1.0) == 1.0


@pytest.mark.parametrize("crop_hw", [(32, 48), None])
def test_cached_images_give_the_same_batches(folder: DataFolder, crop_hw: tuple[int, int] | None) -> None:
    augment = build_augment(LIVELY)
    cache = _decoded(folder, folder.image_ids)
    read, kept = (CropDataset(folder, crop_hw, augment, 3, images, 0.7) for images in ({}, cache))
    keys = _epoch(CropSampler(folder, folder.image_ids, DataConfig(samples_per_epoch=24), 0))
    for _ in range(2):  # a second time: the first must not have changed what is kept
        ours, theirs = (collate([dataset[key] for key in keys]) for dataset in (read, kept))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.masks, theirs.masks)
        assert torch.equal(ours.ignore, theirs.ignore)
        assert ours.image_ids == theirs.image_ids
