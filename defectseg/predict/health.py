"""What a command that runs for months tells about itself in a file."""

import json
import logging
import os
import threading
import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

from defectseg.errors import ResourceError
from defectseg.files import write_text
from defectseg.predict.predict import now
from defectseg.predict.tables import STATUS_BLANK, STATUS_DEFECT, STATUS_UNREADABLE

log = logging.getLogger(__name__)

WRITE_S, SAME_S = 5.0, 60.0
LATENCIES = 1000

RUNNING, STOPPED, FAILED = "running", "stopped", "failed"


class Health:
    """Writes the health file every few seconds, from a thread of its own. Use it with `contextlib.closing`.

    Args:
        path: the file.
        about: entries that stay the same.

    Attributes:
        state: what the command does now.
        last_look: when it last looked for images, or waited for something.
        backlog: number of images that wait.
        unsent: number of sheets that the webhook has not sent.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.state, self.last_look, self.backlog, self.unsent = "starting", now(), 0, 0
        self._path, self._about = path, about
        self._statuses: Counter[str] = Counter()
        self._latencies_s: deque[float] = deque(maxlen=LATENCIES)
        self._last_result: str | None = None
        self._last_error: dict[str, str] | None = None
        self._told: dict[str, float] = {}  # message -> when it was told
        self._lock, self._end = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._write_on, name="health", daemon=True)
        self._thread.start()

    def count(self, status: str, modified_ns: int) -> None:
        """Count a result that has been written, of a file that was last changed at this time."""
        with self._lock:
            self._statuses[status] += 1
            self._last_result = now()
            if status != STATUS_UNREADABLE:
                self._latencies_s.append(max(0.0, (time.time_ns() - modified_ns) / 1e9))

    def trouble(self, message: str) -> None:
        """Log a warning and keep it as the last error; the same one is logged at most once a minute."""
        now_s = time.monotonic()
        with self._lock:
            self._last_error = {"time": now(), "message": message}
            self._told = {one: told_s for one, told_s in self._told.items() if now_s - told_s < SAME_S}
            is_new = self._told.setdefault(message, now_s) == now_s
        if is_new:
            log.warning("%s", message)

    def content(self) -> dict[str, Any]:
        """What the file tells."""
        with self._lock:
            latencies_s, statuses = sorted(self._latencies_s), Counter(self._statuses)
            last = {"last_result": self._last_result, "last_error": self._last_error}
        part = {name: round(_quantile(latencies_s, share), 3) for name, share in (("p50", 0.5), ("p95", 0.95))}
        unreadable = statuses[STATUS_UNREADABLE]
        return {
            "state": self.state,
            "heartbeat": now(),
            "last_look": self.last_look,
            **self._about,
            "pid": os.getpid(),
            "processed": statuses.total() - unreadable,
            "with_defect": statuses[STATUS_DEFECT],
            STATUS_BLANK: statuses[STATUS_BLANK],
            STATUS_UNREADABLE: unreadable,
            "backlog": self.backlog,
            "latency_s": {**part, "of": len(latencies_s)} if latencies_s else None,
            "webhook_unsent": self.unsent,
            **last,
        }

    def close(self) -> None:
        """Write the file for the last time."""
        self._end.set()
        self._thread.join()
        self._write()

    def _write_on(self) -> None:
        while True:
            self._write()
            if self._end.wait(WRITE_S):
                return

    def _write(self) -> None:
        try:
            write_text(self._path, json.dumps(self.content(), indent=2) + "\n")
        except ResourceError as error:  # a full disk, which others notice too: the heartbeat in the file grows old
            log.debug("%s", error)


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0.0
