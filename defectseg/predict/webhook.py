"""Tells an address about sheets that meet a rule: at least once each, together, and without delaying the images."""

import json
import os
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from defectseg.errors import UsageError
from defectseg.files import resource_errors, write_text
from defectseg.machine import __version__
from defectseg.progress import some

POST_S, LONGEST_WAIT_S = 60.0, 900.0
TIMEOUT_S, LOOK_S = 10.0, 0.5
MOST_SHEETS = 1000  # of one message; others are in the next
_SENT = "sent"


def check_address(url: str) -> None:
    """Refuse what is not a plain http(s) address, with a message that does not tell it, since it may be a secret.

    Raises:
        UsageError: it is not.
    """
    with suppress(ValueError):  # from the port
        parts = urlsplit(url)
        is_plain = url.isascii() and url.isprintable() and " " not in url and "@" not in parts.netloc
        if parts.scheme in ("http", "https") and parts.hostname and parts.port != 0 and is_plain:
            return
    raise UsageError("expected an address such as https://host/path, without user and spaces.", argument="webhook")


class Webhook:
    """Sends sheets to an address from a thread of its own. Use it with `contextlib.closing`.

    A file gets a line for each sheet and, after each message that was accepted, a line that tells how many of the
    sheets before it were sent. What is not sent when the process ends is sent by the next one. A message that fails is
    sent again after longer and longer waits.

    Args:
        path: the file; made if absent.
        url: the address. Only its host is ever told.
        trouble: called with a message for people.

    Attributes:
        unsent: the sheets that are not sent yet.

    Raises:
        ResourceError: the file cannot be written.
    """

    def __init__(self, path: Path, url: str, trouble: Callable[[str], object]) -> None:
        self._path, self._url, self._trouble = path, url, trouble
        self.unsent = _unsent(path)
        write_text(path, "".join(json.dumps(sheet) + "\n" for sheet in self.unsent))
        with resource_errors(path):
            self._file = path.open("ab")
        self._lock, self._end = threading.Lock(), threading.Event()
        self._opener = build_opener(_NoRedirect)
        self._thread = threading.Thread(target=self._send, daemon=True)
        self._thread.start()

    def add(self, sheet: dict[str, Any]) -> None:
        """Remember a sheet, on the disk. Raises ResourceError."""
        with self._lock:
            self._append(sheet)
            self.unsent.append(sheet)

    def close(self) -> None:
        """Stop sending, after the message that is on its way."""
        self._end.set()
        self._thread.join(2 * TIMEOUT_S)
        with resource_errors(self._path):
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
                sheets = self.unsent[:MOST_SHEETS]
                self._post(sheets)
                with self._lock:
                    del self.unsent[: len(sheets)]
                    self._append({_SENT: len(sheets)})
                failures = 0
            except Exception as error:  # of the network, of HTTP, or of the disk
                failures += 1
                self._trouble(f"webhook: {urlsplit(self._url).hostname} was not told ({_reason(error)}).")
            due_s = time.monotonic() + min(LONGEST_WAIT_S, POST_S * 2**failures)

    def _post(self, sheets: list[dict[str, Any]]) -> None:
        names = some(f"{sheet['day']}/{sheet['ImageId']} ({sheet['classes']})" for sheet in sheets)
        content = {"text": f"defectseg: {len(sheets)} sheets meet the rule: {names}", "sheets": sheets}
        headers = {"Content-Type": "application/json", "User-Agent": f"defectseg/{__version__}"}
        request = Request(self._url, json.dumps(content).encode(), headers)  # noqa: S310  # http(s), see check_address
        with self._opener.open(request, timeout=TIMEOUT_S):
            pass


class _NoRedirect(HTTPRedirectHandler):
    """Redirections would lead to other hosts, and make a GET of a POST: they count as a refusal."""

    def redirect_request(self, *arguments: Any) -> None:
        """See HTTPRedirectHandler."""


def _unsent(path: Path) -> list[dict[str, Any]]:
    """The sheets in the file that are not sent, each once. What a killed process only began to write is left out."""
    sheets: list[dict[str, Any]] = []
    with suppress(FileNotFoundError), path.open("rb") as handle:
        for line in handle:
            with suppress(ValueError):
                entry = json.loads(line)
                if _SENT in entry:
                    del sheets[: entry[_SENT]]
                else:
                    sheets.append(entry)
    return list({json.dumps(sheet): sheet for sheet in sheets}.values())


def _reason(error: Exception) -> str:
    """Why a message was not accepted, without the address."""
    if isinstance(error, HTTPError):
        return f"it answered {error.code}"
    return str(error.reason) if isinstance(error, URLError) else type(error).__name__
