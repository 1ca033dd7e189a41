"""Kaggle's real client, where it is installed, against a stand-in for its service on this machine."""

import io
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(find_spec("kaggle") is None, reason="needs the extra kaggle")

ACCOUNT = {"KAGGLE_USERNAME": "somebody", "KAGGLE_KEY": "0123456789abcdef"}
# The endpoint is a constant of the client; waiting between its retries would take a minute.
SCRIPT = """
import json, sys, time
from dataclasses import asdict
from pathlib import Path
import kagglesdk.kaggle_env as env
env._env_to_endpoint[env.KaggleEnv.PROD] = sys.argv[1]
time.sleep = lambda seconds: None
from defectseg.data.download import Figures, download_severstal
from defectseg.errors import DefectsegError
try:
    print(json.dumps(asdict(download_severstal(Path(sys.argv[2]), expected=Figures(3, 2, (1, 0, 2))))))
except DefectsegError as error:
    sys.exit(str(error))
"""


def archive() -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as packed:
        packed.writestr("train.csv", "ImageId,ClassId,EncodedPixels\na.jpg,1,1 2\na.jpg,3,5 1\nb.jpg,3,2 2\n")
        for image in "abc":
            packed.writestr(f"train_images/{image}.jpg", os.urandom(1_000_000))
    return content.getvalue()


class Service(ThreadingHTTPServer):
    """Answers as Kaggle does: the API redirects to a storage that serves ranges."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.content = archive()
        self.bytes_before_failure: int | None = None
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(302)
        self.send_header("Location", f"{self.server.url}/storage/data.zip?signed=1")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        content, start = self.server.content, 0
        if wanted is not None:
            if self.server.bytes_before_failure is not None:
                self.send_error(403, "the link has expired")
                return
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
        self.send_response(200 if wanted is None else 206)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", "Mon, 01 Jul 2019 10:00:00 GMT")
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        self.wfile.write(content[start : self.server.bytes_before_failure])

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def run(service: Service, tmp_path: Path) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if "proxy" not in name.lower() and "KAGGLE" not in name}
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, service.url, str(tmp_path / "out")],
        env={**kept, "HOME": str(tmp_path), "XDG_CONFIG_HOME": str(tmp_path), **ACCOUNT},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_real_client_continues_an_interrupted_download(service: Service, tmp_path: Path) -> None:
    service.bytes_before_failure = 2_000_000
    broken = run(service, tmp_path)
    assert broken.returncode == 1
    assert "What has arrived is kept: run the same command again to go on." in broken.stderr
    service.bytes_before_failure = None
    service.ranges.clear()
    whole = run(service, tmp_path)
    assert whole.returncode == 0, whole.stderr
    assert service.ranges[-1] == "bytes=1048576-"  # the client writes pieces of 1 MiB
    assert json.loads(whole.stdout)["masks_per_class"] == [1, 0, 2]  # and nothing else on stdout
    assert sorted(entry.name for entry in (tmp_path / "out").iterdir()) == ["train.csv", "train_images"]
