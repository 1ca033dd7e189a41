"""The Ray engine on a local cluster of at least two processes, and on a local server that speaks S3.

Each command runs in a process of its own, as Ray starts threads and handlers that stay. `scripts/test_ray` runs these
tests; without the extra they are skipped.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg import errors, machine
from defectseg.errors import MissingExtraError, ResourceError
from defectseg.image.limits import MAX_PIXELS
from defectseg.inference.settings import Settings
from defectseg.machine import cores
from defectseg.model.info import read_model_info
from defectseg.model.locate import find_model, model_identity
from defectseg.predict.tables import OutputChoice
from defectseg.runtime.load import OPENVINO, versions_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("ray") and find_spec("moto")), reason="needs defectseg[dev,raytest]"),
]
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")  # see tests/faults
REPEATED = 40  # each of the 24 sheets, where a run has to last
RAY = ("--engine", "ray", "--workers", 1)

MAY_MOUNT = (
    bool(shutil.which("unshare"))
    and not subprocess.run([*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
)

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def mark() -> str:
    """What tells the processes of a test from all others, as they inherit it."""
    return f"DEFECTSEG_TEST={uuid.uuid4().hex}"


@pytest.fixture
def start(tmp_path: Path, mark: str) -> Iterator[Start]:
    """Starts `defectseg predict` in the test's folder; whatever is left of it at the end is killed."""
    name, _, value = mark.partition("=")
    kept = {key: text for key, text in os.environ.items() if not key.startswith(("AWS_", "RAY_"))}
    root = str(Path(__file__).parents[2])

    begun: list[subprocess.Popen[str]] = []

    def begin(*arguments: object, environment: dict[str, str] | None = None) -> "subprocess.Popen[str]":
        process = subprocess.Popen(
            [sys.executable, "-m", "defectseg", "predict", *map(str, arguments)],
            env={**kept, name: value, "PYTHONPATH": root, **(environment or {})},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        begun.append(process)
        return process

    yield begin
    for pid in _processes(mark):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for process in begun:
        process.communicate()


@pytest.fixture
def run(start: Start) -> Callable[..., tuple[int, str]]:
    """Runs `defectseg predict`. Returns the exit code and what it wrote to stderr."""

    def call(*arguments: object, **options: Any) -> tuple[int, str]:
        process = start(*arguments, **options)
        _, told = process.communicate(timeout=180)
        return process.returncode, told

    return call


@pytest.fixture
def many(data_folder: Path, tmp_path: Path) -> Path:
    """960 sheets."""
    folder = tmp_path / "many"
    folder.mkdir()
    for file in sorted((data_folder / "train_images").iterdir()):
        for number in range(REPEATED):
            (folder / f"{number:02}_{file.name}").hardlink_to(file)
    return folder


def _processes(mark: str, name: str = "") -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        try:
            is_named_so = entry.name.isdecimal() and (entry / "cmdline").read_bytes().startswith(name.encode())
            if is_named_so and mark.encode() in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:  # it has ended, or belongs to another
            continue
    return found


def _lines(out: Path) -> list[str]:
    journal = out / "journal.jsonl"
    return journal.read_text().splitlines() if journal.exists() else []


def _wait_for_lines(out: Path, count: int, process: "subprocess.Popen[str]") -> None:
    while len(_lines(out)) < count:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)


def _assert_same(one: Path, other: Path) -> None:
    first, second = (
        {path.relative_to(root): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()}
        for root in (one, other)
    )
    names = set(first) ^ set(second) | {name for name in first if first[name] != second.get(name)}
    assert names == {Path("run.json")}
    assert any(name.parts[0] == "masks" for name in first)


def test_both_engines_write_the_same_files_and_continue_each_other(
    run: Callable[..., tuple[int, str]], trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(data_folder / "train_images", images)
    (images / "line 2").mkdir()
    (images / "line 2" / "broken.png").write_bytes(b"no picture")
    cv2.imwrite(str(images / "line 2" / "large.png"), np.zeros((300, 300), np.uint8))
    limited = ("images", "--max-pixels", 60_000)
    assert run(trained_run, *limited, "--out", "local")[0] == 3
    code, told = run(trained_run, *limited, "--out", "ray", *RAY)
    assert code == 3, told
    assert "--max-pixels 90000" in told, "messages of other processes spell flags, too"
    assert told.count("warning: ") == 2, "each image once"
    _assert_same(tmp_path / "local", tmp_path / "ray")
    (images / "line 2" / "broken.png").unlink()
    (tmp_path / "ray" / "masks" / "line 2" / "large.png").unlink(missing_ok=True)
    assert run(trained_run, "images", "--out", "ray")[0] == 0
    ran = json.loads((tmp_path / "ray" / "run.json").read_text())
    assert (ran["already_done"], ran["processed"]) == (24, 1)
    assert len(ran["runs"]) == 1, "the engine does not count among what computed the results"


def test_shards_rules_classes_and_sizes_in_mm_are_as_without_ray(
    run: Callable[..., tuple[int, str]], trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    images = tmp_path / "images"
    shutil.copytree(data_folder / "train_images", images)
    for number in range(8):
        (images / f"broken{number}.png").write_bytes(b"no picture")
    for options, expected in [
        (("--classes", "2,3,4", "--mm-per-px", "0.5x0.8", "--fail-on", "any:length_mm=1", "--shard", "1/2"), 10),
        (("--max-unreadable", 8, "--outputs", "masks,regions", "--tta", "flips"), 0),
        (("--max-unreadable", 7), 3),
    ]:
        for engine, more in [("local", ()), ("ray", RAY)]:
            code, told = run(trained_run, "images", "--out", engine, "--overwrite", *options, *more)
            assert code == expected, told
        _assert_same(tmp_path / "local", tmp_path / "ray")
        ran, other = (json.loads((tmp_path / name / "run.json").read_text()) for name in ("local", "ray"))
        for name in ("key", "processed", "with_defect", "unreadable", "images_in_folder"):
            assert ran[name] == other[name], name
        assert ran.get("fail_on") == other.get("fail_on")
        assert ran.get("own_images_sha256") == other.get("own_images_sha256")


def test_a_killed_process_costs_nothing(
    run: Callable[..., tuple[int, str]], start: Start, trained_run: Path, many: Path, mark: str, tmp_path: Path
) -> None:
    assert run(trained_run, many, "--out", "local")[0] == 0
    process = start(trained_run, many, "--out", "ray", *RAY)
    _wait_for_lines(tmp_path / "ray", 100, process)
    workers = _processes(mark, "ray::Worker")
    assert len(workers) == cores()
    os.kill(workers[0], signal.SIGKILL)
    _, told = process.communicate(timeout=180)
    assert process.returncode == 0, told
    records = [json.loads(line)["image"]["ImageId"] for line in _lines(tmp_path / "ray")]
    assert sorted(records) == sorted(path.name for path in many.iterdir()), "each image once"
    _assert_same(tmp_path / "local", tmp_path / "ray")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 130)])
def test_a_stopped_command_leaves_no_worker_and_is_continued_by_the_same_command(
    number: signal.Signals,
    code: int,
    run: Callable[..., tuple[int, str]],
    start: Start,
    trained_run: Path,
    many: Path,
    mark: str,
    tmp_path: Path,
) -> None:
    process = start(trained_run, many, "--out", "ray", *RAY)
    _wait_for_lines(tmp_path / "ray", 100, process)
    process.send_signal(signal.SIGSTOP)
    assert run(trained_run, many, "--out", "ray")[0] == 4, "one run at a time"
    process.send_signal(number)
    process.send_signal(signal.SIGCONT)
    _, told = process.communicate(timeout=60)
    assert process.returncode == code, told
    name = "ray::Worker" if number == signal.SIGKILL else ""  # Ray's own helpers outlive a head that was killed
    for _ in range(300):
        if not _processes(mark, name):
            break
        time.sleep(0.1)
    assert _processes(mark, name) == []
    before = len(_lines(tmp_path / "ray"))
    assert run(trained_run, many, "--out", "ray", *RAY)[0] == 0
    ran = json.loads((tmp_path / "ray" / "run.json").read_text())
    assert 0 < ran["already_done"] <= before < 960
    assert ran["already_done"] + ran["processed"] == 960
    assert run(trained_run, many, "--out", "local")[0] == 0
    _assert_same(tmp_path / "local", tmp_path / "ray")


@pytest.mark.skipif(not MAY_MOUNT, reason="needs a namespace of its own for a small disk")
def test_a_full_disk_ends_the_run_and_the_same_command_continues(
    run: Callable[..., tuple[int, str]], trained_run: Path, many: Path, tmp_path: Path
) -> None:
    (tmp_path / "disk").mkdir()
    predict = " ".join(map(str, (sys.executable, "-m defectseg predict", trained_run, many, "--out disk/out", *RAY)))
    steps = f"""
        mount -t tmpfs -o size=1m none disk
        {predict}
        echo $? > code
        mount -t tmpfs -o remount,size=100m none disk
        {predict}
        cp -r disk/out after
    """
    script = subprocess.run(
        [*OWN_MOUNTS, "bash", "-c", steps],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
    )
    assert (tmp_path / "code").read_text() == "4\n", script.stderr
    assert "no space left on the disk" in script.stderr
    ran = json.loads((tmp_path / "after" / "run.json").read_text())
    assert ran["status"] == "finished"
    assert ran["already_done"] + ran["processed"] == 960
    assert run(trained_run, many, "--out", "local")[0] == 0
    _assert_same(tmp_path / "local", tmp_path / "after")


@pytest.mark.parametrize(
    ("address", "code", "told"),
    [("127.0.0.1:1", 4, "no Ray cluster answers"), ("ray://head:10001", 4, "HOST:PORT"), ("x:y", 4, "HOST:PORT")],
)
def test_an_address_without_a_cluster_is_refused(
    address: str, code: int, told: str, run: Callable[..., tuple[int, str]], trained_run: Path, many: Path
) -> None:
    ended = run(trained_run, many, "--out", "out", *RAY, environment={"RAY_ADDRESS": address})
    assert ended[0] == code
    assert told in ended[1]
    assert ended[1].count("\n") == 1


def test_a_ray_that_does_not_start_here_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    from defectseg.predict.ray import _connect

    def too_slow(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with pytest.raises(errors.CannotContinueError, match=r"did not start on this machine \(The current node timed out"):
        _connect()


def test_ray_sends_no_usage_reports(start: Start, trained_run: Path, many: Path, mark: str, tmp_path: Path) -> None:
    process = start(trained_run, many, "--out", "ray", *RAY, environment={"RAY_USAGE_STATS_ENABLED": "1"})
    _wait_for_lines(tmp_path / "ray", 1, process)
    own = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    others = [Path(f"/proc/{pid}") for pid in _processes(mark)]
    told = {path: (path / "cmdline").read_bytes() for path in others}
    # Neither forks of the command itself nor processes whose title covers what they were started with.
    of_ray = [path for path, line in told.items() if line != own and not line.startswith(b"ray::")]
    assert len(of_ray) > 3
    for path in of_ray:
        assert b"RAY_USAGE_STATS_ENABLED=0" in (path / "environ").read_bytes().split(b"\0"), path


# A process of the engine, without Ray


@pytest.fixture
def worker(trained_run: Path) -> Any:
    """A process as the driver sets it up."""
    models = (find_model(trained_run),)
    versions = versions_of([OPENVINO])
    environment: dict[str, str] = {}
    limits = (MAX_PIXELS, 1.5)
    from defectseg.predict.ray import Worker

    return Worker(
        models,
        "cpu",
        "auto",
        model_identity(models),
        1,
        str(Path.cwd()),
        versions,
        limits,
        errors.spelling,
        environment,
    )


@pytest.fixture
def job(trained_run: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A job, and the cores of this process as they were."""
    monkeypatch.setattr(machine, "most_cores", 0)
    from defectseg.predict.ray import Job

    return Job(Settings.of(read_model_info(find_model(trained_run))), OutputChoice(), ())


def test_a_machine_that_is_not_as_that_of_the_command_is_named(worker: Any, job: Any, tmp_path: Path) -> None:
    host = socket.gethostname()
    for other, told in [
        (replace(worker, versions={**worker.versions, "numpy": "0.1"}), "'numpy': '0.1'"),
        (replace(worker, identity="0"), "another file"),
        (replace(worker, models=(tmp_path / "model.safetensors",)), "does not see"),
    ]:
        with pytest.raises(ResourceError, match=f"{host}.*{told}"):
            other.work(None, ())
    with pytest.raises(ResourceError, match=f"{host}.*marker"):
        worker.work(replace(job, seen=(tmp_path / "marker",)), ())


def test_errors_survive_the_way_between_processes() -> None:
    import pickle

    for error in (MissingExtraError("training", "train"), ResourceError("full", argument="out", go_on={"workers": 1})):
        copy = pickle.loads(pickle.dumps(error))
        assert (type(copy), str(copy)) == (type(error), str(error))


# Object stores


@pytest.fixture
def store(data_folder: Path) -> Iterator[tuple[str, Callable[[str, bytes], None]]]:
    """The address of a server that speaks S3, with the bucket `mill`; and a function that puts an object there."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    server = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-p", str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )

    def put(key: str, content: bytes) -> None:
        headers = {
            "Content-Type": "image/png",  # urllib's own is that of a form, which the server would read
            "Authorization": "AWS4-HMAC-SHA256 Credential=key/20260101/us-east-1/s3/aws4_request",  # not checked
        }
        request = urllib.request.Request(f"{address}/{key}", data=content, method="PUT", headers=headers)
        for left in range(50, -1, -1):  # it takes seconds to start
            try:
                urllib.request.urlopen(request, timeout=10).close()
                return
            except OSError:
                if not left:
                    raise
                time.sleep(0.2)

    try:
        put("mill", b"")
        put("empty", b"")
        yield address, put
    finally:
        server.kill()
        server.wait()


class _Forbidding(BaseHTTPRequestHandler):
    """A store whose credentials do not permit to list."""

    def do_GET(self) -> None:
        content = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@pytest.fixture
def forbidding() -> Iterator[str]:
    """The address of a store that permits nothing."""
    with ThreadingHTTPServer(("127.0.0.1", 0), _Forbidding) as server:
        threading.Thread(target=server.serve_forever).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def _secrets(address: str) -> dict[str, str]:
    region = {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    return {"AWS_ENDPOINT_URL": address, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret", **region}


def test_an_object_store_gives_the_same_rows_and_pictures_as_a_folder(
    run: Callable[..., tuple[int, str]], trained_run: Path, data_folder: Path, tmp_path: Path, store: Any
) -> None:
    address, put = store
    images = tmp_path / "images"
    shutil.copytree(data_folder / "train_images", images / "line 2")
    (images / "broken.png").write_bytes(b"no picture")
    for file in (path for path in images.rglob("*") if path.is_file()):
        put(f"mill/june/{file.relative_to(images)}".replace(" ", "%20"), file.read_bytes())
    for passed_over in ("june/.hidden.png", "june/notes.txt", "june/a/%2Fb.png", "july.png"):
        put(f"mill/{passed_over}", b"other")
    secrets = _secrets(address)
    code, told = run(trained_run, "s3://mill/june", "--out", "stored", *RAY, environment=secrets)
    assert code == 3, told
    assert "s3://mill/june/broken.png: " in told, "not the name of a copy"
    assert run(trained_run, "images", "--out", "local")[0] == 3
    for name in ("predictions.csv", "regions.csv"):
        assert (tmp_path / "stored" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
    for path in (tmp_path / "local" / "masks").rglob("*.png"):
        stored = tmp_path / "stored" / path.relative_to(tmp_path / "local")
        assert stored.read_bytes() == path.read_bytes()
    put("mill/june/broken.png", (images / "line 2").iterdir().__next__().read_bytes())
    assert run(trained_run, "s3://mill/june/", "--out", "stored", *RAY, environment=secrets)[0] == 0
    ran = json.loads((tmp_path / "stored" / "run.json").read_text())
    assert (ran["already_done"], ran["processed"]) == (24, 1), "size and time are those of the list"


def test_an_object_store_that_gives_nothing_is_named(
    run: Callable[..., tuple[int, str]], trained_run: Path, store: Any, forbidding: str
) -> None:
    secrets = _secrets(store[0])
    without = {name: "" if name.startswith(("AWS_ACC", "AWS_SEC")) else secrets[name] for name in secrets}
    for where, environment, code, told in [
        ("s3://empty", secrets, 4, "No image in s3://empty/"),
        ("s3://mill/august", secrets, 4, "No image in s3://mill/august/"),
        ("s3://absent/june", secrets, 4, "does not exist"),
        ("s3://mill", _secrets("http://127.0.0.1:1"), 4, "cannot be listed at http://127.0.0.1:1"),
        ("s3://mill", {**without, "AWS_SHARED_CREDENTIALS_FILE": "none", "AWS_CONFIG_FILE": "none"}, 4, "credentials"),
        ("s3://mill", _secrets(forbidding), 4, "Access Denied"),
        ("s3://", secrets, 2, "expected one INPUT"),
    ]:
        ended = run(trained_run, where, "--out", "out", *RAY, environment=environment)
        assert (ended[0], ended[1].count("\n")) == (code, 1), ended
        assert told in ended[1]


def test_only_ray_reads_an_object_store(run: Callable[..., tuple[int, str]], trained_run: Path, many: Path) -> None:
    code, told = run(trained_run, "s3://mill/june", "--out", "out")
    assert code == 2
    assert "--engine ray" in told
    assert run(trained_run, "s3://mill/june", many, "--out", "out", *RAY)[0] == 2
