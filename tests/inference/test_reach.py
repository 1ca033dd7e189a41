"""Thresholds applied by the runtime, where the probabilities lie, against thresholds applied to its whole answer."""

from contextlib import closing
from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from torch import Tensor, nn

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ModelError
from defectseg.inference.segment import segment_image, segment_reached
from defectseg.inference.settings import Settings
from defectseg.inference.stream import GivenImage, stream
from defectseg.inference.tiles import predict_image
from defectseg.inference.views import views_of
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.runtime.torch import CardRuntime, TorchRuntime

INFO = ModelInfo(
    class_names=("pits", "cracks", "scale"),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(3),
    recipe=Recipe(),
)
VALUES = (0.0, 0.3, 0.5, 0.6, 0.8, 1.0)  # the network's probabilities; thresholds are often one of them


class Table(nn.Module):
    """A network that looks the probabilities of each grey level up, and shades them along a row and a column."""

    def __init__(self, seed: int, *, shaded: bool) -> None:
        super().__init__()
        chosen = np.random.default_rng(seed).choice(np.array(VALUES, np.float32), (256, 3))
        self.table = nn.Parameter(torch.from_numpy(chosen))
        self.shaded = shaded

    def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
        probabilities = self.table[grey[:, 0].long()].movedim(-1, 1)
        if self.shaded:
            probabilities = probabilities.clone()
            probabilities[..., 0, :] *= 0.75
            probabilities[..., :, -1] *= 0.5
        return probabilities, probabilities.amax(dim=(2, 3))


three = st.tuples(*[st.sampled_from([*VALUES, 0.97])] * 3)


@example((1, 1), Thresholds.default(3), "turns", None, 0)
@given(
    st.tuples(st.integers(1, 17), st.integers(1, 17)) | st.integers(1, 17).map(lambda side: (side, side)),
    st.builds(Thresholds, gate=three, pixel=three, min_area_px=st.tuples(*[st.integers(0, 9)] * 3)),
    st.sampled_from(["none", "flips", "turns"]),
    st.sampled_from([None, (2,), (1, 3)]),
    st.integers(0, 999),
)
@hypothesis_settings(max_examples=200)
def test_it_makes_no_difference_where_thresholds_are_applied(
    few_levels: Any, size_hw: tuple[int, int], thresholds: Thresholds, tta: str, classes: Any, seed: int
) -> None:
    network: Any = Table(seed, shaded=tta != "none").eval()
    info = INFO.model_copy(update={"thresholds": thresholds})
    settings = Settings.of(info, tta=tta, classes=classes)
    image = few_levels(size_hw, seed)

    found = segment_image(CardRuntime(network, info), image, settings)

    expected = segment_image(TorchRuntime(network, info), image, settings)
    np.testing.assert_array_equal(found.masks, expected.masks)
    np.testing.assert_array_equal(found.class_map, expected.class_map)
    assert found.regions == expected.regions
    assert found.sheet_score == expected.sheet_score


def test_the_largest_probabilities_are_those_of_the_mean_over_the_views(few_levels: Any) -> None:
    network: Any = Table(1, shaded=True).eval()
    thresholds = Thresholds(gate=(1.0,) * 3, pixel=(0.5,) * 3, min_area_px=(0, 7, 500))
    settings = Settings.of(INFO, tta="turns", thresholds=thresholds)
    image = few_levels((9, 9), 1)

    turns = [astuple(view) for view in views_of("turns", image.shape)]
    (found,) = CardRuntime(network, INFO).reach(image[None, None], thresholds, turns)

    planes = np.sort(predict_image(TorchRuntime(network, INFO), image, settings).probabilities.reshape(3, -1))
    assert found.kth_largest.tolist() == [planes[0, -1], planes[1, -7], planes[2, 0]]


def test_a_real_network_finds_the_same_in_both_ways_and_in_company(few_levels: Any) -> None:
    torch.manual_seed(3)
    model = ModelConfig(
        encoder="tu-test_resnet", encoder_weights="none", options={"encoder_depth": 3, "decoder_channels": [8] * 3}
    )
    network = DefectNetwork(model, 3, INFO.normalization).eval()
    images = np.stack([few_levels((45, 83), seed) for seed in range(4)])
    plain, card = TorchRuntime(network, INFO), CardRuntime(network, INFO)
    pixel = np.quantile(plain(images[:, None]).probabilities, 0.9, axis=(0, 2, 3))
    thresholds = Thresholds(gate=(0.3,) * 3, pixel=tuple(pixel.tolist()), min_area_px=(3, 0, 12))
    settings = Settings.of(INFO, tta="flips", thresholds=thresholds)

    expected = [segment_image(plain, image, settings) for image in images]

    turns = [astuple(view) for view in views_of("flips", images.shape[1:])]
    together = card.reach(images[:, None], thresholds, turns)
    assert sum(len(one.regions) for one in expected) > 10
    for image, one, in_company in zip(images, expected, together, strict=True):
        for found in (segment_image(card, image, settings), segment_reached(in_company, image.shape, thresholds)):
            np.testing.assert_array_equal(found.class_map, one.class_map)
            np.testing.assert_array_equal(found.masks, one.masks)
            assert [region.area_px for region in found.regions] == [region.area_px for region in one.regions]
            scores = np.array([[region.score for region in each.regions] for each in (found, one)])
            np.testing.assert_allclose(scores[0], scores[1], atol=1e-3)


@pytest.mark.parametrize("where", ["probabilities", "gate"])
def test_an_answer_that_is_not_a_number_is_refused(where: str) -> None:
    class Broken(Table):
        def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
            probabilities, gate = super().answer(grey)
            (probabilities[0, 2, 1] if where == "probabilities" else gate[0])[1] = torch.nan
            return probabilities, gate

    network: Any = Broken(0, shaded=True).eval()
    thresholds = Thresholds(gate=(1.0,) * 3, pixel=(1.0,) * 3, min_area_px=(9,) * 3)
    with pytest.raises(ModelError, match="not a number"):
        segment_image(CardRuntime(network, INFO), np.zeros((5, 4), np.uint8), Settings.of(INFO, thresholds=thresholds))


def test_a_stream_lets_the_card_apply_thresholds_in_batches_that_shrink_when_memory_runs_out(few_levels: Any) -> None:
    class Small(Table):
        shapes: list[tuple[int, ...]] = []  # noqa: RUF012 - of all calls that it had memory for

        def answer(self, grey: Tensor) -> tuple[Tensor, Tensor]:
            if len(grey) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            self.shapes.append(tuple(grey.shape))
            return super().answer(grey)

    network: Any = Small(5, shaded=True).eval()
    arrays = [few_levels((9, 9) if seed % 9 else (9, 40), seed) for seed in range(60)]  # some are larger than a tile
    images = [GivenImage(str(number), str(number), array=array) for number, array in enumerate(arrays)]
    thresholds = Thresholds(gate=(0.5,) * 3, pixel=(0.3, 0.5, 0.6), min_area_px=(0, 2, 4))
    settings = Settings(thresholds, tile_hw=(9, 12), tile_overlap_px=2, tta="turns")

    def segmentations(kind: type[TorchRuntime], batch_px: int) -> list[Any]:
        runtime = kind(network, INFO, workers=2, batch_px=batch_px)
        with closing(stream(images, runtime, settings, lambda one: one.segmentation)) as results:
            return list(results)

    expected = segmentations(TorchRuntime, 0)
    network.shapes.clear()
    found = segmentations(CardRuntime, 8 * 81)

    assert max(shape[0] for shape in network.shapes) in (2, 3)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.class_map, other.class_map)
        assert one.regions == other.regions


def test_kept_answers_and_images_larger_than_a_tile_take_the_ordinary_path(
    few_levels: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    network: Any = Table(0, shaded=False).eval()
    runtime, image = CardRuntime(network, INFO), few_levels((6, 20), 0)
    settings = Settings(INFO.thresholds, tile_hw=(6, 10), tile_overlap_px=2)
    monkeypatch.setattr(CardRuntime, "reach", None)

    kept = segment_image(runtime, image[:, :10].copy(), settings, keep_answer=True)
    large = segment_image(runtime, image, settings)

    assert kept.answer is not None
    assert kept.regions
    assert large.regions
