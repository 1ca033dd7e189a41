"""The run folder: its files, its lock, and the request that resuming continues."""

import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pydantic import ValidationError

from defectseg.config import Frozen, Recipe, dump_recipe
from defectseg.data.split import SPLIT_NAME, write_split
from defectseg.errors import DataError, DefectsegError, OutputExistsError, UsageError
from defectseg.files import atomic_csv, folder_lock, is_empty_folder, own_dir, remove_stale_temporaries, write_text
from defectseg.machine import is_main_process
from defectseg.model.info import Thresholds
from defectseg.model.locate import CHECKPOINT_NAME, FOLD_PREFIX, MODEL_NAME
from defectseg.text import read_text
from defectseg.train.images import Images
from defectseg.train.processes import TENSORBOARD_NAME

REQUEST_NAME = "request.json"
METRICS_NAME = "metrics.jsonl"
CONFIG_NAME = "config.yaml"
ERRORS_NAME = "errors.csv"
CURVES_NAME = "curves.png"
FOLDS_NAME = "folds"


class Request(Frozen):
    """The arguments of a training, stored in request.json. Resuming needs these and the checkpoints.

    Attributes:
        recipe: the resolved recipe, before it is fitted into memory.
        why: why the recipe was chosen, in sentences; empty if it was named.
        data: data folder.
        init: a bundle to start from, or None.
        thresholds: thresholds of the bundle; None: choose them.
        every_fold: train one model per fold.
        use_val: train on the images of val as well.
    """

    recipe: Recipe
    why: tuple[str, ...] = ()
    data: Path
    init: Path | None = None
    thresholds: Thresholds | None = None
    every_fold: bool = False
    use_val: bool = False

    @property
    def threshold_folds(self) -> int:
        """Number of fold models to train first, to choose the thresholds of a model trained on all of these images."""
        chooses = self.recipe.data.fold is None and self.thresholds is None and not self.every_fold
        return self.recipe.training.threshold_folds if chooses else 0


def read_request(out: Path) -> Request:
    """Read request.json of a run folder. Raises UsageError if it is missing or damaged."""
    path = out / REQUEST_NAME
    if not path.is_file():
        whole = out.parent if (out.parent / REQUEST_NAME).is_file() else out.parent.parent
        hint = f" It is a part of {whole}: resume that." if (whole / REQUEST_NAME).is_file() else ""
        raise UsageError(f"{out}: no {REQUEST_NAME}, so there is no training to resume.{hint}", argument="resume")
    try:
        return Request.model_validate_json(read_text(path, "expected JSON"))
    except (DataError, ValueError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise UsageError(f"{path}: cannot be read ({reason}). Start again in a new folder.") from error


@contextmanager
def run_folder(out: Path, request: Request, *, resume: bool) -> Iterator[None]:
    """Lock a run folder for the block and store the request in it.

    If training fails before its first checkpoint, the folder is emptied, so that the same command can be given again.

    Raises:
        OutputExistsError: the folder is not empty, and `resume` is False; or a link would lead out of it.
        UsageError: the training has ended; there is nothing to resume.
        ResourceError: another process has the lock, or the folder cannot be written.
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
        for folder in _folders(out):
            own_dir(folder)
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
    """Whether a run has a checkpoint. A run that was killed before its first one starts from the beginning."""
    return (folder / CHECKPOINT_NAME).is_file()


def write_start(folder: Path, recipe: Recipe, why: Sequence[str], images: Images) -> None:
    """Write config.yaml, split.csv and, if images are unreadable, errors.csv."""
    write_text(folder / CONFIG_NAME, dump_recipe(recipe, why))
    write_split(folder / SPLIT_NAME, images.folds, images.data.groups)
    if images.unreadable:
        with atomic_csv(folder / ERRORS_NAME, ("ImageId", "error"), for_people=True) as write_rows:
            write_rows(images.unreadable)


def _clear(out: Path) -> None:
    """Delete everything that a training writes before its first checkpoint."""
    for name in (REQUEST_NAME, SPLIT_NAME, CONFIG_NAME, ERRORS_NAME):
        (out / name).unlink(missing_ok=True)
    for folder in _folders(out):
        shutil.rmtree(folder, ignore_errors=True)


def _folders(out: Path) -> list[Path]:
    """The folders that a training makes, if they are there, or links in their place."""
    found = (out / TENSORBOARD_NAME, out / FOLDS_NAME, *out.glob(f"{FOLD_PREFIX}*"))
    return [folder for folder in found if folder.is_dir() or folder.is_symlink()]
