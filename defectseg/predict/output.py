"""The output folder of `predict`: pictures, a journal that holds every result, and tables written from it.

The journal (`journal.jsonl`, one line per image) is the store: interrupted runs and finished folders are continued from
it. The tables are for people and other programs; each run writes them anew at its end and never reads them. Memory
grows by a few bytes per image, not with its results.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from defectseg.errors import CannotContinueError, DataError, DefectsegError, OutputExistsError
from defectseg.files import atomic_csv, resource_errors, result_folder, size_and_time, write_result, write_text
from defectseg.image.find import FoundImage
from defectseg.predict import tables
from defectseg.predict.journal import Journal
from defectseg.predict.names import folders_of, output_names, without_suffix
from defectseg.predict.tables import OutputChoice, Record

log = logging.getLogger(__name__)

_JOURNAL = "journal.jsonl"
_RUN = "run.json"
_HASH_SHOWN = 12


def read_results(root: Path) -> tuple[dict[str, Any], OutputChoice, Iterator[Record]]:
    """Read the output folder of a finished run.

    Returns:
        the content of run.json; the choice of outputs; the records, sorted by ImageId.

    Raises:
        DataError: it is not the output folder of a finished run.
    """
    for name in (_RUN, _JOURNAL):
        if not (root / name).is_file():
            raise DataError(f"{root}: has no {name}; expected the output folder of a finished run of predict.")
    run, choice = _read_run(root / _RUN, DataError)
    if run["status"] != "finished":
        raise DataError(f"{root}: the run is {run['status']}. Run the same predict again first.")
    return run, choice, _records_of(root / _JOURNAL)


def _read_run(path: Path, kind: type[DefectsegError]) -> tuple[dict[str, Any], OutputChoice]:
    """The content of run.json and the choice of outputs. Raises an error of this kind if predict did not write it."""
    try:
        run = json.loads(path.read_text(encoding="utf-8"))
        outputs = run["key"]["outputs"]
        choice = OutputChoice(tuple(outputs["names"]), outputs["overlays"])
        return {**run, "status": run["status"], "runs": list(run["runs"])}, choice
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        raise kind(f"{path}: not as predict writes it. Choose another folder; this one is left alone.") from None


def _records_of(path: Path) -> Iterator[Record]:
    with closing(Journal(path, read_only=True)) as journal:
        yield from journal.records()


@contextmanager
def output_folder(
    root: Path, key: Mapping[str, Any], choice: OutputChoice | None = None, *, overwrite: bool = False
) -> Iterator["OutputFolder"]:
    """Hold the output folder of one run of `predict` under a lock.

    Args:
        root: the folder; made if absent.
        key: everything besides `choice` that a stored row or picture depends on. A folder is continued only with the
            same key; a name that an older folder lacks counts as None.
        choice: the outputs to write; None: all.
        overwrite: delete the results of earlier runs.

    Raises:
        OutputExistsError: the folder contains something else, or results with another key.
        CannotContinueError: its journal is missing.
        ResourceError: another process writes to the folder, or it cannot be written.
    """
    choice = choice or OutputChoice()
    key = json.loads(json.dumps({**key, "outputs": asdict(choice)}))
    with result_folder(root, (), writer="predict", overwrite=None, mark=_RUN):
        output = OutputFolder(root, key, choice)
        earlier = _read_run(root / _RUN, OutputExistsError)[0] if (root / _RUN).exists() else None
        if earlier is not None and not overwrite:
            _check_may_continue(root, earlier["key"], key)
            output.runs = earlier["runs"]
        else:
            if earlier is not None:
                _clear(root)
            output.write_run({"status": "running"})  # marks the folder as one of predict
        with resource_errors(root):
            for folder in choice.pictures:
                (root / folder).mkdir(exist_ok=True)
        with closing(Journal(root / _JOURNAL)) as output.journal:
            yield output


def _check_may_continue(root: Path, earlier: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    if differences := _differences(earlier, key):
        raise OutputExistsError(
            f"{root}: holds results of another model or other settings ({'; '.join(differences)}). Choose "
            "another output folder.",
            go_on={"overwrite": True},
        )
    if (root / tables.IMAGES).exists() and not (root / _JOURNAL).exists():
        raise CannotContinueError(
            f"{root / _JOURNAL}: is gone, and with it the results behind the tables. Put it back, or choose "
            "another output folder.",
            go_on={"overwrite": True},
        )


def _clear(root: Path) -> None:
    """Delete the results of earlier runs, but not run.json, which marks the folder as one of predict."""
    with resource_errors(root):
        for name in (*tables.TABLES, _JOURNAL):
            (root / name).unlink(missing_ok=True)
    for folder in tables.PICTURES:
        shutil.rmtree(root / folder, ignore_errors=True)


class OutputFolder:
    """The output folder of a run, held by `output_folder`.

    Attributes:
        root: the folder.
        choice: the outputs to write.
        runs: which runtime and versions computed the results, see `add_run`.
        journal: the results.
    """

    journal: Journal

    def __init__(self, root: Path, key: Mapping[str, Any], choice: OutputChoice) -> None:
        self.root = root
        self.choice = choice
        self.runs: list[dict[str, Any]] = []
        self._key = key
        self._names: Mapping[str, str] = {}

    def pending(self, images: Sequence[FoundImage]) -> list[FoundImage]:
        """The images without a result: new, changed since, unreadable before, or with a missing picture."""
        self._drop_folders(images)
        self._names = output_names(self.journal.image_ids)
        if new := [image.image_id for image in images if image.image_id not in self.journal.image_ids]:
            self._rename_pictures(output_names([*self.journal.image_ids, *new]))
        return [image for image in images if not self._is_done(image)]

    def add_run(self, computed_by: Mapping[str, str], *, started: str) -> None:
        """Record for run.json what computes the results of this run, and warn if it differs from the previous run.

        Args:
            computed_by: the runtime, with the precision that it computes in, and the versions of the libraries.
            started: when the run began.
        """
        before = self.runs[-1] if self.runs else None
        if before is not None and before["computed_by"] == computed_by:
            self.runs[-1] = {**before, "last": started, "runs": before["runs"] + 1}
            return
        self.runs.append({"first": started, "last": started, "runs": 1, "computed_by": dict(computed_by)})
        if before is not None:
            log.warning(
                "%s: earlier results were computed by something else (%s), and may differ a little from new ones. "
                "Choose another folder, or overwrite this one, to compute all alike.",
                self.root,
                "; ".join(_differences(before["computed_by"], computed_by)),
            )

    def write(self, record: Record, pictures: Mapping[str, bytes], *, are_written: bool = False) -> None:
        """Store the pictures of an image, then its rows.

        If the image's name is too long for its pictures, the notes tell their name. A later record of an image replaces
        an earlier one.

        Args:
            record: the rows.
            pictures: JPEG under "overlays" and PNG under "masks", if this image gets one.
            are_written: whether `write_pictures` wrote them before.

        Raises:
            ResourceError: the disk is full.
        """
        if not are_written:
            write_pictures(self.picture_paths(record.image_id), pictures)
        name = self._names[record.image_id]
        if pictures and name not in (record.image_id, without_suffix(record.image_id)):
            notes = "; ".join(filter(None, (record.image["notes"], f"name too long, pictures are called {name}")))
            record = replace(record, image={**record.image, "notes": notes})
        self.journal.add(record)

    def finish(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write the tables, sorted by ImageId, and run.json, with the number of images in the folder by status.

        Returns:
            the content of run.json.
        """
        self.journal.flush()
        counts = dict.fromkeys(tables.STATUSES, 0)
        lacking: Counter[str] = Counter()
        with ExitStack() as stack:
            chosen = tables.tables_of(self.choice).items()
            writers = {
                name: stack.enter_context(atomic_csv(self.root / name, columns, for_people=name != tables.PREDICTIONS))
                for name, columns in chosen
            }
            for record in self.journal.records():
                counts[record.status] += 1
                lacking.update(record.younger_columns)
                for name, write_rows in writers.items():
                    write_rows(record.rows(name))
        for column, count in lacking.items():
            log.warning("%s: %d images were done before there was a column %s", self.root, count, column)
        return self.write_run({**run, "images_in_folder": counts})

    def write_run(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write run.json, with the key and `runs`, and return its content."""
        content = {**run, "runs": self.runs, "key": self._key}
        write_text(self.root / _RUN, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return content

    def picture_path(self, kind: str, image_id: str) -> Path:
        """The path of the overlay ("overlays") or the class map ("masks") of an image."""
        return self.root / kind / (self._names[image_id] + tables.PICTURES[kind])

    def picture_paths(self, image_id: str) -> dict[str, Path]:
        """The paths of all pictures that are written for an image, if it gets them."""
        return {kind: self.picture_path(kind, image_id) for kind in self.choice.pictures}

    def _drop_folders(self, images: Sequence[FoundImage]) -> None:
        """Drop the rows of folders that could not be listed before, but that now have images."""
        recorded = folders_of(image.image_id for image in images).intersection(self.journal.image_ids)
        self.journal.drop([one for one in recorded if self.journal.record(one).status == tables.STATUS_UNREADABLE])

    def _rename_pictures(self, names: Mapping[str, str]) -> None:
        """Rename the pictures of images that have to keep their suffix from now on.

        The longest go first, since a name can only become that of a longer ImageId, which has to be renamed before.
        """
        for image_id in sorted((one for one, name in self._names.items() if name != names[one]), key=len, reverse=True):
            for kind in self.choice.pictures:
                old = self.picture_path(kind, image_id)
                if old.exists():
                    old.replace(self.root / kind / (names[image_id] + tables.PICTURES[kind]))
        self._names = names

    def _is_done(self, image: FoundImage) -> bool:
        """Whether the journal has the result of the image as it is, and its pictures are there: one `stat` a file."""
        if image.fault or image.image_id not in self.journal.image_ids:
            return False
        record = self.journal.record(image.image_id)
        seen = record.image["size_bytes"], record.image["modified_ns"]
        if record.status == tables.STATUS_UNREADABLE or seen != image.stamp:
            return False
        return all(
            size_and_time(f"{self.root}/{kind}/{self._names[image.image_id]}{tables.PICTURES[kind]}")[0]
            for kind in self.choice.pictures
            if kind != tables.OVERLAYS or self.choice.has_overlay(with_defect=record.status == tables.STATUS_DEFECT)
        )


def write_pictures(paths: Mapping[str, Path], pictures: Mapping[str, bytes]) -> None:
    """Write the pictures of an image, see OutputFolder.write. Raises ResourceError if the disk is full."""
    for kind, path in paths.items():
        if kind in pictures:
            write_result(path, pictures[kind])
        else:  # perhaps left from an earlier version of the image
            path.unlink(missing_ok=True)


def _differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences of two nested mappings, as 'name old -> new'. An absent value is None."""
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
