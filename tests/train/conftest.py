"""Fixtures of the training tests: tiny trainings, interrupted and resumed, and a run that has ended."""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState

from defectseg.config import load_recipe
from defectseg.train.train import TrainResult, train


@pytest.fixture(autouse=True)
def no_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves take longer to draw than a tiny training lasts; `finished` alone has real ones."""
    monkeypatch.setattr("defectseg.train.run.draw_curves", lambda path, history: path.touch())


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """The run folder of `asked`, which is not there yet."""
    return tmp_path / "run"


@pytest.fixture
def data(data_folder: Path, tmp_path: Path) -> Path:
    """A copy of the shared data folder that a test may change."""
    return Path(shutil.copytree(data_folder, tmp_path / "data"))


@pytest.fixture
def asked(tiny_recipe: Path, data_folder: Path, out: Path) -> Callable[..., dict[str, Any]]:
    """Makes the arguments of `train`: two epochs on the shared data, with changes of the recipe and of arguments."""

    def make(*overrides: str, **changes: Any) -> dict[str, Any]:
        recipe = load_recipe(str(tiny_recipe), overrides)
        return {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu", **changes}

    return make


@pytest.fixture
def start(asked: Callable[..., dict[str, Any]]) -> Callable[..., TrainResult]:
    """Trains what `asked` makes of its arguments, in a single run."""

    def run(*overrides: str, **changes: Any) -> TrainResult:
        (result,) = train(**asked(*overrides, **changes))
        return result

    return run


@pytest.fixture
def interrupt(asked: Callable[..., dict[str, Any]]) -> Callable[..., None]:
    """Trains what `asked` makes of its arguments until a step of the n-th run, and is then stopped at once."""

    def run(step: int, *overrides: str, in_run: int = 1, **changes: Any) -> None:
        runs = 0

        def progress(done: int, total: int, text: str = "") -> None:
            nonlocal runs
            runs += done == 1
            if (runs, done) == (in_run, step):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(**{**asked(*overrides, **changes), "progress": progress})

    return run


@pytest.fixture
def go_on(out: Path) -> Callable[..., list[TrainResult]]:
    """Resumes the training of `asked`."""
    return lambda **changes: train(**{"data": None, "out": out, "device": "cpu", "resume": True, **changes})


@pytest.fixture(scope="session")
def finished(
    tiny_recipe: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[dict[str, Any], TrainResult]:
    """The arguments and the result of a run of three epochs in the precision of this machine. Not to be written to."""
    recipe = load_recipe(str(tiny_recipe), ["training.epochs=3", "training.precision=auto"])
    out = tmp_path_factory.mktemp("finished") / "run"
    arguments: dict[str, Any] = {"data": data_folder, "out": out, "recipe": recipe, "device": "cpu"}
    return arguments, train(**arguments)[0]


@pytest.fixture
def accelerator() -> Iterator[Accelerator]:
    """A real one, on the CPU."""
    yield Accelerator(cpu=True)
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
