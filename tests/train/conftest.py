"""Fixtures of the training tests: a small request, and a run that has ended."""

from pathlib import Path

import pytest

from defectseg.config import load_recipe
from defectseg.train.request import TrainRequest, TrainResult
from defectseg.train.train import train


@pytest.fixture
def request_(tiny_recipe: Path, data_folder: Path, tmp_path: Path) -> TrainRequest:
    """Two epochs on the shared data, into a folder that is not there yet."""
    return TrainRequest(recipe=load_recipe(str(tiny_recipe)), data=data_folder, out=tmp_path / "run", device="cpu")


@pytest.fixture(scope="session")
def finished(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainRequest, TrainResult]:
    """A run of three epochs in the precision of this machine. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["training.epochs=3", "training.precision=auto"])
    request = TrainRequest(
        recipe=recipe, data=data_folder, out=tmp_path_factory.mktemp("finished") / "run", device="cpu"
    )
    return request, train(request)
