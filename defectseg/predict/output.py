"""What a prediction run leaves on disk: pictures at once, tables at the end, and a journal between them.

The journal (`journal.jsonl`, a line per image) makes an interrupted run resumable; when the run ends it becomes the
tables and is deleted. A finished folder is continued by turning its tables back into a journal. Memory grows by a few
bytes for each image, not by its results.
"""

import hashlib
import json
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from defectseg.errors import OutputExistsError
from defectseg.files import (
    atomic_csv,
    atomic_path,
    folder_lock,
    is_empty_folder,
    remove_stale_temporaries,
    resource_errors,
    size_and_time,
    write_result,
    write_text,
)
from defectseg.image.find import FoundImage
from defectseg.predict.tables import (
    EVERYTHING,
    IMAGES,
    MASKS,
    OVERLAYS,
    STATUS_DEFECT,
    STATUS_FAILED,
    STATUSES,
    TABLES,
    OutputChoice,
    Record,
    read_records,
    tables_of,
)

_PICTURES = {OVERLAYS: ".jpg", MASKS: ".png"}
_JOURNAL = "journal.jsonl"
_RUN = "run.json"
_OWN_ENTRIES = frozenset({*TABLES, _JOURNAL, _RUN, *_PICTURES})
_LONGEST_NAME_BYTES = 255  # of a file or folder, on nearly every file system
_LONGEST_PATH_BYTES = 2048  # of a picture within its folder: Linux ends at 4096 for the whole path


@dataclass(frozen=True)
class RunKey:
    """What must be equal for a folder to be continued.

    Attributes:
        model_sha256: hash of the model file.
        only_classes: ClassIds reported, or None for all.
        thresholds: as in the model, or as overridden.
        tta: test-time augmentation, as in the model, or as overridden.
        outputs: what is written.
        bit_depth: of 16-bit files, where it was given; else it follows from the files and the model.
    """

    model_sha256: str
    only_classes: tuple[int, ...] | None
    thresholds: dict[str, Any]
    tta: str = "none"
    outputs: OutputChoice = EVERYTHING
    bit_depth: int | None = None

    def as_json(self) -> dict[str, Any]:
        """As it stands in run.json; without what is as it was in folders from before there was a choice of it."""
        content: dict[str, Any] = json.loads(json.dumps({**asdict(self), "outputs": self.outputs.as_json()}))
        if self.tta == "none":
            del content["tta"]
        if self.outputs == EVERYTHING:
            del content["outputs"]
        if self.bit_depth is None:
            del content["bit_depth"]
        return content


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
        self._forget_folders(images)
        self._rename_pictures(output_names([*self._offsets, *(image.image_id for image in images)]))
        given = {image.image_id: image for image in images}
        done = {
            record.image_id
            for record in self._records()
            if record.image_id in given and self._is_done(given[record.image_id], record)
        }
        return [image for image in images if image.image_id not in done]

    def write(self, record: Record, *, overlay_jpeg: bytes | None = None, class_map_png: bytes | None = None) -> None:
        """Store the pictures of an image, then its rows; None for a picture that is not wanted of it.

        Where the image's name is too long for its pictures, the notes say how they are called.

        Raises:
            ResourceError: the disk is full.
        """
        for kind, content in ((OVERLAYS, overlay_jpeg), (MASKS, class_map_png)):
            if content is not None:
                write_result(self.picture_path(kind, record.image_id), content)
            elif kind in self.key.outputs.names:  # the image may have been another before
                self.picture_path(kind, record.image_id).unlink(missing_ok=True)
        name = self._names[record.image_id]
        if (overlay_jpeg or class_map_png) and name not in (record.image_id, _without_suffix(record.image_id)):
            notes = "; ".join(filter(None, (record.image["notes"], f"name too long, pictures are called {name}")))
            record = replace(record, image={**record.image, "notes": notes})
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
        counts = dict.fromkeys(STATUSES, 0)
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(atomic_csv(self.root / name, columns))
                for name, columns in tables_of(self.key.outputs).items()
            }
            for record in self._records():
                counts[record.status] += 1
                for name, write_rows in writers.items():
                    write_rows(record.rows(name))
        self.write_run({**run, "images_in_folder": counts})
        self._journal.close()
        (self.root / _JOURNAL).unlink()
        return counts

    def write_run(self, run: dict[str, Any]) -> None:
        """Write run.json with the key of this run."""
        write_text(
            self.root / _RUN, json.dumps({**run, "key": self.key.as_json()}, indent=2, ensure_ascii=False) + "\n"
        )

    def picture_path(self, kind: str, image_id: str) -> Path:
        """Where the overlay ("overlays") or the class map ("masks") of an image lies."""
        return self.root / kind / (self._names[image_id] + _PICTURES[kind])

    def _take_over(self) -> None:
        if not _holds_nothing(self.root):
            self._check_may_continue()
        remove_stale_temporaries(self.root)
        if self._overwrite:
            self._clear()
        with resource_errors(self.root):
            for folder in self._picture_kinds():
                (self.root / folder).mkdir(exist_ok=True)
        journal = self.root / _JOURNAL
        if not journal.exists() and (self.root / IMAGES).exists():
            with atomic_path(journal) as temporary, temporary.open("wb") as handle:
                handle.writelines(map(_as_line, read_records(self.root, self.key.outputs)))
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
            before = dict(json.loads(run.read_text(encoding="utf-8"))["key"])
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputExistsError(
                f"{run}: not as predict writes it, so the folder cannot be continued. Choose another --out. "
                f"(--overwrite would delete {', '.join(TABLES)}, {'/, '.join(_PICTURES)}/ in it, whoever made them.)"
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

    def _forget_folders(self, images: Sequence[FoundImage]) -> None:
        """Drop the rows of folders that could not be listed before, and of which images are given now."""
        folders = {str(parent) for image in images for parent in PurePosixPath(image.image_id).parents}
        known = folders & self._offsets.keys()
        for record in [record for record in self._records() if record.image_id in known] if known else ():
            if record.status == STATUS_FAILED:
                del self._offsets[record.image_id], self._names[record.image_id]

    def _rename_pictures(self, names: dict[str, str]) -> None:
        """Take over new names; images that must now keep their suffix have their pictures renamed.

        The longest go first: a name only ever grows into that of a longer ImageId, which has to be out of the way.
        """
        for image_id in sorted(self._names, key=len, reverse=True):
            if self._names[image_id] != names[image_id]:
                before = {kind: self.picture_path(kind, image_id) for kind in self._picture_kinds()}
                self._names[image_id] = names[image_id]
                for kind, old in before.items():
                    if old.exists():
                        old.replace(self.picture_path(kind, image_id))
        self._names = names

    def _is_done(self, image: FoundImage, record: Record) -> bool:
        if record.status == STATUS_FAILED or image.fault:
            return False
        seen = str(record.image["size_bytes"]), str(record.image["modified_ns"])
        if seen != tuple(map(str, size_and_time(image.path))):
            return False
        pictures = [
            self.picture_path(kind, image.image_id)
            for kind in self._picture_kinds()
            if kind != OVERLAYS or self.key.outputs.has_overlay(with_defect=record.status == STATUS_DEFECT)
        ]
        return all(path.is_file() and path.stat().st_size for path in pictures)

    def _picture_kinds(self) -> list[str]:
        return [kind for kind in _PICTURES if kind in self.key.outputs.names]


def output_names(image_ids: Iterable[str]) -> dict[str, str]:
    """ImageId -> name of its pictures without their suffix: the ImageId's own suffix goes, unless two would meet.

    Names that differ only by case meet too, since some file systems do not tell them apart; so do the picture of one
    image and the folder of another ("a.png" and "a.jpg/b.png"). The end of a name that is too long for a file system
    becomes a hash of the whole.
    """
    ids = sorted(set(image_ids))
    names = {image_id: _fitting(_without_suffix(image_id)) for image_id in ids}
    whole = {image_id: _fitting(image_id) for image_id in ids}
    folders = {str(parent).casefold() for name in names.values() for parent in PurePosixPath(name).parents}
    barred = {folder.removesuffix(end) for folder in folders for end in _PICTURES.values() if folder.endswith(end)}
    while True:
        counts = Counter(name.casefold() for name in names.values())
        meeting = [
            image_id
            for image_id, name in names.items()
            if name != whole[image_id] and (counts[name.casefold()] > 1 or name.casefold() in barred)
        ]
        if not meeting:
            return names
        names |= {image_id: whole[image_id] for image_id in meeting}  # these may meet others: "a.jpg" and "a.jpg.bmp"


def _without_suffix(image_id: str) -> str:
    return image_id.removesuffix(PurePosixPath(image_id).suffix)


def _fitting(name: str) -> str:
    """A path that file systems take, with room for the suffix of a picture."""
    if len(name.encode()) > _LONGEST_PATH_BYTES:
        name = name.replace("/", "_")
    *folders, last = name.split("/")
    room = _LONGEST_NAME_BYTES - max(map(len, _PICTURES.values()))
    return "/".join([*(_cut(folder, _LONGEST_NAME_BYTES) for folder in folders), _cut(last, room)])


def _cut(name: str, most_bytes: int) -> str:
    """A name of at most so many bytes; the end of a longer one becomes a hash of the whole."""
    encoded = name.encode()
    if len(encoded) <= most_bytes:
        return name
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return f"{encoded[: most_bytes - len(digest) - 1].decode(errors='ignore')}-{digest}"


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
