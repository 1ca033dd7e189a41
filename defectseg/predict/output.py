"""The output folder of `predict`: pictures, a journal that holds every result, and tables written from it.

The journal (`journal.jsonl`, one line per image) is the store: interrupted runs and finished folders are continued from
it. The tables and the page are for people and other programs; each run writes them anew at its end and never reads
them. Memory grows by a few bytes per image, not with its results.
"""

import hashlib
import json
import logging
import shutil
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from defectseg.data.classes import check_class_names
from defectseg.data.names import group_in, match_groups
from defectseg.errors import CannotContinueError, DataError, DefectsegError, OutputExistsError, UsageError
from defectseg.files import atomic_csv, own_dir, resource_errors, result_folder, size_and_time, write_result, write_text
from defectseg.image.find import FoundImage
from defectseg.predict import tables
from defectseg.predict.journal import Journal
from defectseg.predict.names import TakenNames, folders_of, output_names, without_suffix
from defectseg.predict.page import ResultsPage
from defectseg.predict.rules import Rules
from defectseg.predict.tables import OutputChoice, Record
from defectseg.predict.unlike import Unlike, trained_of
from defectseg.text import read_json

log = logging.getLogger(__name__)

JOURNAL = "journal.jsonl"
RUN = "run.json"
_HASH_SHOWN = 12
_MOST_NAMED = 20  # images that meet a rule, in run.json; regions.csv has all


def read_results(root: Path) -> tuple[dict[str, Any], OutputChoice, Iterator[Record]]:
    """Read the output folder of a finished run.

    Returns:
        the content of run.json; the choice of outputs; the records, sorted by ImageId.

    Raises:
        DataError: it is not the output folder of a finished run.
    """
    for name in (RUN, JOURNAL):
        if not (root / name).is_file():
            raise DataError(f"{root}: has no {name}; expected the output folder of a finished run of predict.")
    run, choice = _read_run(root / RUN, DataError)
    if run["status"] != "finished":
        raise DataError(f"{root}: the run is {run['status']}. Run the same command again first.")
    check_class_names(run["class_names"], where=str(root / RUN))
    return run, choice, _records_of(root / JOURNAL, len(run["class_names"]))


@contextmanager
def finished_folder(root: Path) -> Iterator[tuple[dict[str, Any], "OutputFolder"]]:
    """Open the output folder of a finished run for reading: the content of run.json, and the folder.

    Raises:
        DataError: as `read_results`, or it cannot be read.
    """
    try:
        run, choice, _ = read_results(root)
        output = OutputFolder(root, run["key"], choice)
        with closing(Journal(root / JOURNAL, read_only=True)) as output.journal:
            output.name_pictures(output.journal.image_ids)
            yield run, output
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error.strerror or error}).") from error


def status_of(root: Path) -> str:
    """The status in the run.json of an output folder; "" if there is none. Raises OutputExistsError as predict does."""
    return str(_read_run(root / RUN, OutputExistsError)[0]["status"]) if (root / RUN).exists() else ""


def _read_run(path: Path, kind: type[DefectsegError]) -> tuple[dict[str, Any], OutputChoice]:
    """The content of run.json and the choice of outputs. Raises an error of this kind if predict did not write it."""
    try:
        run = read_json(path)
        outputs = run["key"]["outputs"]
        size = outputs.get("mm_per_px")
        size, group = size and tuple(map(float, size)), outputs.get("group")
        match_groups(group or "", ())
        trained_of(run)
        page = (tables.PAGE,) if path.with_name(tables.INDEX).exists() else ()
        choice = OutputChoice((*outputs["names"], *page), outputs["overlays"], size, group)
        names = list(map(str, run.get("class_names", ())))  # none before the model is there
        runs = [{**one, "runs": int(one["runs"]), "computed_by": dict(one["computed_by"])} for one in run["runs"]]
        return {**run, "status": run["status"], "runs": runs, "class_names": names}, choice
    except (DataError, UsageError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
        raise kind(f"{path}: not as predict writes it. Choose another folder; this one is left alone.") from None


def _records_of(path: Path, classes: int) -> Iterator[Record]:
    with closing(Journal(path, read_only=True)) as journal:
        for record in journal.records():
            class_id = max((row[1] for row in (*record.predictions, *record.regions)), default=0)
            if class_id > classes:
                raise DataError(f"{path}: {record.image_id} has ClassId {class_id}; the model has {classes} classes.")
            yield record


@contextmanager
def output_folder(
    root: Path,
    key: Mapping[str, Any],
    choice: OutputChoice = tables.ALL_OUTPUTS,
    *,
    overwrite: bool = False,
    status: str = "running",
) -> Iterator["OutputFolder"]:
    """Hold the output folder of one run of `predict` under a lock.

    Args:
        root: the folder; made if absent.
        key: everything besides `choice` that a stored row or picture depends on. A folder is continued only with the
            same key; a name that an older folder lacks counts as None.
        choice: the outputs to write.
        overwrite: delete the results of earlier runs.
        status: for run.json, until `OutputFolder.write_run` is called.

    Raises:
        OutputExistsError: the folder contains something else, or results with another key.
        CannotContinueError: its journal is missing.
        ResourceError: another process writes to the folder, or it cannot be written.
    """
    key = json.loads(json.dumps({**key, "outputs": choice.stored}))
    with result_folder(root, (), writer="predict", overwrite=None, mark=RUN):
        output = OutputFolder(root, key, choice)
        earlier = _read_run(root / RUN, OutputExistsError)[0] if (root / RUN).exists() else None
        if earlier is not None and not overwrite:
            _check_may_continue(root, earlier["key"], key)
            output.runs = earlier["runs"]
        else:
            if earlier is not None:
                _clear(root)
            output.write_run({"status": status})  # marks the folder as one of predict
        with resource_errors(root):
            for folder in choice.pictures:
                own_dir(root / folder)
        with closing(Journal(root / JOURNAL)) as output.journal:
            yield output


def _check_may_continue(root: Path, earlier: Mapping[str, Any], key: Mapping[str, Any]) -> None:
    refuse_other_key(root, earlier, key, go_on={"overwrite": True})
    if (root / tables.IMAGES).exists() and not (root / JOURNAL).exists():
        raise CannotContinueError(
            f"{root / JOURNAL}: is gone, and with it the results behind the tables. Put it back, or choose "
            "another output folder.",
            go_on={"overwrite": True},
        )


def _clear(root: Path) -> None:
    """Delete the results of earlier runs, but not run.json, which marks the folder as one of predict."""
    with resource_errors(root):
        for name in (*tables.TABLES, tables.BY_GROUP, tables.INDEX, JOURNAL):
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
        self._taken: TakenNames | None = None

    def name_pictures(self, image_ids: Iterable[str]) -> None:
        """Let the names of pictures be those of a folder that holds these images and no others."""
        self._names = output_names(image_ids)

    def pending(self, images: Sequence[FoundImage], of_all: Sequence[FoundImage] | None = None) -> list[FoundImage]:
        """The images without a result: new, changed since, unreadable before, or with a missing picture.

        Args:
            images: those to look at.
            of_all: the images of all shards, if `images` are those of one.
        """
        self._drop_folders(images if of_all is None else of_all)
        self.name_pictures(self.journal.image_ids)
        if new := [image.image_id for image in images if image.image_id not in self.journal.image_ids]:
            self._rename_pictures(output_names([*self.journal.image_ids, *new]))
        return [image for image in images if not self._is_done(image)]

    def admit(self, image_id: str) -> None:
        """Name the pictures of one more image before `write`, quickly unless its name clashes with those before."""
        if image_id in self.journal.image_ids:
            return
        if self._taken is None:
            self._taken = TakenNames(self._names)
        if self._taken.clash_with(image_id):
            self._rename_pictures(output_names([*self.journal.image_ids, image_id]))
            self._taken = TakenNames(self._names)

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
                "; ".join(differences(before["computed_by"], computed_by)),
            )

    def write(self, record: Record, pictures: Mapping[str, bytes] | None) -> None:
        """Store the pictures of an image, then its rows.

        A later record of an image replaces an earlier one.

        Args:
            record: the rows.
            pictures: JPEG under "overlays" and PNG under "masks", if this image gets one; None: they are written.

        Raises:
            ResourceError: the disk is full.
        """
        if pictures is not None:
            write_pictures(self.picture_paths(record.image_id), pictures)
        self.journal.add(record)
        if self._taken is not None:
            self._taken.add(record.image_id, self._names[record.image_id])

    def finish(self, run: dict[str, Any], fail_on: Rules | None = None) -> dict[str, Any]:
        """Write the tables, sorted by ImageId, the page, and run.json, with the numbers of images in the folder.

        With `OutputChoice.group`, by_group.csv counts images and regions by group; "" is the group of all others.
        If an image's name is too long for its pictures, its notes in images.csv tell their name.

        Args:
            run: other entries of run.json.
            fail_on: rules; `fail_on` in run.json then tells how many images in the folder meet one, and the first.

        Returns:
            the content of run.json.
        """
        self.journal.flush()
        counts = dict.fromkeys(tables.STATUSES, 0)
        lacking: Counter[str] = Counter()
        by_group: dict[str, Counter[str | int]] = defaultdict(Counter)
        met, first = 0, list[str]()
        unlike = Unlike(trained_of(run))
        page = ResultsPage(self.choice, self._class_names(run), len(self.journal.image_ids), self._overlay_of)
        with ExitStack() as stack:
            chosen = tables.tables_of(self.choice).items()
            writers = {
                name: stack.enter_context(atomic_csv(self.root / name, columns, for_people=name != tables.PREDICTIONS))
                for name, columns in chosen
            }
            for record in map(self._with_name_noted, self.journal.records()):
                counts[record.status] += 1
                lacking.update(record.younger_columns)
                unlike.add(record)
                if fail_on is not None and fail_on.met_by(record):
                    met += 1
                    if met <= _MOST_NAMED:
                        first.append(record.image_id)
                rows = {name: record.rows(name) for name in writers}
                group = None
                if self.choice.group is not None:
                    group = group_in(self.choice.group, record.image_id)
                    rows[tables.IMAGES][0].append(group)
                    by_group[group].update(["images", record.status, *(row[1] for row in record.regions)])
                page.add(record, group)
                for name, write_rows in writers.items():
                    write_rows(rows[name])
        if self.choice.group is not None:
            self._write_groups(by_group, self._class_names(run))
        for count in sorted(set(lacking.values())):
            columns = ", ".join(column for column in lacking if lacking[column] == count)
            log.warning("%s: %d images were done before there was a column %s", self.root, count, columns)
        if fail_on is not None:
            run = {**run, "fail_on": {"rules": str(fail_on), "images": met, "first": first}}
        run = {**run, "unlike": unlike.told(), "images_in_folder": counts}
        page.write(self.root, run)
        return self.write_run(run)

    def _class_names(self, run: Mapping[str, Any]) -> dict[int, str]:
        """ClassId -> name of the classes that are reported."""
        names = dict(enumerate(run["class_names"], start=1))
        return {class_id: names[class_id] for class_id in self._key.get("only_classes") or names}

    def _write_groups(self, by_group: Mapping[str, Counter[str | int]], class_names: Mapping[int, str]) -> None:
        columns = [*tables.GROUP_COLUMNS, *(f"regions_{name}" for name in class_names.values())]
        counted: list[str | int] = ["images", tables.STATUS_UNREADABLE, tables.STATUS_DEFECT, *class_names]
        with atomic_csv(self.root / tables.BY_GROUP, columns, for_people=True) as write_rows:
            write_rows([group, *(counts[what] for what in counted)] for group, counts in sorted(by_group.items()))

    def write_run(self, run: dict[str, Any]) -> dict[str, Any]:
        """Write run.json, with the key and `runs`, and return its content."""
        content = {**run, "runs": self.runs, "key": self._key}
        write_text(self.root / RUN, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
        return content

    def picture_paths(self, image_id: str) -> dict[str, Path]:
        """The paths of all pictures that are written for an image, if it gets them."""
        return {kind: Path(path) for kind, path in self._called(self._names[image_id]).items()}

    def pictures(self, record: Record) -> dict[str, str]:
        """The paths of the pictures that an image has by its record."""
        if record.status == tables.STATUS_UNREADABLE:
            return {}
        pictures = self._called(self._names[record.image_id])
        if not self.choice.has_overlay(with_defect=record.status == tables.STATUS_DEFECT):
            pictures.pop(tables.OVERLAYS, None)
        return pictures

    def _overlay_of(self, record: Record) -> str:
        """The path of an image's overlay within the folder; "" if it has none."""
        return self.pictures(record).get(tables.OVERLAYS, "").removeprefix(f"{self.root}/")

    def _called(self, name: str) -> dict[str, str]:
        """The paths of the overlay ("overlays") and the class map ("masks") of this name, if such are written."""
        return {kind: f"{self.root}/{kind}/{name}{tables.PICTURES[kind]}" for kind in self.choice.pictures}

    def _with_name_noted(self, record: Record) -> Record:
        image_id, notes = record.image_id, record.image["notes"]
        name = self._names[image_id]
        told = f"name too long, pictures are called {name}"
        if name in (image_id, without_suffix(image_id)) or told in notes or not self.pictures(record):
            return record
        return replace(record, image={**record.image, "notes": "; ".join(filter(None, (notes, told)))})

    def _drop_folders(self, images: Sequence[FoundImage]) -> None:
        """Drop the rows of folders that could not be listed before, but that now have images."""
        recorded = folders_of(image.image_id for image in images).intersection(self.journal.image_ids)
        self.journal.drop([one for one in recorded if self.journal.record(one).status == tables.STATUS_UNREADABLE])

    def _rename_pictures(self, names: Mapping[str, str]) -> None:
        """Rename the pictures of images that have to keep their suffix from now on.

        The longest go first, since a name can only become that of a longer ImageId, which has to be renamed before.
        """
        renamed = [one for one in self.journal.image_ids if self._names[one] != names[one]]
        for image_id in sorted(renamed, key=len, reverse=True):
            new = self._called(names[image_id])
            for kind, old in self.picture_paths(image_id).items():
                if old.exists():
                    old.replace(new[kind])
        self._names = names

    def _is_done(self, image: FoundImage) -> bool:
        """Whether the journal has the result of the image as it is, and its pictures are there: one `stat` a file."""
        if image.fault or image.image_id not in self.journal.image_ids:
            return False
        record = self.journal.record(image.image_id)
        seen = record.image.get("size_bytes"), record.image.get("modified_ns")
        if record.status == tables.STATUS_UNREADABLE or seen != image.stamp:
            return False
        return all(size_and_time(picture)[0] for picture in self.pictures(record).values())


def write_pictures(paths: Mapping[str, Path], pictures: Mapping[str, bytes]) -> None:
    """Write the pictures of an image, see OutputFolder.write. Raises ResourceError if the disk is full."""
    for kind, path in paths.items():
        if kind in pictures:
            write_result(path, pictures[kind])
        else:  # perhaps left from an earlier version of the image
            path.unlink(missing_ok=True)


def refuse_other_key(
    root: Path, before: Mapping[str, Any], now: Mapping[str, Any], go_on: Mapping[str, object] | None = None
) -> None:
    """Raise OutputExistsError if the results in a folder have another key than those to come."""
    if found := differences(before, now):
        what = f"holds results of another model or other settings ({'; '.join(found)})"
        raise OutputExistsError(f"{root}: {what}. Choose another output folder.", go_on=go_on)


def differences(before: Mapping[str, Any], now: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The differences of two nested mappings, as 'name old -> new'. An absent value is None."""
    found = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, Mapping) and isinstance(new, Mapping):
            found += differences(old, new, f"{prefix}{name}.")
        elif old != new:
            found.append(f"{prefix}{name} {_shown(old)} -> {_shown(new)}")
    return found


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return value[:_HASH_SHOWN] if len(value) == 2 * hashlib.sha256().digest_size else value
    return "none" if value is None else json.dumps(value)
