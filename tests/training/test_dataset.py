"""Which crops an epoch has, where they lie, and that only (seed, epoch, position) decides it."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from defectseg.config import AugmentConfig, DataConfig
from defectseg.data import rle
from defectseg.data.images import decode
from defectseg.data.labels import IGNORE_CLASS_ID, DataFolder, LabelTable, open_data_folder
from defectseg.training.augment import build_augment
from defectseg.training.dataset import Batch, CropDataset, CropKey, CropSampler, collate, cut, place_crop

STILL = AugmentConfig(horizontal_flip=0, vertical_flip=0, brightness_contrast=0)
LIVELY = AugmentConfig(brightness_contrast=1, noise=1)


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


def _epoch(sampler: CropSampler, epoch: int = 0) -> list[CropKey]:
    sampler.set_epoch(epoch)
    return list(sampler)


# The sampler


def test_an_epoch_has_one_crop_for_each_image_unless_told_otherwise() -> None:
    assert len(CropSampler(TEN, TEN.image_ids, DataConfig(), 0)) == 10
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=7), 0)
    assert len(sampler) == len(_epoch(sampler)) == 7


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0), (0.25, 10), (0.5, 20), (1.0, 40)])
def test_the_share_of_defect_crops_is_exact(share: float, expected: int) -> None:
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(defect_crops=share, samples_per_epoch=40), 0)
    keys = _epoch(sampler)
    assert sum(key.on_defect for key in keys) == expected
    assert all(TEN.classes_of(key.image_id) for key in keys if key.on_defect)


def test_no_image_comes_again_before_all_others_of_its_group() -> None:
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(defect_crops=0.5, samples_per_epoch=50), 3)
    keys = _epoch(sampler)
    # 25 defect crops over 4 images: each 6 times, one 7 times. 25 others over 10 images: 2 or 3 times.
    assert sorted(Counter(key.image_id for key in keys if key.on_defect).values()) == [6, 6, 6, 7]
    assert sorted(Counter(key.image_id for key in keys if not key.on_defect).values()) == [2] * 5 + [3] * 5


def test_balanced_crops_go_to_the_classes_in_equal_parts() -> None:
    config = DataConfig(defect_crops=0.5, class_balance=1.0, samples_per_epoch=80)
    keys = _epoch(CropSampler(TEN, TEN.image_ids, config, 0))
    assert Counter(key.class_id for key in keys) == {1: 20, 2: 20, None: 40}
    assert all(key.class_id in TEN.classes_of(key.image_id) for key in keys if key.class_id is not None)


def test_without_any_defect_all_crops_are_random() -> None:
    clean = _labels({"a.jpg": (), "b.jpg": (IGNORE_CLASS_ID,)})
    keys = _epoch(CropSampler(clean, clean.image_ids, DataConfig(defect_crops=1.0, class_balance=1.0), 0))
    assert [key.on_defect for key in keys] == [False, False]


def test_only_the_images_given_are_chosen() -> None:
    sampler = CropSampler(TEN, ["1.jpg", "9.jpg"], DataConfig(samples_per_epoch=20), 0)
    assert {key.image_id for key in _epoch(sampler)} == {"1.jpg", "9.jpg"}


def test_epochs_and_seeds_differ_and_repeat() -> None:
    config = DataConfig(samples_per_epoch=30)
    one, again, other = (CropSampler(TEN, TEN.image_ids, config, seed) for seed in (1, 1, 2))
    assert _epoch(one, 0) == _epoch(again, 0)
    assert _epoch(one, 5) == _epoch(again, 5)
    assert [key.image_id for key in _epoch(one, 0)] != [key.image_id for key in _epoch(one, 1)]
    assert [key.image_id for key in _epoch(one, 0)] != [key.image_id for key in _epoch(other, 0)]


def test_positions_count_up_and_the_epoch_is_named() -> None:
    keys = _epoch(CropSampler(TEN, TEN.image_ids, DataConfig(), 0), 4)
    assert [(key.epoch, key.position) for key in keys] == [(4, position) for position in range(10)]


def test_defect_crops_and_others_are_mixed() -> None:
    keys = _epoch(CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=64), 0))
    assert 8 < sum(key.on_defect for key in keys[:32]) < 24


class _Keys(torch.utils.data.Dataset[CropKey]):
    def __getitem__(self, key: CropKey) -> CropKey:
        return key


def test_processes_share_an_epoch_between_them() -> None:
    def shard(index: int, epoch: int) -> list[CropKey]:
        sampler = CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=24), 0)
        loader = DataLoader(_Keys(), batch_size=4, sampler=sampler, collate_fn=list, drop_last=True)
        prepared = prepare_data_loader(loader, num_processes=2, process_index=index, put_on_device=False)
        prepared.set_epoch(epoch)
        return [key for batch in prepared for key in batch]

    for epoch in (0, 3):
        parts = [shard(index, epoch) for index in range(2)]
        whole = _epoch(CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=24), 0), epoch)
        assert [len(part) for part in parts] == [12, 12]
        assert sorted(parts[0] + parts[1], key=lambda key: key.position) == whole


# Crops


def _item(dataset: CropDataset, key: CropKey) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    return dataset[key][1:]


def _dataset(folder: DataFolder, seed: int = 0, crop_hw: tuple[int, int] | None = (32, 48)) -> CropDataset:
    return CropDataset(folder, crop_hw, build_augment(LIVELY), seed)


def test_a_crop_depends_on_seed_epoch_and_position_alone(folder: DataFolder) -> None:
    keys = [CropKey(2, position, image_id, False) for position, image_id in enumerate(folder.image_ids[:6])]
    first, second = _dataset(folder), _dataset(folder)
    expected = {key.position: _item(first, key) for key in keys}
    np.random.seed(9)
    torch.manual_seed(9)
    for key in reversed(keys):
        for ours, theirs in zip(_item(second, key), expected[key.position], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_another_seed_epoch_or_position_makes_another_crop(folder: DataFolder) -> None:
    image_id = folder.image_ids[0]
    crops = [
        _item(_dataset(folder, seed), CropKey(epoch, position, image_id, False))[0].tobytes()
        for seed, epoch, position in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(crops)) == 4


def test_a_crop_shows_its_image_and_the_masks_there(folder: DataFolder) -> None:
    image_id = next(image_id for image_id in folder.image_ids if folder.classes_of(image_id))
    pixels = decode(folder.image_path(image_id)).pixels
    masks, _ = folder.masks_of(image_id, (64, 128))
    key, image, layers = CropDataset(folder, (32, 48), build_augment(STILL), 0)[CropKey(0, 0, image_id, True)]
    assert key.image_id == image_id
    assert (image.shape, layers.shape) == ((32, 48), (32, 48, 5))
    places = [
        (top, left)
        for top in range(64 - 32 + 1)
        for left in range(128 - 48 + 1)
        if np.array_equal(pixels[top : top + 32, left : left + 48], image)
    ]
    assert len(places) == 1
    (top, left) = places[0]
    np.testing.assert_array_equal(layers[..., :4].transpose(2, 0, 1), masks[:, top : top + 32, left : left + 48])
    assert not layers[..., 4].any()
    assert layers[..., :4].any()


def test_without_a_crop_size_the_whole_image_comes(folder: DataFolder) -> None:
    image_id = folder.image_ids[0]
    dataset = CropDataset(folder, None, build_augment(STILL), 0)
    image, _ = _item(dataset, CropKey(0, 0, image_id, True))
    np.testing.assert_array_equal(image, decode(folder.image_path(image_id)).pixels)


def test_pixels_labelled_255_are_ignored(folder: DataFolder) -> None:
    image_id = folder.image_ids[0]
    ignore = np.zeros((64, 128), np.bool_)
    ignore[10:20, 30:50] = True
    table = LabelTable({image_id: {IGNORE_CLASS_ID: rle.encode(ignore)}}, frozenset({image_id}))
    labelled = DataFolder(folder.root, folder.image_ids, table, folder.class_names, {})
    item = CropDataset(labelled, None, build_augment(STILL), 0)[CropKey(0, 0, image_id, False)]
    batch = collate([item])
    np.testing.assert_array_equal(batch.ignore[0].numpy(), ignore)
    assert not batch.masks.any()


def test_a_batch_stacks_images_masks_and_what_to_ignore(folder: DataFolder) -> None:
    dataset = _dataset(folder)
    items = [dataset[CropKey(0, position, folder.image_ids[position], False)] for position in range(3)]
    batch = collate(items)
    assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (3, 1, 32, 48))
    assert (batch.masks.dtype, batch.masks.shape) == (torch.bool, (3, 4, 32, 48))
    assert (batch.ignore.dtype, batch.ignore.shape) == (torch.bool, (3, 32, 48))
    assert batch.image_ids == folder.image_ids[:3]
    for index, (_, image, layers) in enumerate(items):
        np.testing.assert_array_equal(batch.images[index, 0].numpy(), image)
        np.testing.assert_array_equal(batch.masks[index].numpy(), layers[..., :4].transpose(2, 0, 1).astype(bool))


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = Batch(torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 2, 2), torch.zeros(1, 2, 2), ("a",)).to(
        torch.device("meta")
    )
    assert {batch.images.device.type, batch.masks.device.type, batch.ignore.device.type} == {"meta"}
    assert batch.image_ids == ("a",)


# Where a crop lies

sizes = st.integers(1, 40)


@settings(max_examples=200, deadline=None)
@given(data=st.data(), height=sizes, width=sizes, crop_h=sizes, crop_w=sizes, seed=st.integers(0, 2**32))
def test_a_crop_on_a_defect_holds_a_pixel_of_it(
    data: st.DataObject, height: int, width: int, crop_h: int, crop_w: int, seed: int
) -> None:
    masks = np.zeros((3, height, width), np.bool_)
    class_id = data.draw(st.sampled_from([None, 1, 3]))
    for index in data.draw(st.sets(st.sampled_from([0, 1, 2]), min_size=1)) | ({class_id - 1} if class_id else set()):
        masks[index, data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))] = True
    rng = np.random.default_rng(seed)
    top, left = place_crop(masks, (crop_h, crop_w), on_defect=True, rng=rng, class_id=class_id)
    _, layers = cut(
        np.zeros((height, width), np.uint8),
        np.concatenate([masks, np.zeros((1, height, width), np.bool_)]).astype(np.uint8),
        (top, left),
        (crop_h, crop_w),
    )
    wanted = layers[:3] if class_id is None else layers[class_id - 1]
    assert wanted.any()
    _check_place(top, height, crop_h)
    _check_place(left, width, crop_w)


def _check_place(start: int, length: int, crop: int) -> None:
    """A crop lies inside its image, or the image inside its crop."""
    if crop <= length:
        assert 0 <= start <= length - crop
    else:
        assert length - crop <= start <= 0


@settings(max_examples=100, deadline=None)
@given(height=sizes, width=sizes, crop_h=sizes, crop_w=sizes, seed=st.integers(0, 2**32))
def test_a_random_crop_lies_as_far_inside_as_it_can(
    height: int, width: int, crop_h: int, crop_w: int, seed: int
) -> None:
    masks = np.ones((1, height, width), np.bool_)
    rng = np.random.default_rng(seed)
    top, left = place_crop(masks, (crop_h, crop_w), on_defect=False, rng=rng)
    _check_place(top, height, crop_h)
    _check_place(left, width, crop_w)


def test_random_crops_reach_every_place() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((1, 6, 5), np.bool_)
    places = {place_crop(masks, (4, 4), on_defect=True, rng=rng) for _ in range(300)}
    assert places == {(top, left) for top in range(3) for left in range(2)}


def test_a_class_is_drawn_before_its_pixels_so_that_small_defects_count_too() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((2, 100, 100), np.bool_)
    masks[0, :50] = True
    masks[1, 99, 99] = True
    corners = [place_crop(masks, (1, 1), on_defect=True, rng=rng) for _ in range(400)]
    assert 150 < corners.count((99, 99)) < 250


def test_the_defect_lies_anywhere_in_its_crop() -> None:
    rng = np.random.default_rng(0)
    masks = np.zeros((1, 20, 20), np.bool_)
    masks[0, 10, 10] = True
    corners = {place_crop(masks, (3, 2), on_defect=True, rng=rng) for _ in range(200)}
    assert corners == {(top, left) for top in (8, 9, 10) for left in (9, 10)}


# Cutting


def test_a_cut_inside_the_image_copies_it() -> None:
    pixels = np.arange(20, dtype=np.uint8).reshape(4, 5)
    layers = np.stack([pixels % 2, np.zeros_like(pixels)])
    image, cut_layers = cut(pixels, layers, (1, 2), (2, 3))
    assert image.tolist() == [[7, 8, 9], [12, 13, 14]]
    assert cut_layers.tolist() == [[[1, 0, 1], [0, 1, 0]], [[0, 0, 0], [0, 0, 0]]]


def test_a_cut_beyond_the_image_is_black_and_ignored_there() -> None:
    pixels = np.array([[1, 2], [3, 4]], np.uint8)
    layers = np.array([[[1, 1], [1, 1]], [[0, 0], [0, 1]]], np.uint8)
    image, cut_layers = cut(pixels, layers, (-1, -2), (4, 5))
    assert image.tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 2, 0], [0, 0, 3, 4, 0], [0, 0, 0, 0, 0]]
    assert cut_layers[0].tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert cut_layers[1].tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 1], [1, 1, 0, 1, 1], [1, 1, 1, 1, 1]]


def test_a_cut_of_an_image_that_is_too_short_in_one_direction() -> None:
    pixels = np.arange(1, 7, dtype=np.uint8).reshape(1, 6)
    image, layers = cut(pixels, np.zeros((1, 1, 6), np.uint8), (0, 2), (2, 3))
    assert image.tolist() == [[3, 4, 5], [0, 0, 0]]
    assert layers[0].tolist() == [[0, 0, 0], [1, 1, 1]]
