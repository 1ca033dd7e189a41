"""Fetch the Severstal data through Kaggle's own client, and check that it is what it should be."""

import io
import shutil
import stat
import sys
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from defectseg.data.folder import IMAGES_NAME, LabelTable, read_label_table
from defectseg.data.table import IGNORE_CLASS_ID, TABLE_NAMES
from defectseg.errors import (
    CannotContinueError,
    DataError,
    DefectsegError,
    LabelError,
    MissingExtraError,
    OutputExistsError,
    ResourceError,
)
from defectseg.files import LOCK_NAME, folder_lock, is_plain_path, resource_errors
from defectseg.progress import Progress, silent, some

COMPETITION = "severstal-steel-defect-detection"
RULES_PAGE = f"https://www.kaggle.com/competitions/{COMPETITION}/rules"
TOKEN_PAGE = "https://www.kaggle.com/settings/api"  # noqa: S105 - a page, not a token
TEST_IMAGES_NAME = "test_images"

_WORK_NAME = ".download"
_TABLE_NAME = TABLE_NAMES[0]
# In this order into the data folder: with the label table, which comes last, it is complete.
_CONTENT = ("sample_submission.csv", TEST_IMAGES_NAME, IMAGES_NAME, _TABLE_NAME)
_TOKEN_HELP = (
    f"Make a token at {TOKEN_PAGE} (any Kaggle account will do), then set KAGGLE_API_TOKEN to it, or save it as "
    "~/.kaggle/access_token; an older kaggle.json in ~/.kaggle works too."
)
_RULES_HELP = f"Log in with the same account, open {RULES_PAGE}, accept the rules, and run the same command again."
_NOT_WHOLE = "It is not a whole download of the competition's data; choose another folder."
_AGAIN_HELP = "What has arrived is kept: run the same command again to go on."


@dataclass(frozen=True)
class Figures:
    """What is known about a data set.

    Attributes:
        images: number of training images.
        defect_images: how many of them have a mask.
        masks_per_class: images that have ClassId 1, 2 and so on.
    """

    images: int
    defect_images: int
    masks_per_class: tuple[int, ...]


# Kaggle 2019; the numbers are those of the competition's own train.csv.
SEVERSTAL = Figures(images=12_568, defect_images=6_666, masks_per_class=(897, 247, 5_150, 801))


@dataclass(frozen=True)
class DownloadReport:
    """What lies in the folder now.

    Attributes:
        images: number of training images.
        test_images: number of test images, which have no labels.
        defect_images: how many of the training images have a mask.
        masks_per_class: images that have ClassId 1, 2 and so on.
        was_there: True where an earlier run had finished.
    """

    images: int
    test_images: int
    defect_images: int
    masks_per_class: tuple[int, ...]
    was_there: bool


class KaggleClient(Protocol):
    """The part of Kaggle's client that is used; it goes on with a file that it has begun."""

    def competition_download_files(self, competition: str, path: str, force: bool = False, quiet: bool = True) -> None:
        """Fetch `<competition>.zip` into the folder `path`."""


def download_severstal(
    out: Path,
    *,
    client: KaggleClient | None = None,
    expected: Figures = SEVERSTAL,
    show_progress: bool = False,
    progress: Progress = silent,
) -> DownloadReport:
    """Fetch the data of the Severstal competition into a data folder: train.csv, train_images/, test_images/.

    An interrupted run is continued by the same call. Nothing but `out/.download/` is written until the data have been
    unpacked and found to be what they should be; train.csv comes last. A complete folder is only checked.

    Args:
        out: the folder; absent, empty, or left by an interrupted run.
        client: Kaggle's client; None logs in with the user's token.
        expected: the figures that the data must have.
        show_progress: let the client show its own progress on stderr.
        progress: counts the files that are unpacked.

    Raises:
        MissingExtraError: the package `kaggle` is not installed.
        CannotContinueError: no token, rules not accepted, or the connection failed; says what to do.
        DataError: the archive is damaged or refused, or the data are not what they should be.
        OutputExistsError: `out` holds something else.
        ResourceError: the disk is full, or another process is writing there.
    """
    if (out / _TABLE_NAME).exists():
        return _verify(out, expected, was_there=True)
    _check_may_write(out)
    work = out / _WORK_NAME
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
            unpack(archive, unpacking, progress=progress)
            remedy = f"Delete {work} and run the same command again; if nothing changes, Kaggle has changed the data."
            _verify(unpacking, expected, was_there=False, remedy=remedy)
            unpacking.rename(ready)
        _move(ready, out)
        shutil.rmtree(work)
    return _verify(out, expected, was_there=False)


def _check_may_write(out: Path) -> None:
    """Only an empty folder, or one with our own unfinished download, is written to."""
    if out.exists() and not out.is_dir():
        raise OutputExistsError(f"{out}: is a file; expected a folder. Choose another path.")
    present = {entry.name for entry in out.iterdir()} if out.exists() else set()
    ours = {_WORK_NAME, LOCK_NAME, *(_CONTENT if _WORK_NAME in present else ())}
    if foreign := sorted(present - ours):
        raise OutputExistsError(f"{out}: exists and is not empty (found {some(foreign)}). Choose another folder.")


def _move(ready: Path, out: Path) -> None:
    for name in _CONTENT:
        with resource_errors(out / name):
            if (ready / name).exists():
                (ready / name).rename(out / name)


def _fetch(client: KaggleClient, archive: Path, *, show_progress: bool) -> None:
    """Bring the whole archive, going on where an earlier run stopped."""
    work = archive.parent
    work.mkdir(exist_ok=True)
    try:
        with redirect_stdout(sys.stderr):  # the client talks on stdout, which is for results
            client.competition_download_files(COMPETITION, path=str(work), force=False, quiet=not show_progress)
    except DefectsegError:
        raise
    except (Exception, SystemExit) as error:
        raise _explain(error, begun=archive.exists()) from error
    if not archive.is_file():
        found = ", ".join(sorted(entry.name for entry in work.iterdir())) or "nothing"
        raise DataError(
            f"{work}: Kaggle's client left {found}; expected {archive.name}. Update it: pip install -U kaggle"
        )


def log_in() -> KaggleClient:
    """Kaggle's client, logged in with the user's token. It logs in while it is imported, hence not before.

    Raises:
        MissingExtraError: the package is not installed.
        CannotContinueError: there is no token, or Kaggle does not accept it.
    """
    try:
        with redirect_stdout(io.StringIO()):  # its own advice is longer than ours, and not about this program
            import kaggle

            kaggle.api.authenticate()
    except ModuleNotFoundError as error:
        if error.name == "kaggle":
            raise MissingExtraError("Downloading from Kaggle", "kaggle") from error
        raise CannotContinueError(
            f"Kaggle's client needs the package {error.name}, which is not installed. Run: pip install {error.name}"
        ) from error
    except (Exception, SystemExit) as error:
        if _is_of_the_network(error):
            raise _explain(error) from error
        raise CannotContinueError(f"Kaggle does not know who you are. {_TOKEN_HELP} {_RULES_HELP}") from error
    client: KaggleClient = kaggle.api
    return client


def _explain(error: BaseException, *, begun: bool = False) -> CannotContinueError:
    """What a failure of Kaggle's client means, and what to do.

    Once the file has begun to arrive, 403 comes from its storage, whose links expire, and is no matter of rules.
    """
    status = None if begun else _http_status(error)
    if status == 401:
        return CannotContinueError(f"Kaggle does not accept the token (401). {_TOKEN_HELP}")
    if status == 403:
        return CannotContinueError(f"Kaggle refuses the data (403): its rules are not accepted yet. {_RULES_HELP}")
    if status == 404:
        return CannotContinueError(f"Kaggle has no competition {COMPETITION} (404). Open {RULES_PAGE} to see why.")
    what = f"status {status}" if status else f"{type(error).__name__}: {error}"
    return CannotContinueError(f"The download from Kaggle failed ({what[:300]}). {_AGAIN_HELP}")


def _http_status(error: BaseException) -> int | None:
    """The HTTP status in an exception of requests (current clients) or of the client itself (before 1.7)."""
    response: Any = getattr(error, "response", None)
    status = getattr(error, "status", None) if response is None else getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _is_of_the_network(error: BaseException) -> bool:
    module = type(error).__module__.partition(".")[0]
    return module in ("requests", "urllib3") and _http_status(error) not in (400, 401, 403)


def _verify(folder: Path, expected: Figures, *, was_there: bool, remedy: str = _NOT_WHOLE) -> DownloadReport:
    """Count what lies in a data folder. Raises DataError, with the remedy, where it is not what is expected."""
    if not (folder / IMAGES_NAME).is_dir() or not (folder / _TABLE_NAME).is_file():
        raise DataError(f"{folder}: {IMAGES_NAME}/ or {_TABLE_NAME} is missing. {remedy}")
    try:
        table = read_label_table(folder / _TABLE_NAME)
    except LabelError as error:
        raise DataError(f"{error} {remedy}") from error
    names = {entry.name for entry in (folder / IMAGES_NAME).iterdir()}
    found = _figures(table, names)
    if found != expected:
        raise DataError(f"{folder}: {_describe(found)}; expected {_describe(expected)}. {remedy}")
    if absent := sorted(table.listed - names):
        raise DataError(
            f"{folder}: {len(absent)} images of {_TABLE_NAME} are missing, the first is {absent[0]}. {remedy}"
        )
    test_images = folder / TEST_IMAGES_NAME
    return DownloadReport(
        images=found.images,
        test_images=sum(1 for _ in test_images.iterdir()) if test_images.is_dir() else 0,
        defect_images=found.defect_images,
        masks_per_class=found.masks_per_class,
        was_there=was_there,
    )


def _figures(table: LabelTable, names: Sequence[str] | set[str]) -> Figures:
    images_of_class = Counter(class_id for by_class in table.rles.values() for class_id in by_class)
    images_of_class.pop(IGNORE_CLASS_ID, None)
    masks = tuple(images_of_class[number] for number in range(1, max(images_of_class, default=0) + 1))
    return Figures(images=len(names), defect_images=len(table.rles), masks_per_class=masks)


def _describe(figures: Figures) -> str:
    masks = "/".join(map(str, figures.masks_per_class))
    return f"{figures.images} images, {figures.defect_images} with a defect, masks per class {masks}"


_REMEDY = "Delete the archive and download it again; if that does not help, it is not the one that it should be."
# Photographs shrink by a few per cent and tables to a tenth. Archives made to fill a disk shrink to a thousandth.
_LARGEST_RATIO = 100
_SPARE_BYTES = 64 * 2**20


def unpack(archive: Path, folder: Path, *, progress: Progress = silent) -> None:
    """Unpack a zip archive into a folder, which is made.

    Every entry is looked at before the first is written: nothing is written outside `folder`, and links, devices,
    encrypted entries, names that stand there twice, and contents that are out of all proportion are refused. What is
    unpacked is compared with its checksum.

    Args:
        archive: the zip file.
        folder: a folder that does not exist.
        progress: counts the entries.

    Raises:
        DataError: it is no zip archive, is damaged, or an entry is refused; names the entry.
        ResourceError: the disk has not enough space, or cannot be written.
    """
    try:
        with resource_errors(folder), zipfile.ZipFile(archive) as opened:
            entries = _checked_files(opened, archive)
            _check_space(entries, folder)
            for done, entry in enumerate(entries, start=1):
                target = folder / entry.filename
                target.parent.mkdir(parents=True, exist_ok=True)
                with opened.open(entry) as packed, target.open("xb") as unpacked:
                    shutil.copyfileobj(packed, unpacked, 2**20)
                progress(done, len(entries))
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise DataError(f"{archive}: the archive is damaged or not complete ({error}). {_REMEDY}") from error


def _checked_files(opened: zipfile.ZipFile, archive: Path) -> list[zipfile.ZipInfo]:
    """The files in an archive, without its folders."""
    names: set[str] = set()
    entries = []
    for entry in opened.infolist():
        if fault := _fault(entry, names):
            raise DataError(f"{archive}: the entry {entry.filename!r} {fault}. Nothing was unpacked. {_REMEDY}")
        names.add(entry.filename.rstrip("/"))
        if not entry.is_dir():
            entries.append(entry)
    total_bytes = sum(entry.file_size for entry in entries)
    if total_bytes > _LARGEST_RATIO * max(archive.stat().st_size, 2**20):
        raise DataError(
            f"{archive}: would unpack to {total_bytes / 2**30:.1f} GiB, out of all proportion to its size. {_REMEDY}"
        )
    return entries


def _fault(entry: zipfile.ZipInfo, names: set[str]) -> str:
    """Why an entry must not be unpacked; "" where it may."""
    name = entry.filename.rstrip("/")
    mode = entry.external_attr >> 16
    if not is_plain_path(entry.orig_filename.rstrip("/")):
        return "would be written outside its folder, or under a name that some systems do not know"
    if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or a device, not a file"
    if entry.flag_bits & 1:
        return "is encrypted"
    return "stands there twice" if name in names else ""


def _check_space(entries: Sequence[zipfile.ZipInfo], folder: Path) -> None:
    needed_bytes = sum(entry.file_size for entry in entries) + _SPARE_BYTES
    folder.mkdir(parents=True)
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < needed_bytes:
        raise ResourceError(
            f"{folder}: {free_bytes / 2**30:.1f} GiB free, {needed_bytes / 2**30:.1f} GiB needed to unpack. "
            "Free some space and run the same command again."
        )
