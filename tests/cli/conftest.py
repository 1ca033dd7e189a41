"""The command line, called in this process: quick, since torch is imported once for all tests."""

import io
import logging
import shutil
import signal
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from defectseg import errors
from defectseg.cli.main import main


class Ended(NamedTuple):
    """Exit code, stdout and stderr of a command."""

    code: int
    out: str
    err: str


def _call_in(folder: Path, *arguments: object, stdin: str = "") -> Ended:
    """Call `defectseg` in a folder, and put back what it sets for the whole process."""
    logger = logging.getLogger("defectseg")
    before = logger.handlers, logger.level, logger.propagate
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    out, err = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.chdir(folder)
        patch.setenv("GOMP_SPINCOUNT", "1")
        patch.setenv("COLUMNS", "200")
        patch.setattr(errors, "spelling", errors.spelling)
        patch.setattr(sys, "argv", ["defectseg", *map(str, arguments)])
        patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin.encode())))
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            logger.handlers, logger.level, logger.propagate = before
            for number, handler in handlers.items():
                signal.signal(number, handler)
    return Ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())


@pytest.fixture(scope="session")
def call_in() -> Callable[..., Ended]:
    return _call_in


@pytest.fixture
def call(tmp_path: Path) -> Callable[..., Ended]:
    """`defectseg` in the test's own folder."""
    return lambda *arguments, **options: _call_in(tmp_path, *arguments, **options)


@pytest.fixture
def refused(tmp_path: Path) -> Callable[..., None]:
    """Calls `defectseg` and wants an exit code, nothing on stdout, and one line on stderr that holds all of `told`."""

    def check(*arguments: object, code: int, told: str | list[str]) -> None:
        ended = _call_in(tmp_path, *arguments)
        assert (ended.code, ended.out) == (code, ""), ended.err
        (line,) = ended.err.splitlines()
        assert line.startswith("error: ")
        for words in [told] if isinstance(told, str) else told:
            assert words in line

    return check


@pytest.fixture(scope="session")
def run_folder(trained_run: Path, data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run folder whose model reports the most suspect twentieth of the pixels: defects of each class, everywhere."""
    from defectseg.image.read import decode
    from defectseg.model.info import Thresholds, read_model_info, write_model_info
    from defectseg.runtime.torch import load_torch_runtime

    folder = tmp_path_factory.mktemp("run") / "run"
    shutil.copytree(trained_run, folder)
    model = folder / "model.safetensors"
    images = [decode(path).pixels for path in sorted((data_folder / "train_images").iterdir())]
    answer = load_torch_runtime(model, "cpu")(np.stack(images)[:, None])
    pixel = np.quantile(answer.probabilities, 0.95, axis=(0, 2, 3)).clip(0, 1)
    thresholds = Thresholds(gate=(0.0,) * 4, pixel=tuple(map(float, pixel)), min_area_px=(3,) * 4)
    write_model_info(model, read_model_info(model).model_copy(update={"thresholds": thresholds}))
    return folder
