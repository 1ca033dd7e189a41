"""Fetch the Severstal data through Kaggle's own client, and check that they are complete."""

import io
import shutil
import sys
import zipfile
from collections import Counter
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectseg.data.folder import IMAGES_NAME
from defectseg.data.table import IGNORE_CLASS_ID, TABLE_NAMES, read_label_table
from defectseg.errors import CannotContinueError, DataError, LabelError, MissingExtraError
from defectseg.files import check_is_free, folder_lock, resource_errors, unpack_zip
from defectseg.progress import Progress, silent

COMPETITION = "severstal-steel-defect-detection"
RULES_PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TOKEN_PAGE = "https://www.kaggle.com/settings/api"  # noqa: S105 - a page, not a token
TEST_IMAGES_NAME = "test_images"

_TABLE_NAME = TABLE_NAMES[0]
# Moved into the data folder in this order: the label table comes last and makes it complete.
_CONTENT = ("sample_submission.csv", TEST_IMAGES_NAME, IMAGES_NAME, _TABLE_NAME)
_TOKEN_HELP = (
    f"Make a token at {TOKEN_PAGE} (any Kaggle account will do), then set KAGGLE_API_TOKEN to it, or save it as "
    "~/.kaggle/access_token; an older kaggle.json in ~/.kaggle works too."
)
_RULES_HELP = f"Log in with the same account, open {RULES_PAGE}, accept the rules, and run the same command again."
_REFUSALS = {
    401: f"Kaggle does not accept the token (401). {_TOKEN_HELP}",
    403: f"Kaggle refuses the data (403): its rules are not accepted yet. {_RULES_HELP}",
}
_AGAIN = "Delete it and run the same command again."
_NOT_WHOLE = "It is not a whole download of the competition's data; choose another folder."


@dataclass(frozen=True)
class Figures:
    """The size of a data set.

    Attributes:
        images: number of training images.
        defect_images: how many of them have a mask.
        masks_per_class: images that have ClassId 1, 2 and so on.
    """

    images: int
    defect_images: int
    masks_per_class: tuple[int, ...]


# Counted in the train.csv of the competition (Kaggle 2019).
SEVERSTAL = Figures(images=12_568, defect_images=6_666, masks_per_class=(897, 247, 5_150, 801))


@dataclass(frozen=True)
class DownloadReport(Figures):
    """The content of the folder after a download: its figures and two facts more.

    Attributes:
        test_images: number of test images, which have no labels.
        was_there: True where an earlier run had finished.
    """

    test_images: int
    was_there: bool


def download_severstal(
    out: Path,
    *,
    client: Any = None,
    expected: Figures = SEVERSTAL,
    show_progress: bool = False,
    progress: Progress = silent,
) -> DownloadReport:
    """Fetch the data of the Severstal competition into a data folder: train.csv, train_images/, test_images/.

    The same call continues an interrupted run. Nothing but `out/.download/` is written until the data have been
    unpacked and verified; train.csv comes last. A complete folder is only verified.

    Args:
        out: the folder; absent, empty, or left by an interrupted run.
        client: Kaggle's client; None logs in with the user's token.
        expected: the figures that the data must have.
        show_progress: let the client show its own progress on stderr.
        progress: counts the files that are unpacked.

    Raises:
        MissingExtraError: the package `kaggle` is not installed.
        CannotContinueError: no token, rules not accepted, or the connection failed; says what to do.
        DataError: the archive is damaged, or the data do not have the expected figures.
        OutputExistsError: `out` holds something else.
        ResourceError: the disk is full, or another process is writing there.
    """
    if (out / _TABLE_NAME).exists():
        return _verify(out, expected, was_there=True)
    work = out / ".download"
    check_is_free(out, _CONTENT if work.exists() else ())
    if not work.exists():
        client = client or log_in()  # before a folder is made
    with folder_lock(out):
        ready = work / "ready"  # unpacked and verified
        if not ready.exists():
            archive = work / f"{COMPETITION}.zip"
            if not zipfile.is_zipfile(archive):  # the directory of a zip archive stands at its end
                _fetch(client or log_in(), archive, show_progress=show_progress)
            unpacking = work / "unpacking"
            shutil.rmtree(unpacking, ignore_errors=True)
            unpack_zip(archive, unpacking, remedy=_AGAIN, progress=progress)
            remedy = f"Delete {work} and run the same command again; if nothing changes, Kaggle has changed the data."
            _verify(unpacking, expected, was_there=False, remedy=remedy)
            unpacking.rename(ready)
        for name in _CONTENT:
            with resource_errors(out / name):
                if (ready / name).exists():
                    (ready / name).rename(out / name)
        shutil.rmtree(work)
    return _verify(out, expected, was_there=False)


def _fetch(client: Any, archive: Path, *, show_progress: bool) -> None:
    """Fetch the whole archive; the client continues a file that it has begun."""
    work = archive.parent
    work.mkdir(exist_ok=True)
    try:
        with redirect_stdout(sys.stderr):  # the client prints on stdout, which is for results
            client.competition_download_files(COMPETITION, path=str(work), force=False, quiet=not show_progress)
    except (Exception, SystemExit) as error:
        raise _explain(error, begun=archive.exists()) from error
    if not archive.is_file():
        found = ", ".join(sorted(entry.name for entry in work.iterdir())) or "nothing"
        raise DataError(f"{work}: Kaggle's client left {found}; expected {archive.name}. Update: pip install -U kaggle")


def log_in() -> Any:
    """Kaggle's client, logged in with the user's token. It logs in on import, so it is imported here.

    Raises:
        MissingExtraError: the package, or one that it needs, is not installed.
        CannotContinueError: there is no token, or Kaggle does not accept it.
    """
    try:
        with redirect_stdout(io.StringIO()):  # its own advice is longer than ours, and not about this program
            import kaggle

            kaggle.api.authenticate()
    except ImportError as error:
        raise MissingExtraError("Downloading from Kaggle", "kaggle") from error
    except (Exception, SystemExit) as error:
        module = type(error).__module__.partition(".")[0]
        if module in ("requests", "urllib3") and _http_status(error) not in (400, 401, 403):
            raise _explain(error) from error
        raise CannotContinueError(f"Kaggle does not know who you are. {_TOKEN_HELP} {_RULES_HELP}") from error
    return kaggle.api


def _explain(error: BaseException, *, begun: bool = False) -> CannotContinueError:
    """An error that says what a failure of Kaggle's client means, and what to do.

    Once the file has begun to arrive, a 403 comes from the storage, whose links expire, and not from the rules.
    """
    status = None if begun else _http_status(error)
    if status in _REFUSALS:
        return CannotContinueError(_REFUSALS[status])
    what = f"status {status}" if status else f"{type(error).__name__}: {error}"
    again = "What has arrived is kept: run the same command again to go on."
    return CannotContinueError(f"The download from Kaggle failed ({what[:300]}). {again}")


def _http_status(error: BaseException) -> Any:
    """The HTTP status in an exception of requests, or None."""
    return getattr(getattr(error, "response", None), "status_code", None)


def _verify(folder: Path, expected: Figures, *, was_there: bool, remedy: str = _NOT_WHOLE) -> DownloadReport:
    """Count the content of a data folder. Raises DataError with the remedy where it differs from `expected`."""
    if not (folder / IMAGES_NAME).is_dir() or not (folder / _TABLE_NAME).is_file():
        raise DataError(f"{folder}: {IMAGES_NAME}/ or {_TABLE_NAME} is missing. {remedy}")
    try:
        table = read_label_table(folder / _TABLE_NAME)
    except LabelError as error:
        raise DataError(f"{error} {remedy}") from error
    images_of_class = Counter(class_id for by_class in table.rles.values() for class_id in by_class)
    images_of_class.pop(IGNORE_CLASS_ID, None)
    found = Figures(
        images=sum(1 for _ in (folder / IMAGES_NAME).iterdir()),
        defect_images=len(table.rles),
        masks_per_class=tuple(images_of_class[number] for number in range(1, max(images_of_class, default=0) + 1)),
    )
    if found != expected:
        raise DataError(f"{folder}: {_describe(found)}; expected {_describe(expected)}. {remedy}")
    test_images = folder / TEST_IMAGES_NAME
    count = sum(1 for _ in test_images.iterdir()) if test_images.is_dir() else 0
    return DownloadReport(**vars(found), test_images=count, was_there=was_there)


def _describe(figures: Figures) -> str:
    masks = "/".join(map(str, figures.masks_per_class))
    return f"{figures.images} images, {figures.defect_images} with a defect, masks per class {masks}"
