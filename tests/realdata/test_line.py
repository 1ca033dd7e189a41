"""Shipped recipes on real images: that the line holds together, not how good it gets in seconds."""

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.config import load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.evaluate.evaluate import evaluate, evaluate_predictions
from defectseg.image import rle
from defectseg.image.overlay import encode_jpeg, paint_prediction
from defectseg.train.train import train

SHORT = ["training.epochs=1", "data.samples_per_epoch=8", "data.fold=0", "training.trackers=[]", "inference.tta=none"]
SHORT_OF = {
    "neu": [*SHORT, "data.folds=3"],
    "severstal": [*SHORT, "training.second_stage.samples_per_epoch=2", "training.second_stage.epochs=1"],
}


@pytest.mark.parametrize(("name", "recipe"), [("neu", "neu900"), ("severstal", "severstal-small")])
def test_shipped_recipes_train_from_pretrained_weights_and_score_what_they_held_out(
    realdata: Path, few: dict[str, Path], tmp_path: Path, name: str, recipe: str
) -> None:
    weights = realdata.parent / "weights" / "tf_efficientnet_lite0.safetensors"
    if not weights.is_file():
        pytest.skip(f"{weights} is not there")
    short = load_recipe(recipe, [f"model.encoder_weights={weights}", *SHORT_OF[name]])
    result = train(few[name], tmp_path / "run", recipe=short, device="cpu")
    assert result.metrics is not None
    assert result.metrics.images in (2, 3, 4, 5)
    out = tmp_path / "evaluation"
    evaluation = evaluate(result.model, few[name], out, subset="val", device="cpu", runtime="torch")
    assert evaluation.metrics == result.metrics


def kaggle_dice(predictions: Path, truth: Path, image_ids: list[str]) -> float:
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
            a, b = pixels(predicted[image_id, class_id]), pixels(labelled.get((image_id, class_id), ""))
            scores.append(2 * (a & b).sum() / (a.sum() + b.sum()) if a.any() or b.any() else 1.0)
    return float(np.mean(scores))


def test_an_independent_scorer_agrees_on_severstal(realdata: Path, tmp_path: Path) -> None:
    """The predictions are the labels moved by some pixels; of every fifth image, those of the image before."""
    folder = open_data_folder(realdata / "severstal")
    rows = [("ImageId", "ClassId", "EncodedPixels")]
    for index, image_id in enumerate(folder.image_ids):
        masks, _ = folder.masks_of(folder.image_ids[index - (index % 5 == 0)], (256, 1600))
        moved = np.roll(masks, (index % 7, -2 * index), axis=(1, 2))
        rows += [(image_id, str(number), rle.encode(mask)) for number, mask in enumerate(moved, start=1)]
    with (tmp_path / "predictions.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(rows)
    scored = evaluate_predictions(tmp_path / "predictions.csv", folder.root, None).metrics
    independent = kaggle_dice(tmp_path / "predictions.csv", folder.root / "train.csv", list(folder.image_ids))
    assert scored.images == 87
    assert 0.7 < independent < 0.95
    assert scored.kaggle_dice == pytest.approx(independent, abs=1e-6)


def test_overlays_of_real_steel_are_red_where_the_mask_says_so(few: dict[str, Path]) -> None:
    folder = open_data_folder(few["severstal"])
    wrong = total = 0
    for image_id in folder.image_ids:
        pixels = folder.decode(image_id).pixels
        masks, _ = folder.masks_of(image_id, pixels.shape)
        content = np.frombuffer(encode_jpeg(paint_prediction(pixels, masks, folder.class_names)), np.uint8)
        shown = np.asarray(cv2.imdecode(content, cv2.IMREAD_COLOR))[:256].astype(int)
        red = shown[..., 2] - shown[..., :2].max(axis=-1) > 50
        wrong += int(np.count_nonzero(red != masks.any(axis=0)))
        total += red.size
    assert wrong <= 1e-4 * total
