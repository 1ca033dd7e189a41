"""The output folder of `predict`: pictures, a journal that holds every result, and tables written from it.

The journal (`journal.jsonl`, a line for each image) is the store: interrupted runs and finished folders are continued
from it, and nothing else is read back. The tables are for people and other programs; each run writes them anew at its
end. Memory grows by a few bytes for each image, not by its results.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Any, Self

from defectseg.errors import CannotContinueError, DataError, OutputExistsError
from defectseg.files import (
    atomic_csv,
    resource_errors,
    result_folder,
    size_and_time,
    write_result,
    write_text,
)
from defectseg.image.find import FoundImage
from defectseg.predict.journal import Journal
from defectseg.predict.tables import (
    EVERYTHING,
    IMAGES,
    MASKS,
    OVERLAYS,
    STATUS_DEFECT,
    STATUS_UNREADABLE,
    STATUSES,
    TABLES,
    OutputChoice,
    Record,
    tables_of,
)

log = logging.getLogger(__name__)

RESULTS_VERSION = 1  # raised only when class maps change for the same model and settings: no older folder is continued
_PICTURES = {OVERLAYS: ".jpg", MASKS: ".png"}
_JOURNAL = "journal.jsonl"
_RUN = "run.json"
_LONGEST_NAME_BYTES = 255  # of a file or folder, on nearly every file system
_LONGEST_PATH_BYTES = 2048  # of a picture within its folder: Linux ends at 4096 for the whole path
_HASH_SHOWN = 12


@dataclass(frozen=True)
class RunKey:
    """What must be equal for a folder to be continued: everything that a stored row or picture depends on.

    A field that is added later gets the default None, which an older folder is taken to hold.

    Attributes:
        model_sha256: see `model.locate.model_identity`.
        only_classes: ClassIds reported, or None for all.
        thresholds: as in the model, or as overridden.
        tta: test-time augmentation, as in the model, or as overridden.
        outputs: what is written.
        bit_depth: of 16-bit files, where it was given.
        model_bit_depth: of 16-bit files, in the model.
        runtime: the library that computes: torch, openvino or onnx.
        precision: the one that the model file asks for, not the one that this processor computes in.
        tile_hw, tile_overlap_px: of the tiles that larger images are cut into.
        results_version: RESULTS_VERSION.
    """

    model_sha256: str
    only_classes: tuple[int, ...] | None
    thresholds: dict[str, Any]
    tta: str = "none"
    outputs: OutputChoice = EVERYTHING
    bit_depth: int | None = None
    model_bit_depth: int | None = None
    runtime: str | None = None
    precision: str | None = None
    tile_hw: tuple[int, int] | None = None
    tile_overlap_px: int | None = None
    results_version: int = RESULTS_VERSION

    def as_json(self) -> dict[str, Any]:
        """As it stands in run.json."""
        content: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return content


def read_results(root: Path) -> tuple[dict[str, Any], OutputChoice, Iterator[Record]]:
    """What a finished run left in its output folder.

    Returns:
        the content of run.json; what was written; the records, in the order of their ImageIds.

    Raises:
        DataError: it is not the output folder of a finished run.
    """
    for name in (_RUN, _JOURNAL):
        if not (root / name).is_file():
            raise DataError(f"{root}: has no {name}; expected the output folder of a finished run of predict.")
    try:
        run = dict(json.loads((root / _RUN).read_text(encoding="utf-8")))
        status, chosen = str(run["status"]), run["key"]["outputs"]
        outputs = OutputChoice(tuple(chosen["names"]), str(chosen["overlays"]))
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{root / _RUN}: cannot be understood ({error!r}). Predict again, into another folder."
        ) from error
    if status != "finished":
        raise DataError(f"{root}: the run is {status}. Run the same predict again first.")
    return run, outputs, _records_of(root / _JOURNAL)


def _records_of(path: Path) -> Iterator[Record]:
    with closing(Journal(path, read_only=True)) as journal:
        yield from journal.records()


class OutputFolder:
    """The output folder of one run of `predict`, held under a lock from entering to leaving.

    Args:
        root: the folder; made if absent.
        key: what the results depend on.
        overwrite: redo what an earlier run left there.

    Raises (on entering):
        OutputExistsError: the folder holds something else, or a run with another key.
        CannotContinueError: its journal is gone.
        ResourceError: another process is writing there, or the folder cannot be written.
    """

    def __init__(self, root: Path, key: RunKey, *, overwrite: bool = False) -> None:
        self.root = root
        self.key = key
        self._overwrite = overwrite
        self._stack = ExitStack()
        self._runs: list[dict[str, Any]] = []
        self._names: dict[str, str] = {}

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(result_folder(self.root, (), writer="predict", overwrite=None, mark=_RUN))
            self._take_over()
            self._journal = stack.enter_context(closing(Journal(self.root / _JOURNAL)))
            self._names = output_names(self._journal.image_ids)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def pending(self, images: Sequence[FoundImage]) -> list[FoundImage]:
        """Those images that have no result yet: new, changed since, unreadable before, or with a picture missing."""
        self._forget_folders(images)
        self._rename_pictures(output_names([*self._journal.image_ids, *(image.image_id for image in images)]))
        given = {image.image_id: image for image in images}
        done = {
            record.image_id
            for record in self._journal.records()
            if record.image_id in given and self._is_done(given[record.image_id], record)
        }
        return [image for image in images if image.image_id not in done]

    def add_run(self, computed_by: Mapping[str, str], *, started: str) -> list[str]:
        """Note for run.json what computes the results of this run.

        Args:
            computed_by: the runtime, with the precision that it computes in, and the versions of the libraries.
            started: when the run began.

        Returns:
            what is not as in the run before, such as 'openvino 2025.1 -> 2025.2'.
        """
        before = self._runs[-1] if self._runs else None
        if before is not None and before["computed_by"] == computed_by:
            self._runs[-1] = {**before, "last": started, "runs": before["runs"] + 1}
            return []
        self._runs.append({"first": started, "last": started, "runs": 1, "computed_by": dict(computed_by)})
        return [] if before is None else _differences(before["computed_by"], computed_by)

    def write(self, record: Record, *, overlay_jpeg: bytes | None = None, class_map_png: bytes | None = None) -> None:
        """Store the pictures of an image, then its rows; None for a picture that is not wanted of it.

        Where the image's name is too long for its pictures, the notes say how they are called. A later record of an
        image replaces an earlier one.

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
        self._journal.add(record)

    def finish(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write the tables, sorted by ImageId, and run.json, with the number of images in the folder by status.

        Returns:
            what run.json holds.
        """
        self._journal.save()
        counts = dict.fromkeys(STATUSES, 0)
        lacking: Counter[str] = Counter()
        with ExitStack() as stack:
            writers = {
                name: stack.enter_context(atomic_csv(self.root / name, columns))
                for name, columns in tables_of(self.key.outputs).items()
            }
            for record in self._journal.records():
                counts[record.status] += 1
                lacking.update(record.younger_columns)
                for name, write_rows in writers.items():
                    write_rows(record.rows(name))
        for column, count in lacking.items():
            log.warning("%s: %d images were done before there was a column %s", self.root, count, column)
        return self.write_run({**run, "images_in_folder": counts})

    def write_run(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write run.json, with the key and with what computed this run and those before, and return what it holds."""
        content = {**run, "runs": self._runs, "key": self.key.as_json()}
        write_text(self.root / _RUN, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return content

    def picture_path(self, kind: str, image_id: str) -> Path:
        """Where the overlay ("overlays") or the class map ("masks") of an image lies."""
        return self.root / kind / (self._names[image_id] + _PICTURES[kind])

    def _take_over(self) -> None:
        """Check that earlier results may be continued, or clear them away, and make the folders."""
        earlier = self._earlier_run() if (self.root / _RUN).exists() else None
        if earlier is not None and not self._overwrite:
            self._check_may_continue(earlier)
            self._runs = earlier["runs"]
        else:
            if earlier is not None:
                self._clear()
            self.write_run({"status": "running"})  # from now on the folder is known to be ours
        with resource_errors(self.root):
            for folder in self._picture_kinds():
                (self.root / folder).mkdir(exist_ok=True)

    def _earlier_run(self) -> dict[str, Any]:
        try:
            run = dict(json.loads((self.root / _RUN).read_text(encoding="utf-8")))
            return {**run, "key": dict(run["key"]), "runs": list(run["runs"])}
        except (OSError, ValueError, KeyError, TypeError):
            raise OutputExistsError(
                f"{self.root / _RUN}: not as predict writes it. Choose another output folder; this one is left alone."
            ) from None

    def _check_may_continue(self, earlier: dict[str, Any]) -> None:
        if differences := _differences(earlier["key"], self.key.as_json()):
            raise OutputExistsError(
                f"{self.root}: holds results of another model or other settings ({'; '.join(differences)}). Choose "
                "another output folder.",
                go_on={"overwrite": True},
            )
        if (self.root / IMAGES).exists() and not (self.root / _JOURNAL).exists():
            raise CannotContinueError(
                f"{self.root / _JOURNAL}: is gone, and with it the results behind the tables. Put it back, or choose "
                "another output folder.",
                go_on={"overwrite": True},
            )

    def _clear(self) -> None:
        """Delete what an earlier run left, but for run.json: until there is a new one, it tells whose folder it is."""
        with resource_errors(self.root):
            for name in (*TABLES, _JOURNAL):
                (self.root / name).unlink(missing_ok=True)
        for folder in _PICTURES:
            shutil.rmtree(self.root / folder, ignore_errors=True)

    def _forget_folders(self, images: Sequence[FoundImage]) -> None:
        """Drop the rows of folders that could not be listed before, and of which images are given now."""
        folders = {str(parent) for image in images for parent in PurePosixPath(image.image_id).parents}
        for image_id in folders & set(self._journal.image_ids):
            if self._journal.record(image_id).status == STATUS_UNREADABLE:
                self._journal.drop(image_id)
                del self._names[image_id]

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
        if record.status == STATUS_UNREADABLE or image.fault:
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


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What two mappings do not share, nested ones too, as 'name old -> new'. An absent value is None."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} {_shown(old)} -> {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value[:_HASH_SHOWN] if len(value) == 2 * hashlib.sha256().digest_size else value
    return "none" if value is None else json.dumps(value)
