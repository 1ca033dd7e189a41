"""`explain` from model and images to a figure each and a page."""

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from defectseg.config import InferenceConfig, ModelConfig, Recipe
from defectseg.errors import ModelError, UsageError
from defectseg.explain.explain import MOST_IMAGES, explain
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.predictor import Predictor
from defectseg.model.bundle import save_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork

pytest.importorskip("captum", reason="captum is not installed; it belongs to the extra train")

HALF = Normalization(mean=0.5, std=0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of random weights, that finds class 2, odd <b>, on about half of the pixels, and class 1 nowhere."""
    torch.manual_seed(4)
    recipe = Recipe(
        model=ModelConfig(encoder="tu-test_resnet"), inference=InferenceConfig(tile_hw=(64, 64), tile_overlap_px=16)
    )
    network = DefectNetwork(recipe.model, 2, HALF)
    limits = Thresholds(gate=(0.0, 0.0), pixel=(1.0, 0.5), min_area_px=(0, 0))
    info = ModelInfo(class_names=("pits", "odd <b>"), normalization=HALF, thresholds=limits, recipe=recipe)
    path = tmp_path_factory.mktemp("explain") / "model.safetensors"
    save_bundle(path, network.state_dict(), info)
    return path


@pytest.fixture
def images(tmp_path: Path) -> list[FoundImage]:
    """A small image, a large one, and one that is broken."""
    noise = np.random.default_rng(3).integers(0, 256, (200, 300)).astype(np.uint8)
    (tmp_path / "in" / "coil 1").mkdir(parents=True)
    cv2.imwrite(str(tmp_path / "in" / "a.png"), noise[:40, :64])
    cv2.imwrite(str(tmp_path / "in" / "coil 1" / "large.png"), noise)
    (tmp_path / "in" / "broken.png").write_bytes(b"?")
    return find_images([tmp_path / "in"])


def test_each_image_gets_a_figure_and_a_bad_one_stops_no_other(
    model: Path, images: list[FoundImage], tmp_path: Path
) -> None:
    result = explain([model], images, tmp_path / "out")
    assert [one["picture"] for one in result["images"]] == ["figures/a.png", "figures/coil 1/large.png"]
    assert list(result["unreadable"]) == ["broken.png"]
    for one in result["images"]:
        figure = cv2.imread(str(tmp_path / "out" / one["picture"]))
        assert figure is not None
        assert figure.shape[1] == 1640
        assert one["found"] == one["explained"] == ["odd <b>"]
    page = (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert page.count("<h3>The image and the answer</h3>") == 2
    assert page.count("Grad-CAM (Encoder, stage 5 of 5)") == 2
    assert "<b>" not in page
    assert "broken.png" in page
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["explain.html", "figures"]
    explain([model], images[:1], tmp_path / "out", overwrite=True)
    assert [path.name for path in (tmp_path / "out" / "figures").iterdir()] == ["a.png"]


def test_of_a_large_image_the_tile_with_the_strongest_answer_is_explained(
    model: Path, images: list[FoundImage], tmp_path: Path
) -> None:
    small, large = explain([model], images, tmp_path / "out")["images"]
    assert (small["rows"], small["columns"]) == ([0, 40], [0, 64])
    probabilities = Predictor.load(model, device="cpu")(images[-1].path).probabilities
    assert probabilities is not None
    row, column = np.unravel_index(probabilities[1].argmax(), (200, 300))
    assert large["size_hw"] == (200, 300)
    assert large["rows"][0] <= row < large["rows"][1]
    assert large["columns"][0] <= column < large["columns"][1]
    for start, stop in (large["rows"], large["columns"]):
        assert 8 <= stop - start <= 64


def test_classes_that_are_asked_for_are_explained_even_where_they_are_not_found(
    model: Path, images: list[FoundImage], tmp_path: Path
) -> None:
    (one,) = explain([model], images[:1], tmp_path / "out", classes=["pits"])["images"]
    assert (one["found"], one["explained"]) == (["odd <b>"], ["pits"])
    page = (tmp_path / "out" / "explain.html").read_text(encoding="utf-8")
    assert "1 pits: peak 0." in page
    assert ", limit 1; gate " in page


def test_what_cannot_be_looked_into_is_refused_before_anything_is_written(
    model: Path, images: list[FoundImage], write_model: Callable[..., Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"m\.xml: .*an export has none. Give the bundle"):
        explain([write_model(tmp_path / "m.xml")], images, tmp_path / "out")
    with pytest.raises(ModelError, match="of one bundle"):
        explain([model, model], images, tmp_path / "out")
    with pytest.raises(UsageError, match=f"up to {MOST_IMAGES}"):
        explain([model], images[:1] * (MOST_IMAGES + 1), tmp_path / "out")
    with pytest.raises(UsageError, match="found rust; the model has 1 "):
        explain([model], images, tmp_path / "out", classes=["rust"])
    assert not (tmp_path / "out").exists()
