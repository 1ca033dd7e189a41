"""Which crops an epoch has, where they lie, and that only (seed, epoch, position) decides it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from defectseg.config import AugmentConfig, DataConfig
from defectseg.data.folder import DataFolder, LabelTable, open_data_folder
from defectseg.data.table import IGNORE_CLASS_ID
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
    assert sum(key.place == "defect" for key in keys) == expected
    assert all(TEN.classes_of(key.image_id) for key in keys if key.place == "defect")


def test_no_image_comes_again_before_all_others_of_its_group() -> None:
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(defect_crops=0.5, samples_per_epoch=50), 3)
    keys = _epoch(sampler)
    # 25 defect crops over 4 images: each 6 times, one 7 times. 25 others over 10 images: 2 or 3 times.
    assert sorted(Counter(key.image_id for key in keys if key.place == "defect").values()) == [6, 6, 6, 7]
    assert sorted(Counter(key.image_id for key in keys if key.place == "anywhere").values()) == [2] * 5 + [3] * 5


def test_balanced_crops_go_to_the_classes_in_equal_parts() -> None:
    config = DataConfig(defect_crops=0.5, class_balance=1.0, samples_per_epoch=80)
    keys = _epoch(CropSampler(TEN, TEN.image_ids, config, 0))
    assert Counter(key.class_id for key in keys) == {1: 20, 2: 20, None: 40}
    assert all(key.class_id in TEN.classes_of(key.image_id) for key in keys if key.class_id is not None)


def _balanced(config: DataConfig, share_done: float) -> dict[int | None, int]:
    sampler = CropSampler(TEN, TEN.image_ids, config, 0)
    sampler.set_share_done(share_done)
    return Counter(key.class_id for key in _epoch(sampler) if key.place == "defect")


@pytest.mark.parametrize(
    ("until", "share_done", "each"),
    [(0.5, 0.0, 20), (0.5, 0.25, 10), (0.5, 0.5, 0), (0.5, 0.9, 0), (1.0, 0.9, 20), (0.0, 0.0, 0)],
)
def test_the_balance_falls_to_natural_frequencies(until: float, share_done: float, each: int) -> None:
    config = DataConfig(defect_crops=0.5, class_balance=1.0, balance_until=until, samples_per_epoch=80)
    expected = {1: each, 2: each, None: 40 - 2 * each}
    assert _balanced(config, share_done) == {class_id: count for class_id, count in expected.items() if count}


def test_equal_progress_gives_equal_crops() -> None:
    config = DataConfig(class_balance=0.8, balance_until=0.7, samples_per_epoch=40)
    one, other = (CropSampler(TEN, TEN.image_ids, config, 0) for _ in range(2))
    for share_done in (0.9, 0.1, 0.3):
        other.set_share_done(share_done)
    one.set_share_done(0.3)
    assert _epoch(one, 2) == _epoch(other, 2)


def test_an_interrupted_epoch_goes_on_with_the_crops_that_it_had_not_given() -> None:
    sampler = CropSampler(TEN, TEN.image_ids, DataConfig(samples_per_epoch=30), 0)
    whole = _epoch(sampler, 1)
    sampler.start_at(12)
    assert _epoch(sampler, 1) == whole[12:]
    assert len(sampler) == 30
    sampler.start_at(0)
    assert _epoch(sampler, 1) == whole


def test_without_any_defect_all_crops_are_random() -> None:
    clean = _labels({"a.jpg": (), "b.jpg": (IGNORE_CLASS_ID,)})
    keys = _epoch(CropSampler(clean, clean.image_ids, DataConfig(defect_crops=1.0, class_balance=1.0), 0))
    assert [key.place for key in keys] == ["anywhere", "anywhere"]


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
    assert 8 < sum(key.place == "defect" for key in keys[:32]) < 24


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
    keys = [CropKey(2, position, image_id) for position, image_id in enumerate(folder.image_ids[:6])]
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
        _item(_dataset(folder, seed), CropKey(epoch, position, image_id))[0].tobytes()
        for seed, epoch, position in ((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1))
    ]
    assert len(set(crops)) == 4


def test_workers_that_outlive_an_epoch_give_the_same_crops(folder: DataFolder) -> None:
    sampler = CropSampler(folder, folder.image_ids, DataConfig(samples_per_epoch=8), 0)
    cache = _decoded(folder, folder.image_ids)
    dataset = CropDataset(folder, (32, 48), build_augment(LIVELY), 0, cache=cache)
    loader = DataLoader(
        dataset, batch_size=4, sampler=sampler, collate_fn=collate, num_workers=1, persistent_workers=True
    )
    for epoch in range(2):
        keys = _epoch(sampler, epoch)
        for batch, own in zip(loader, (keys[:4], keys[4:]), strict=True):
            assert torch.equal(batch.images, collate([dataset[key] for key in own]).images)


def test_a_crop_shows_its_image_and_the_masks_there(folder: DataFolder) -> None:
    image_id = next(image_id for image_id in folder.image_ids if folder.classes_of(image_id))
    pixels = decode(folder.image_path(image_id)).pixels
    masks, _ = folder.masks_of(image_id, (64, 128))
    key, image, layers = CropDataset(folder, (32, 48), build_augment(STILL), 0)[CropKey(0, 0, image_id, "defect")]
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
    image, _ = _item(dataset, CropKey(0, 0, image_id, "defect"))
    np.testing.assert_array_equal(image, decode(folder.image_path(image_id)).pixels)


def _labelled(folder: DataFolder, masks: Mapping[int, NDArray[np.bool_]]) -> DataFolder:
    """The first image of a folder with these masks instead of its own."""
    image_id = folder.image_ids[0]
    table = LabelTable({image_id: {c: rle.encode(mask) for c, mask in masks.items()}}, frozenset({image_id}))
    return DataFolder(folder.root, (image_id,), table, folder.class_names, {})


def test_pixels_labelled_255_are_ignored(folder: DataFolder) -> None:
    ignore = np.zeros((64, 128), np.bool_)
    ignore[10:20, 30:50] = True
    data = _labelled(folder, {IGNORE_CLASS_ID: ignore})
    item = CropDataset(data, None, build_augment(STILL), 0)[CropKey(0, 0, data.image_ids[0])]
    batch = collate([item])
    np.testing.assert_array_equal(batch.ignore[0].numpy(), ignore)
    assert not batch.masks.any()


def test_what_may_hide_a_defect_makes_classes_unknown_that_the_crop_does_not_show(folder: DataFolder) -> None:
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


def test_crops_go_where_a_defect_is_seen(folder: DataFolder) -> None:
    defect, ignore = np.zeros((2, 64, 128), np.bool_)
    defect[:, 5:25] = defect[:, 100:104] = ignore[:, :30] = True
    data = _labelled(folder, {1: defect, IGNORE_CLASS_ID: ignore})
    dataset = CropDataset(data, (64, 20), build_augment(STILL), 0)
    for position in range(20):
        layers = dataset[CropKey(0, position, data.image_ids[0], "defect")][2]
        assert (layers[..., 0] > layers[..., -1]).any()


def test_an_image_whose_defect_is_hidden_is_not_chosen_for_it(tmp_path: Path) -> None:
    (tmp_path / "train_images").mkdir()
    for name in "abcd":
        cv2.imwrite(str(tmp_path / f"train_images/{name}.png"), np.zeros((20, 30), np.uint8))
    rows = ["a.png,1,1 5", "a.png,255,401 200", "b.png,255,1 5", "c.png,1,1 5", "c.png,255,1 600"]
    (tmp_path / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows]))
    data = open_data_folder(tmp_path)
    sampler = CropSampler(data, data.image_ids, DataConfig(crop_hw=None), 0)
    assert (sampler.defective, sampler.by_class) == (["a.png"], {1: ["a.png"]})


def test_a_batch_stacks_images_masks_and_what_to_ignore(folder: DataFolder) -> None:
    dataset = _dataset(folder)
    items = [dataset[CropKey(0, position, folder.image_ids[position])] for position in range(3)]
    batch = collate(items)
    assert (batch.images.dtype, batch.images.shape) == (torch.uint8, (3, 1, 32, 48))
    assert (batch.masks.dtype, batch.masks.shape) == (torch.bool, (3, 4, 32, 48))
    assert (batch.ignore.dtype, batch.ignore.shape) == (torch.bool, (3, 32, 48))
    assert batch.image_ids == folder.image_ids[:3]
    for index, (_, image, layers) in enumerate(items):
        np.testing.assert_array_equal(batch.images[index, 0].numpy(), image)
        np.testing.assert_array_equal(batch.masks[index].numpy(), layers[..., :4].transpose(2, 0, 1).astype(bool))


def test_a_batch_moves_with_all_its_tensors() -> None:
    batch = Batch(torch.zeros(1), torch.zeros(1), torch.zeros(1), torch.zeros(1), ("a",)).to(torch.device("meta"))
    tensors = (batch.images, batch.masks, batch.ignore, batch.unknown)
    assert {tensor.device.type for tensor in tensors} == {"meta"}
    assert batch.image_ids == ("a",)


def test_black_crops_are_drawn_again(folder: DataFolder) -> None:
    pixels = np.full((40, 400), 120, np.uint8)
    pixels[:, 200:] = 7
    image_id = folder.image_ids[0]
    unlabelled = DataFolder(folder.root, folder.image_ids, LabelTable({}, frozenset()), folder.class_names, {})

    def shares(black_limit: float) -> list[float]:
        dataset = CropDataset(
            unlabelled, (40, 80), build_augment(STILL), 0, cache={image_id: pixels}, black_limit=black_limit
        )
        return [float((dataset[CropKey(0, position, image_id)][1] == 7).mean()) for position in range(60)]

    assert max(shares(0.3)) <= 0.3
    assert max(shares(1.0)) == 1.0


# Images in memory


@pytest.mark.parametrize("crop_hw", [(32, 48), None])
def test_cached_images_give_the_same_batches(folder: DataFolder, crop_hw: tuple[int, int] | None) -> None:
    augment = build_augment(LIVELY)
    cache = _decoded(folder, folder.image_ids)
    read, kept = (CropDataset(folder, crop_hw, augment, 3, cache=images, black_limit=0.7) for images in (None, cache))
    sampler = CropSampler(folder, folder.image_ids, DataConfig(samples_per_epoch=24), 0)
    keys = _epoch(sampler)
    for _ in range(2):  # a second time: the first must not have changed what is kept
        ours, theirs = (collate([dataset[key] for key in keys]) for dataset in (read, kept))
        assert torch.equal(ours.images, theirs.images)
        assert torch.equal(ours.masks, theirs.masks)
        assert torch.equal(ours.ignore, theirs.ignore)
        assert ours.image_ids == theirs.image_ids


def test_a_kept_image_is_not_read_again(folder: DataFolder) -> None:
    image_id = folder.image_ids[0]
    cache = _decoded(folder, [image_id])
    gone = DataFolder(Path("nowhere"), folder.image_ids, folder.table, folder.class_names, {})
    image, _ = _item(CropDataset(gone, None, build_augment(STILL), 0, cache=cache), CropKey(0, 0, image_id))
    np.testing.assert_array_equal(image, cache[image_id])


def test_all_of_a_batch_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[int] = []

    def pin(tensor: torch.Tensor) -> torch.Tensor:
        pinned.append(id(tensor))
        return tensor

    monkeypatch.setattr(torch.Tensor, "pin_memory", pin)
    batch = Batch(torch.zeros(1), torch.ones(1), torch.zeros(2), torch.ones(2), ("a",))
    assert batch.pin_memory().image_ids == ("a",)
    assert pinned == [id(batch.images), id(batch.masks), id(batch.ignore), id(batch.unknown)]
