"""What a prediction run leaves on disk: pictures at once, tables at the end, and a journal between them.

The journal (`journal.jsonl`, a line per image) makes an interrupted run resumable; when the run ends it becomes the
tables and is deleted. A finished folder is continued by turning its tables back into a journal. Memory grows by a few
bytes for each image, not by its results.
"""

import csv
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from defectseg.data.images import FoundImage
from defectseg.errors import CannotContinueError, OutputExistsError
from defectseg.files import (
    atomic_path,
    folder_lock,
    is_empty_folder,
    remove_stale_temporaries,
    resource_errors,
    write_result,
    write_text,
)

PREDICTION_COLUMNS = ("ImageId", "ClassId", "EncodedPixels")
IMAGE_COLUMNS = (
    *("ImageId", "status", "height", "width", "classes", "regions", "defect_area_px", "defect_area_percent"),
    *("top_score", "notes", "size_bytes", "modified_ns"),
)
REGION_COLUMNS = (
    *("ImageId", "ClassId", "class_name", "area_px", "x", "y", "width", "height", "centroid_x", "centroid_y", "score"),
)
ERROR_COLUMNS = ("ImageId", "path", "error")
TABLES = {
    "predictions.csv": PREDICTION_COLUMNS,
    "images.csv": IMAGE_COLUMNS,
    "regions.csv": REGION_COLUMNS,
    "errors.csv": ERROR_COLUMNS,
}
STATUS_DEFECT, STATUS_CLEAN, STATUS_FAILED = "defect", "clean", "failed"
_STATUSES = (STATUS_DEFECT, STATUS_CLEAN, STATUS_FAILED)
_PICTURES = {"overlays": ".jpg", "masks": ".png"}
_MEND_TABLES = "Put the files back as predict wrote them, or redo everything with --overwrite."
_JOURNAL = "journal.jsonl"
_LONGEST_FIELD = 2**31 - 1  # csv stops at 131,072 letters, which the run-lengths of one large mask exceed
_RUN = "run.json"
_OWN_ENTRIES = frozenset({*TABLES, _JOURNAL, _RUN, *_PICTURES})


@dataclass(frozen=True)
class RunKey:
    """What must be equal for a folder to be continued.

    Attributes:
        model_sha256: hash of the model file.
        only_classes: ClassIds reported, or None for all.
        thresholds: as in the model, or as overridden.
        tta: test-time augmentation, as in the model, or as overridden.
    """

    model_sha256: str
    only_classes: tuple[int, ...] | None
    thresholds: dict[str, Any]
    tta: str = "none"

    def as_json(self) -> dict[str, Any]:
        """As it stands in run.json; without `tta` where it is none, as in folders from before there was a choice."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        if self.tta == "none":
            del content["tta"]
        return content


@dataclass(frozen=True)
class Record:
    """The rows of one image, as they will stand in the tables; `predictions` is empty for a failed image."""

    image: dict[str, Any]
    predictions: list[list[Any]]
    regions: list[list[Any]]
    errors: list[list[Any]]

    @property
    def image_id(self) -> str:
        """ImageId of the image."""
        return str(self.image["ImageId"])

    @property
    def status(self) -> str:
        """defect, clean or failed."""
        return str(self.image["status"])


class OutputFolder:
    """The output folder of one run of `predict`, held under a lock from entering to leaving.

    Args:
        root: the folder; made if absent.
        key: what the run depends on.
        overwrite: redo what a run with other settings left there.

    Raises (on entering):
        OutputExistsError: the folder holds something else, or a run with other settings.
        ResourceError: another process is writing there, or the folder cannot be written.
    """

    def __init__(self, root: Path, key: RunKey, *, overwrite: bool = False) -> None:
        self.root = root
        self.key = key
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._offsets: dict[str, int] = {}
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        self._stack.enter_context(folder_lock(self.root))
        try:
            self._take_over()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pending(self, images: Sequence[FoundImage]) -> list[FoundImage]:
        """Those images that have no result yet: new, changed since, failed before, or with a picture missing."""
        self._rename_pictures(output_names([*self._offsets, *(image.image_id for image in images)]))
        given = {image.image_id: image for image in images}
        done = {
            record.image_id
            for record in self._records()
            if record.image_id in given and self._is_done(given[record.image_id], record)
        }
        return [image for image in images if image.image_id not in done]

    def write(self, record: Record, *, overlay_jpeg: bytes, class_map_png: bytes) -> None:
        """Store the pictures of an image, then its rows. Raises ResourceError if the disk is full."""
        write_result(self.overlay_path(record.image_id), overlay_jpeg)
        write_result(self.mask_path(record.image_id), class_map_png)
        self._note(record)

    def write_failure(self, record: Record) -> None:
        """Store the rows of an image that failed, and drop the pictures of an earlier result of it."""
        self.overlay_path(record.image_id).unlink(missing_ok=True)
        self.mask_path(record.image_id).unlink(missing_ok=True)
        self._note(record)

    def _note(self, record: Record) -> None:
        """Append to the journal; a later record of an image replaces an earlier one."""
        offset = self._journal.tell()
        with resource_errors(self.root / _JOURNAL):
            self._journal.write(_as_line(record))
            self._journal.flush()
        self._offsets[record.image_id] = offset

    def finish(self, run: dict[str, Any]) -> dict[str, int]:
        """Write the tables, sorted by ImageId, and run.json; drop the journal.

        Returns:
            number of images in the folder by status.
        """
        counts = dict.fromkeys(_STATUSES, 0)
        with ExitStack() as stack:
            writers = {}
            for name, columns in TABLES.items():
                path = stack.enter_context(atomic_path(self.root / name))
                handle = stack.enter_context(path.open("w", encoding="utf-8", errors="backslashreplace", newline=""))
                writers[name] = csv.writer(handle, lineterminator="\n")
                writers[name].writerow(columns)
            for record in self._records():
                counts[record.status] += 1
                writers["predictions.csv"].writerows(record.predictions)
                writers["images.csv"].writerow([record.image[column] for column in IMAGE_COLUMNS])
                writers["regions.csv"].writerows(record.regions)
                writers["errors.csv"].writerows(record.errors)
        self.write_run({**run, "images_in_folder": counts})
        self._journal.close()
        (self.root / _JOURNAL).unlink()
        return counts

    def write_run(self, run: dict[str, Any]) -> None:
        """Write run.json with the key of this run."""
        write_text(
            self.root / _RUN, json.dumps({**run, "key": self.key.as_json()}, indent=2, ensure_ascii=False) + "\n"
        )

    def overlay_path(self, image_id: str) -> Path:
        """Where the overlay of an image lies."""
        return self.root / "overlays" / (self._names[image_id] + _PICTURES["overlays"])

    def mask_path(self, image_id: str) -> Path:
        """Where the class map of an image lies."""
        return self.root / "masks" / (self._names[image_id] + _PICTURES["masks"])

    def _take_over(self) -> None:
        if not _holds_nothing(self.root):
            self._check_may_continue()
        remove_stale_temporaries(self.root)
        if self._overwrite:
            self._clear()
        with resource_errors(self.root):
            for folder in _PICTURES:
                (self.root / folder).mkdir(exist_ok=True)
        journal = self.root / _JOURNAL
        if not journal.exists() and (self.root / "images.csv").exists():
            with atomic_path(journal) as temporary, temporary.open("wb") as handle:
                handle.writelines(map(_as_line, read_records(self.root)))
        self._journal = self._stack.enter_context(journal.open("ab+"))
        self._index_journal()
        self._names = output_names(self._offsets)

    def _clear(self) -> None:
        """Delete what an earlier run left, but for run.json: until there is a new one, it tells whose folder it is."""
        with resource_errors(self.root):
            for name in (*TABLES, _JOURNAL):
                (self.root / name).unlink(missing_ok=True)
        for folder in _PICTURES:
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def _check_may_continue(self) -> None:
        foreign = sorted(entry.name for entry in self.root.iterdir() if not _is_own(entry.name))
        run = self.root / _RUN
        if not run.exists():
            found = ", ".join(foreign[:3]) or f"no {_RUN}"
            raise OutputExistsError(
                f"{self.root}: not empty and not the output of predict (found {found}). Choose another --out."
            )
        if self._overwrite:
            return
        try:
            before = json.loads(run.read_text(encoding="utf-8"))["key"]
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputExistsError(
                f"{run}: cannot be read, so the folder cannot be continued. Use --overwrite."
            ) from None
        if before != self.key.as_json():
            raise OutputExistsError(
                f"{self.root}: holds results of another model or other settings. "
                "Choose another --out, or redo everything with --overwrite."
            )

    def _index_journal(self) -> None:
        """Find where each image's last record starts; a line cut short by a crash is dropped."""
        self._journal.seek(0)
        end = 0
        for line in self._journal:
            if not line.endswith(b"\n"):
                break  # whole or not: the next record must not join it
            try:
                image_id = json.loads(line)["image"]["ImageId"]
            except (ValueError, KeyError, TypeError):
                break
            self._offsets[image_id] = end
            end += len(line)
        self._journal.truncate(end)
        self._journal.seek(0, 2)

    def _records(self) -> Iterator[Record]:
        for image_id in sorted(self._offsets):
            self._journal.seek(self._offsets[image_id])
            yield Record(**json.loads(self._journal.readline()))
        self._journal.seek(0, 2)

    def _rename_pictures(self, names: dict[str, str]) -> None:
        """Take over new names; images that must now keep their suffix have their pictures renamed.

        The longest go first: a name only ever grows into that of a longer ImageId, which has to be out of the way.
        """
        for image_id in sorted(self._names, key=len, reverse=True):
            if self._names[image_id] != names[image_id]:
                before = self.overlay_path(image_id), self.mask_path(image_id)
                self._names[image_id] = names[image_id]
                for old, new in zip(before, (self.overlay_path(image_id), self.mask_path(image_id)), strict=True):
                    if old.exists():
                        old.replace(new)
        self._names = names

    def _is_done(self, image: FoundImage, record: Record) -> bool:
        if record.status == STATUS_FAILED:
            return False
        try:
            stat = image.path.stat()
        except OSError:
            return False
        seen = str(record.image["size_bytes"]), str(record.image["modified_ns"])
        if seen != (str(stat.st_size), str(stat.st_mtime_ns)):
            return False
        pictures = (self.overlay_path(image.image_id), self.mask_path(image.image_id))
        return all(path.is_file() and path.stat().st_size for path in pictures)


def output_names(image_ids: Iterable[str]) -> dict[str, str]:
    """ImageId -> name of its pictures without their suffix: the ImageId's own suffix goes, unless two would meet.

    Names that differ only by case meet too, since some file systems do not tell them apart; so do the picture of one
    image and the folder of another ("a.png" and "a.jpg/b.png").
    """
    ids = sorted(set(image_ids))
    names = {image_id: image_id.removesuffix(PurePosixPath(image_id).suffix) for image_id in ids}
    folders = {str(parent).casefold() for image_id in ids for parent in PurePosixPath(image_id).parents}
    barred = {folder.removesuffix(end) for folder in folders for end in _PICTURES.values() if folder.endswith(end)}
    while True:
        counts = Counter(name.casefold() for name in names.values())
        meeting = [
            image_id
            for image_id, name in names.items()
            if name != image_id and (counts[name.casefold()] > 1 or name.casefold() in barred)
        ]
        if not meeting:
            return names
        names |= {image_id: image_id for image_id in meeting}  # these may meet others: "a.jpg" and "a.jpg.bmp"


def read_records(root: Path) -> Iterator[Record]:
    """The results in a finished output folder, image by image, in the order of its tables.

    Raises:
        CannotContinueError: a table is missing, was changed, or does not fit the others.
    """
    csv.field_size_limit(_LONGEST_FIELD)
    with ExitStack() as stack:
        rows = {}
        for name, columns in TABLES.items():
            rows[name] = groupby(_read_table(root / name, columns, stack), key=lambda row: row["ImageId"])
        waiting = {name: next(groups, None) for name, groups in rows.items() if name != "images.csv"}
        for image_id, images in rows["images.csv"]:
            found: dict[str, list[list[Any]]] = {}
            for name, group in waiting.items():
                if group is None or group[0] != image_id:
                    found[name] = []
                    continue
                found[name] = [list(row.values()) for row in group[1]]
                waiting[name] = next(rows[name], None)
            yield Record(next(images), found["predictions.csv"], found["regions.csv"], found["errors.csv"])
        if any(group is not None for group in waiting.values()):
            raise CannotContinueError(f"{root}: its tables do not list the same images. {_MEND_TABLES}")


def _read_table(path: Path, columns: Sequence[str], stack: ExitStack) -> Iterator[dict[str, str]]:
    """The rows of a table that an earlier run wrote; spreadsheet programs save such files with other separators."""
    try:
        rows = csv.DictReader(stack.enter_context(path.open(encoding="utf-8", newline="")))
        if tuple(rows.fieldnames or ()) != tuple(columns):
            raise CannotContinueError(f"{path}: was changed; expected the columns {', '.join(columns)}. {_MEND_TABLES}")
        for row in rows:
            if len(row) != len(columns) or None in row.values() or row.get("status", STATUS_CLEAN) not in _STATUSES:
                raise CannotContinueError(f"{path}, line {rows.line_num}: was changed. {_MEND_TABLES}")
            yield row
    except (OSError, csv.Error, UnicodeDecodeError) as error:
        raise CannotContinueError(f"{path}: cannot be read ({error}). {_MEND_TABLES}") from error


def _as_line(record: Record) -> bytes:
    return json.dumps(asdict(record)).encode() + b"\n"


def _holds_nothing(root: Path) -> bool:
    """True for a folder that is absent or empty, or was left so by a run that was killed as it began."""
    if is_empty_folder(root):
        return True
    if not root.is_dir():
        return False
    return all(
        entry.name.startswith(".")
        or (entry.name == _JOURNAL and not entry.stat().st_size)
        or (entry.name in _PICTURES and entry.is_dir() and not any(entry.iterdir()))
        for entry in root.iterdir()
    )


def _is_own(name: str) -> bool:
    return name in _OWN_ENTRIES or name.startswith(".")
