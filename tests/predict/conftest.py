"""Fixtures of the tests of `predict` and `watch`."""

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from defectseg.predict import webhook


class Address:
    """A server that keeps what it was sent; `answers` are the codes of its next answers, then 200."""

    def __init__(self) -> None:
        self.got: list[dict[str, Any]] = []
        self.times: list[float] = []
        self.answers: list[int] = []
        address = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                address.times.append(time.monotonic())
                content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                code = address.answers.pop(0) if address.answers else 200
                if code == 200:
                    address.got.append(content)
                self.send_response(code)
                self.send_header("Location", "/elsewhere")
                self.end_headers()

            def log_message(self, *arguments: object) -> None:
                """Say nothing."""

        self.server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/services/SECRET"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def names(self) -> list[list[str]]:
        """The images of each message."""
        return [[sheet["ImageId"] for sheet in message["sheets"]] for message in self.got]


@pytest.fixture
def address(monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    for name, value in (("POST_S", 0.05), ("LOOK_S", 0.005), ("TIMEOUT_S", 5.0)):
        monkeypatch.setattr(webhook, name, value)
    made = Address()
    yield made
    made.server.shutdown()
    made.server.server_close()
