"""Fixtures of the training tests: the arguments of a small training, and a run that has ended."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from defectseg.config import load_recipe
from defectseg.train.train import TrainResult, train


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The run folder of `asked`, which is not there yet."""
    return tmp_path / "run"


@pytest.fixture
def asked(tiny_recipe: Path, data_folder: Path, out: Path) -> Callable[..., dict[str, Any]]:
    """Makes the arguments of `train`: two epochs on the shared data, with changes of the recipe and of arguments."""

    def make(*overrides: str, **changes: Any) -> dict[str, Any]:
        recipe = load_recipe(str(tiny_recipe), overrides)
        return {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu", **changes}

    return make


@pytest.fixture
def go_on(out: Path) -> Callable[..., TrainResult]:
    """Resumes the run of `asked`."""
    return lambda **changes: train(**{"data": None, "out": out, "device": "cpu", "resume": True, **changes})


@pytest.fixture
def stop_at() -> Callable[..., Callable[[int, int, str], None]]:
    """Makes a progress that interrupts a training at a step of its n-th run."""

    def make(step: int, *, run: int = 1) -> Callable[[int, int, str], None]:
        runs = 0

        def progress(done: int, total: int, text: str = "") -> None:
            nonlocal runs
            runs += done == 1
            if (runs or 1, done) == (run, step):
                raise KeyboardInterrupt

        return progress

    return make


@pytest.fixture(scope="session")
def finished(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], TrainResult]:
    """The arguments and the result of a run of three epochs in the precision of this machine. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["training.epochs=3", "training.precision=auto"])
    out = tmp_path_factory.mktemp("finished") / "run"
    arguments: dict[str, Any] = {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu"}
    return arguments, train(**arguments)
