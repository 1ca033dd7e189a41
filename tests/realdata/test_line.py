"""Train, evaluate and predict on real images: that the line holds together, not how good it gets in seconds."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.config import Recipe, load_recipe
from defectseg.evaluate.evaluate import evaluate, evaluate_predictions
from defectseg.formats.masks import import_masks
from defectseg.image.find import find_images
from defectseg.predict.predict import predict
from defectseg.train.train import train

LITE0 = "tf_efficientnet_lite0.safetensors"


@pytest.fixture(scope="module")
def weights(realdata: Path) -> Path:
    path = realdata.parent / "weights" / LITE0
    if not path.is_file():
        pytest.skip(f"{path} is not there")
    return path


@pytest.fixture(scope="module")
def severstal_run(realdata: Path, weights: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("severstal") / "run"
    train(realdata / "severstal", out, recipe=_short("severstal-small", weights, 24), device="cpu")
    return out


@pytest.fixture(scope="module")
def severstal_results(severstal_run: Path, realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `predict` writes for the images of the data folder."""
    out = tmp_path_factory.mktemp("severstal") / "results"
    images = find_images([realdata / "severstal" / "train_images"])
    predict(severstal_run / "model.safetensors", images, out, device="cpu")
    return out


def _short(name: str, weights: Path, samples: int) -> Recipe:
    """A shipped recipe with its pretrained encoder, cut down to a handful of steps."""
    overrides = (
        "training.epochs=1",
        f"data.samples_per_epoch={samples}",
        "training.second_stage.samples_per_epoch=4",
        "training.trackers=[]",
        "data.fold=0",
    )
    return load_recipe(name, (f"model.encoder_weights={weights}", *overrides))


def _kaggle_dice(predictions: Path, truth: Path, image_ids: list[str]) -> float:
    """The metric by the letter of its definition, with a decoder of its own, sharing no line with the package."""

    def pixels(text: str) -> NDArray[np.bool_]:
        flat = np.zeros(256 * 1600, np.bool_)
        numbers = [int(word) for word in text.split()]
        for start, length in zip(numbers[::2], numbers[1::2], strict=True):
            flat[start - 1 : start - 1 + length] = True
        return flat

    def table(path: Path) -> dict[tuple[str, int], str]:
        with path.open(encoding="utf-8", newline="") as handle:
            return {(row["ImageId"], int(row["ClassId"])): row["EncodedPixels"] for row in csv.DictReader(handle)}

    predicted, labelled = table(predictions), table(truth)
    scores = []
    for image_id in image_ids:
        for class_id in range(1, 5):
            a = pixels(predicted[image_id, class_id])
            b = pixels(labelled.get((image_id, class_id), ""))
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0)
    return float(np.mean(scores))


def test_evaluate_and_an_independent_scorer_of_the_predictions_agree_on_severstal(
    severstal_run: Path, severstal_results: Path, realdata: Path, tmp_path: Path
) -> None:
    folder, table = realdata / "severstal", severstal_results / "predictions.csv"
    scored = evaluate(severstal_run / "model.safetensors", folder, tmp_path / "evaluation", device="cpu").metrics
    image_ids = sorted(path.name for path in (folder / "train_images").iterdir())
    independent = _kaggle_dice(table, folder / "train.csv", image_ids)
    assert len(image_ids) == scored.images == 87
    assert scored.kaggle_dice == pytest.approx(independent, abs=1e-6)
    assert evaluate_predictions(table, folder, None).metrics.kaggle_dice == pytest.approx(independent, abs=1e-6)


def test_real_overlays_are_red_where_the_mask_says_so(severstal_results: Path) -> None:
    masks = sorted((severstal_results / "masks").iterdir())
    assert len(masks) == 87
    wrong = total = 0
    for path in masks:
        class_map = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        overlay = cv2.imread(str(severstal_results / "overlays" / f"{path.stem}.jpg"), cv2.IMREAD_COLOR)
        assert class_map is not None
        assert overlay is not None
        wrong += int(np.count_nonzero(_is_red(np.asarray(overlay, np.uint8)[: len(class_map)]) != (class_map > 0)))
        total += class_map.size
    assert wrong <= 1e-4 * total


def _is_red(bgr: NDArray[np.uint8]) -> NDArray[np.bool_]:
    channels = bgr.astype(int)
    return np.asarray(channels[..., 2] - channels[..., :2].max(axis=-1) > 50)


def test_neu_is_imported_trained_on_and_evaluated(realdata: Path, weights: Path, tmp_path: Path) -> None:
    report = import_masks(
        realdata / "neu900", tmp_path / "neu", classes=("inclusion", "patches", "scratches"), link=True
    )
    assert (report.images, report.masks_per_class) == (600, (200, 200, 200))
    (result,) = train(tmp_path / "neu", tmp_path / "run", recipe=_short("neu900", weights, 64), device="cpu")
    assert result.metrics is not None
    assert result.metrics.images == 120
    out = tmp_path / "evaluation"
    evaluation = evaluate(result.model, tmp_path / "neu", out, subset="val", device="cpu", runtime="torch")
    assert evaluation.metrics == result.metrics
