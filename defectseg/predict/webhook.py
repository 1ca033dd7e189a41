"""Tells an address about sheets that meet a rule: at least once each, together, and without delaying the images."""

import json
import logging
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from defectseg.errors import UsageError
from defectseg.files import atomic_path, resource_errors
from defectseg.machine import __version__
from defectseg.progress import some

log = logging.getLogger(__name__)

POST_S, LONGEST_WAIT_S = 60.0, 900.0
TIMEOUT_S = 10.0
MOST_SHEETS = 1000  # of one message; others are in the next
LOOK_S = 0.5
_SENT = "sent_bytes"


def check_address(url: str) -> None:
    """Refuse what is not a plain http(s) address. The message does not tell it, since it may be a secret.

    Raises:
        UsageError: it is not.
    """
    try:
        parts = urlsplit(url)
        is_fit = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_fit = False
    if not is_fit or "@" in parts.netloc or not url.isascii() or any(one <= " " or one == "\x7f" for one in url):
        raise UsageError("expected an address such as https://host/path, without user and spaces.", argument="webhook")


class Webhook:
    """Sends sheets to an address from a thread of its own. Use it with `contextlib.closing`.

    A file holds a JSON line for each sheet and, after each message that was accepted, a line that tells how many of the
    bytes before it are sent. What is not sent when the process ends is sent by the next. Messages that fail are sent
    again, after longer and longer waits.

    Args:
        path: the file; made if absent.
        url: the address. Only its host is ever told.
        trouble: called with a message for people.

    Attributes:
        unsent: number of sheets that are not sent yet.

    Raises:
        ResourceError: the file cannot be written.
    """

    def __init__(self, path: Path, url: str, trouble: Callable[[str], object]) -> None:
        self._path, self._url, self._trouble = path, url, trouble
        self._host = urlsplit(url).hostname
        self._lock, self._end = threading.Lock(), threading.Event()
        with resource_errors(path):
            self.unsent = _keep_unsent(path)
            self._file = path.open("ab")
        self._sent_bytes = 0
        self._opener = build_opener(_NoRedirect)
        self._thread = threading.Thread(target=self._send, name="webhook", daemon=True)
        self._thread.start()

    def add(self, sheet: dict[str, Any]) -> None:
        """Remember a sheet, on the disk. Raises ResourceError."""
        with self._lock:
            self._append(sheet)
            self.unsent += 1

    def close(self) -> None:
        """Stop sending, after the message that is on its way."""
        self._end.set()
        self._thread.join(2 * TIMEOUT_S)
        with suppress(OSError):
            self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        with resource_errors(self._path):
            self._file.write(json.dumps(line).encode() + b"\n")
            self._file.flush()
            os.fsync(self._file.fileno())

    def _send(self) -> None:
        failures, due_s = 0, 0.0
        while not self._end.wait(LOOK_S):
            if not self.unsent or time.monotonic() < due_s:
                continue
            try:
                self._send_some()
                failures = 0
            except Exception as error:
                failures += 1
                self._trouble(f"webhook: {self._host} was not told about {self.unsent} sheets ({_reason(error)})")
            due_s = time.monotonic() + min(LONGEST_WAIT_S, POST_S * 2**failures)

    def _send_some(self) -> None:
        """Send what is waiting as one message, and mark it as sent. Raises Exception: it was not accepted."""
        sheets: list[dict[str, Any]] = []
        with self._path.open("rb") as handle:
            handle.seek(self._sent_bytes)
            while len(sheets) < MOST_SHEETS and (line := handle.readline()).endswith(b"\n"):
                sheets += [sheet for sheet in [json.loads(line)] if _SENT not in sheet]
            sent_bytes = handle.tell() - (0 if line.endswith(b"\n") else len(line))
        self._post(sheets)
        with self._lock:
            self._sent_bytes, self.unsent = sent_bytes, self.unsent - len(sheets)
            self._append({_SENT: sent_bytes})

    def _post(self, sheets: list[dict[str, Any]]) -> None:
        names = some(f"{sheet['day']}/{sheet['image_id']} ({sheet['classes']})" for sheet in sheets)
        text = f"defectseg: {len(sheets)} sheets meet the rule: {names}"
        content = {"text": text, "sheets": sheets, "more": self.unsent - len(sheets)}
        headers = {"Content-Type": "application/json", "User-Agent": f"defectseg/{__version__}"}
        request = Request(self._url, json.dumps(content).encode(), headers)  # noqa: S310  # http(s), see check_address
        with self._opener.open(request, timeout=TIMEOUT_S):
            pass


class _NoRedirect(HTTPRedirectHandler):
    """Redirections would lead to other hosts, and make a GET of a POST: they count as a refusal."""

    def redirect_request(self, *arguments: Any) -> None:
        """See HTTPRedirectHandler."""


def _keep_unsent(path: Path) -> int:
    """Leave only the unsent lines in the file, and return their number. What a killed process began is left out."""
    if not path.exists():
        return 0
    sent_bytes = count = 0
    with path.open("rb") as source:
        for line in source:
            with suppress(ValueError, AttributeError):
                sent_bytes = json.loads(line).get(_SENT, sent_bytes)
        source.seek(sent_bytes)
        with atomic_path(path) as temporary, temporary.open("wb") as target:
            for line in source:
                with suppress(ValueError):
                    if line.endswith(b"\n") and _SENT not in json.loads(line):
                        target.write(line)
                        count += 1
    return count


def _reason(error: Exception) -> str:
    """Why a message was not accepted, without the address."""
    if isinstance(error, HTTPError):
        return f"it answered {error.code}"
    if isinstance(error, URLError):
        return str(error.reason)
    return "no HTTP" if isinstance(error, HTTPException) else (getattr(error, "strerror", "") or type(error).__name__)
