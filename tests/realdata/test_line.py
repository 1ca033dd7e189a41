"""Shipped recipes on real images: that the line holds together, not how good it gets in seconds."""

from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg.config import load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.evaluate.evaluate import evaluate
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
    (result,) = train(few[name], tmp_path / "run", recipe=short, device="cpu")
    assert result.metrics is not None
    assert result.metrics.images in (2, 3, 4, 5)
    out = tmp_path / "evaluation"
    evaluation = evaluate(result.model, few[name], out, subset="val", device="cpu", runtime="torch")
    assert evaluation.metrics == result.metrics


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
