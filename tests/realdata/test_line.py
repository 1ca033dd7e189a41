"""Shipped recipes on real images: that the line holds together, not how good it gets in seconds."""

from pathlib import Path

import pytest

from defectseg.config import load_recipe
from defectseg.evaluate.evaluate import evaluate
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
