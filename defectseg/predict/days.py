"""Results by day: output folders of `predict` that stay open while images come."""

import time
from collections import defaultdict
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from defectseg.machine import now
from defectseg.predict.camera import Stamp
from defectseg.predict.journal import Journal
from defectseg.predict.output import JOURNAL, RUN, OutputFolder, output_folder
from defectseg.predict.predict import Loaded
from defectseg.predict.render import Rendered
from defectseg.predict.tables import OutputChoice

TABLES_S, TABLES_REST = 60.0, 10  # at most once a minute, and a tenth of the time
IDLE_S = 300.0


def day_of(modified_ns: int) -> str:
    """The local date of a file's time, as YYYY-MM-DD; 1970-01-01 for a time that the calendar does not have."""
    try:
        return datetime.fromtimestamp(modified_ns / 1e9).date().isoformat()  # noqa: DTZ006
    except (OSError, OverflowError, ValueError):
        return "1970-01-01"


def stamp_of(image: Mapping[str, Any]) -> Stamp:
    """The stamp of a recorded image, given its row of images.csv."""
    return image["size_bytes"], image["modified_ns"]


@dataclass
class _Day:
    output: OutputFolder
    closing: ExitStack
    changed: bool = True  # since the tables were last written
    tables_due_s: float = field(default_factory=lambda: time.monotonic() + TABLES_S)
    used_s: float = field(default_factory=time.monotonic)
    counts: Any = None  # of the images by status, when the tables were written


class Days:
    """Output folders ROOT/YYYY-MM-DD, one for each local date of the files' times. Use it with `contextlib.closing`.

    Pictures and journals are written at once. Tables are written in a thread of their own, at most once a minute. The
    folder of a past day is finished some minutes after its last result.

    Args:
        root: the folder of the days.
        loaded: what computes the results.
        choice: the outputs to write.
    """

    def __init__(self, root: Path, loaded: Loaded, choice: OutputChoice) -> None:
        self._root, self._loaded, self._choice = root, loaded, choice
        self._open: dict[str, _Day] = {}
        self._thread = ThreadPoolExecutor(1)
        self._writing: tuple[_Day, Future[None]] | None = None

    def resume(self) -> None:
        """Take up the days that a killed run left without tables. Raises as `output_folder`."""
        for path in self._root.glob(f"????-??-??/{RUN}"):
            if '"status": "running"' in path.read_text(encoding="utf-8", errors="replace"):
                self._day(path.parent.name)

    def handled(self, new: Mapping[str, Stamp]) -> set[str]:
        """Those of some images, given with their stamps, that have a result. Only journals of their days are read."""
        by_day: dict[str, list[str]] = defaultdict(list)
        for image_id, stamp in new.items():
            by_day[day_of(stamp[1])].append(image_id)
        found = set[str]()
        for day, image_ids in by_day.items():
            path = self._root / day / JOURNAL
            with ExitStack() as stack:
                if day in self._open or (day == day_of(time.time_ns()) and path.exists()):  # which stays open
                    journal = self._day(day).output.journal
                elif path.exists():
                    journal = stack.enter_context(closing(Journal(path, read_only=True)))
                else:
                    continue
                known = [one for one in image_ids if one in journal.image_ids]
                found |= {one for one in known if stamp_of(journal.record(one).image) == new[one]}
        return found

    def write(self, one: Rendered) -> None:
        """Store a result under the day of its file. Raises as `output_folder` and `OutputFolder.write`."""
        day = self._day(day_of(one.record.image["modified_ns"]))
        day.output.admit(one.record.image_id)
        day.output.write(one.record, one.pictures)
        day.changed, day.used_s = True, time.monotonic()

    def tend(self) -> None:
        """Begin to write tables that are due, and finish past days. Raises ResourceError: the tables before failed."""
        if self._writing is not None and self._writing[1].done():
            (day, future), self._writing = self._writing, None
            day.changed |= future.exception() is not None
            future.result()
        now_s, today = time.monotonic(), day_of(time.time_ns())
        for name, day in list(self._open.items()) if self._writing is None else ():
            if day.changed and now_s >= day.tables_due_s:
                day.changed = False  # a result that comes from now on may miss them
                self._writing = day, self._thread.submit(self._write_tables, day)
                return
            if not day.changed and name != today and now_s - day.used_s > IDLE_S:
                self._finish(name)

    def finish(self) -> None:
        """Write the tables of all open days, and finish them. Raises ResourceError."""
        self._thread.shutdown()
        for name in list(self._open):
            self._finish(name)

    def close(self) -> None:
        """Let go of all folders that are not finished. The next run writes their tables."""
        self._thread.shutdown()
        with ExitStack() as stack:
            for day in self._open.values():
                stack.push(day.closing)

    def _day(self, name: str) -> _Day:
        if name not in self._open:
            with ExitStack() as stack:
                output = stack.enter_context(output_folder(self._root / name, self._loaded.key, self._choice))
                output.name_pictures(output.journal.image_ids)
                output.add_run(self._loaded.computed_by(), started=now())
                output.write_run({**self._loaded.run, "status": "running"})
                self._open[name] = _Day(output, stack.pop_all())
        return self._open[name]

    def _write_tables(self, day: _Day) -> None:
        begun_s = time.monotonic()
        day.counts = day.output.finish({**self._loaded.run, "status": "running"})["images_in_folder"]
        ended_s = time.monotonic()
        day.tables_due_s = ended_s + max(TABLES_S, TABLES_REST * (ended_s - begun_s))

    def _finish(self, name: str) -> None:
        day = self._open[name]
        if day.changed or day.counts is None:
            self._write_tables(day)
        ended = {"status": "finished", "ended": now(), "images_in_folder": day.counts}
        day.output.write_run({**self._loaded.run, **ended})
        self._open.pop(name).closing.close()
