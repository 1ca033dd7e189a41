"""What a run folder holds: `request.json`, which says what was asked for, and what a run leaves beside it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from defectseg.config import Frozen, Recipe, dump_recipe
from defectseg.data.split import SPLIT_NAME, write_split
from defectseg.errors import DefectsegError, OutputExistsError, UsageError
from defectseg.files import atomic_csv, folder_lock, is_empty_folder, remove_stale_temporaries, write_text
from defectseg.machine import is_main_process
from defectseg.model.info import Thresholds
from defectseg.model.locate import CHECKPOINT_NAME, FOLD_PREFIX, MODEL_NAME
from defectseg.train.images import Images
from defectseg.train.processes import TENSORBOARD_NAME

REQUEST_NAME = "request.json"
METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.yaml"
ERRORS_NAME = "errors.csv"
CURVES_NAME = "curves.png"
FOLDS_NAME = "folds"


class Request(Frozen):
    """What a training was asked for: all that resuming it needs besides its checkpoints.

    Attributes:
        recipe: as resolved from the recipe and its changes, before it is fitted to the memory.
        data: data folder.
        init: a bundle to start from, or None.
        thresholds: of the model to be; None to choose them.
        every_fold: a run for each fold instead of a single one.
    """

    recipe: Recipe
    data: Path
    init: Path | None = None
    thresholds: Thresholds | None = None
    every_fold: bool = False

    @property
    def threshold_folds(self) -> int:
        """How many runs on folds come first, to choose the thresholds of a model of everything on."""
        chooses = self.recipe.data.fold is None and self.thresholds is None and not self.every_fold
        return self.recipe.training.threshold_folds if chooses else 0


def read_request(out: Path) -> Request:
    """What the training in a run folder was asked for. Raises UsageError where there is none, or it cannot be read."""
    path = out / REQUEST_NAME
    if not path.is_file():
        whole = out.parent if (out.parent / REQUEST_NAME).is_file() else out.parent.parent
        hint = f" It is a part of {whole}: resume that." if (whole / REQUEST_NAME).is_file() else ""
        raise UsageError(f"{out}: no {REQUEST_NAME}, so there is no training to resume.{hint}", argument="resume")
    try:
        return Request.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UsageError(f"{path}: cannot be read ({reason}). Start again in a new folder.") from error


@contextmanager
def run_folder(out: Path, request: Request, *, resume: bool) -> Iterator[None]:
    """Hold a run folder for the block and keep the request in it. A training that fails before its first checkpoint
    leaves nothing, so that it can be started again with other settings.

    Raises:
        OutputExistsError: the folder holds something, and the training is not to be resumed.
        UsageError: there is nothing to resume.
        ResourceError: another process holds it, or it cannot be written.
    """
    if not is_main_process():
        yield
        return
    if not resume and not is_empty_folder(out):
        raise OutputExistsError(f"{out}: not empty. Choose another run folder.", go_on={"resume": True})
    if resume and (out / MODEL_NAME).exists():
        raise UsageError(f"{out}: this run has ended; its model is {MODEL_NAME}. There is nothing to resume.")
    with folder_lock(out):
        remove_stale_temporaries(out)
        if not resume:
            init = None if request.init is None else request.init.resolve()
            whole = request.model_copy(update={"data": request.data.resolve(), "init": init})
            write_text(out / REQUEST_NAME, whole.model_dump_json(indent=2) + "\n")
        try:
            yield
        except DefectsegError:
            if not resume and not any(out.rglob(CHECKPOINT_NAME)):
                _clear(out)
            raise


def has_begun(folder: Path) -> bool:
    """Whether a run got as far as its first checkpoint. One that was killed before starts from the beginning."""
    return (folder / CHECKPOINT_NAME).is_file()


def write_start(folder: Path, recipe: Recipe, images: Images) -> None:
    """Write what people and other commands want to know of a run: its recipe, its split, the images left out."""
    write_text(folder / CONFIG_NAME, dump_recipe(recipe))
    write_split(folder / SPLIT_NAME, images.folds)
    if images.unreadable:
        with atomic_csv(folder / ERRORS_NAME, ("ImageId", "error")) as write_rows:
            write_rows(images.unreadable)


def _clear(out: Path) -> None:
    """Delete what a training writes before its first checkpoint."""
    for name in (REQUEST_NAME, SPLIT_NAME, CONFIG_NAME, ERRORS_NAME):
        (out / name).unlink(missing_ok=True)
    for folder in (out / TENSORBOARD_NAME, out / FOLDS_NAME, *out.glob(f"{FOLD_PREFIX}*")):
        shutil.rmtree(folder, ignore_errors=True)
