"""What a command that runs for months tells about itself in a file."""

import json
import logging
import os
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from defectseg.errors import ResourceError
from defectseg.files import write_text
from defectseg.machine import now
from defectseg.predict.tables import STATUS_UNREADABLE, STATUSES, counts_of

log = logging.getLogger(__name__)

WRITE_S, SAME_S = 5.0, 60.0
LATENCIES = 1000


class Health:
    """Writes the health file every few seconds, from a thread of its own. Use it with `contextlib.closing`.

    Args:
        path: the file.

    Attributes:
        told: entries of the file, to be changed from one thread. More are in docs/watch.md.
    """

    def __init__(self, path: Path, **told: Any) -> None:
        self.told: dict[str, Any] = {"state": "starting", "last_look": now(), "last_error": None, **told}
        self._path, self._told_s = path, 0.0
        self._statuses = Counter(dict.fromkeys(STATUSES, 0))  # all of them, as the other thread may count
        self._latencies_s: list[float] = []
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._write_on, daemon=True)
        self._thread.start()

    def count(self, status: str, modified_ns: int) -> None:
        """Count a result that has been written, of a file that was last changed at this time."""
        self._statuses[status] += 1
        if status != STATUS_UNREADABLE:
            latency_s = max(0.0, (time.time_ns() - modified_ns) / 1e9)
            self._latencies_s = [*self._latencies_s[1 - LATENCIES :], latency_s]  # the other thread may read the old

    def trouble(self, message: str) -> None:
        """Log a warning and keep it as the last error; the same one is logged at most once a minute."""
        last, now_s = self.told["last_error"], time.monotonic()
        if last is None or last["message"] != message or now_s - self._told_s > SAME_S:
            self._told_s = now_s
            log.warning("%s", message)
        self.told["last_error"] = {"time": now(), "message": message}

    def content(self) -> dict[str, Any]:
        """What the file tells."""
        latencies_s = sorted(self._latencies_s)
        shares = {"p50": 0.5, "p95": 0.95} if latencies_s else {}
        return {
            **self.told,
            "heartbeat": now(),
            "pid": os.getpid(),
            **counts_of(self._statuses),
            "latency_s": {name: round(latencies_s[int(share * len(latencies_s))], 3) for name, share in shares.items()},
        }

    def close(self) -> None:
        """Write the file for the last time."""
        self._end.set()
        self._thread.join()
        self._write()

    def _write_on(self) -> None:
        self._write()
        while not self._end.wait(WRITE_S):
            self._write()

    def _write(self) -> None:
        with suppress(ResourceError):  # a full disk, which others notice: the heartbeat in the file grows old
            write_text(self._path, json.dumps(self.content(), indent=2) + "\n")
