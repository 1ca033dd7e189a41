"""Nothing phones out: the commands work without a network, and none of them looks up or connects to an address.

Two witnesses. An audit hook, loaded into each Python that is started, writes down every attempt by Python code. The
kernel counts packets without a route, whoever sends them, in a network namespace that has none; where the system
permits no namespace, attempts by compiled code are not seen.
"""

import functools
import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import defectseg

HOOK = """
import os, sys

def watch(event, arguments):
    if event in ("socket.getaddrinfo", "socket.gethostbyname", "socket.gethostbyaddr", "urllib.Request"):
        told = arguments[0]
    elif event in ("socket.connect", "socket.sendto", "socket.sendmsg") and int(arguments[0].family) in (2, 10, 30):
        told = arguments[1]  # 2 is IPv4; 10 and 30 are IPv6 on Linux and macOS
    else:
        return
    with open(os.environ["ATTEMPTS"], "a") as attempts:
        print(event, told, file=attempts)

sys.addaudithook(watch)
"""
RUN = """
import json, os, signal, socket, sys, threading
from pathlib import Path
from defectseg.cli.main import main

def count_unroutable():
    names, counts = [line.split() for line in Path("/proc/net/snmp").read_text().splitlines() if line[:3] == "Ip:"]
    of_six = dict(line.split() for line in Path("/proc/net/snmp6").read_text().splitlines())
    return int(counts[names.index("OutNoRoutes")]) + int(of_six["Ip6OutNoRoutes"])

calls, has_namespace = json.loads(sys.argv[1])
ended = []
for arguments in calls:
    sys.argv = ["defectseg", *arguments]
    if arguments[0] == "watch":  # it ends by a signal alone
        threading.Timer(5, os.kill, [os.getpid(), signal.SIGTERM]).start()
    try:
        main()
    except SystemExit as error:
        ended.append(int(error.code or 0))
attempts = Path(os.environ["ATTEMPTS"])
told = attempts.read_text() if attempts.exists() else ""
unroutable = count_unroutable() if has_namespace else 0
# The witnesses see: a look-up, and a connection where no route is.
socket.getaddrinfo("127.0.0.1", 9)
if has_namespace:
    socket.socket().connect_ex(("192.0.2.1", 9))
    assert count_unroutable() > unroutable, "the kernel does not count"
assert attempts.exists(), "the hook does not see"
print(json.dumps({"codes": ended, "attempts": told, "unroutable": unroutable}), file=sys.stderr)
"""
# Whatever would silence a library that wants to phone home is taken away.
SILENCERS = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DO_NOT_TRACK", "NO_ALBUMENTATIONS_UPDATE")


@functools.cache
def _without_network() -> list[str]:
    """The words before a command that runs it in a network namespace of its own; none where that is not permitted."""
    for words in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        if (
            shutil.which("unshare")
            and subprocess.run([*words, "true"], capture_output=True, check=False).returncode == 0
        ):
            return words
    return []


@pytest.mark.slow
def test_no_command_opens_a_connection(data_folder: Path, trained_run: Path, tiny_recipe: Path, tmp_path: Path) -> None:
    (tmp_path / "hook").mkdir()
    (tmp_path / "hook" / "sitecustomize.py").write_text(HOOK)
    images = data_folder / "train_images"
    has_captum = find_spec("captum") is not None
    calls: list[list[object]] = [
        ["data", "export", "coco", data_folder, "--out", tmp_path / "coco"],
        ["data", "import", tmp_path / "coco", "--out", tmp_path / "data"],
        ["data", "check", tmp_path / "data"],
        ["info", trained_run],
        ["train", tiny_recipe, "--data", data_folder, "--out", tmp_path / "run", "--device", "cpu"],
        ["evaluate", tmp_path / "run", "--data", data_folder, "--out", tmp_path / "evaluation"],
        ["tune", tmp_path / "run", "--data", data_folder],
        ["export", trained_run, "--format", "openvino", "--data", data_folder, "--out", tmp_path / "m.xml"],
        ["predict", tmp_path / "m.xml", images, "--out", tmp_path / "openvino"],
        ["watch", tmp_path / "m.xml", images, "--out", tmp_path / "days"],
        ["predict", tmp_path / "run", images, "--out", tmp_path / "torch", "--runtime", "torch", "--device", "cpu"],
        *(["predict", tmp_path / "m.xml", images, "--out", tmp_path / f"{n}", "--shard", f"{n}/2"] for n in (1, 2)),
        ["merge", tmp_path / "1", tmp_path / "2", "--out", tmp_path / "merged"],
        ["drift", tmp_path / "openvino", "--group", ".", "--out", tmp_path / "drift"],
        *([["explain", trained_run, min(images.iterdir()), "--out", tmp_path / "explained"]] if has_captum else []),
        ["compare", tmp_path / "torch", tmp_path / "openvino", "--out", tmp_path / "changes"],
    ]
    words = _without_network()
    asked = json.dumps([[[str(word) for word in call] for call in calls], bool(words)])
    kept = {name: value for name, value in os.environ.items() if name not in SILENCERS}
    root = Path(defectseg.__file__).parents[1]
    done = subprocess.run(
        [*words, sys.executable, "-c", RUN, asked],
        env={
            **kept,
            "PYTHONPATH": os.pathsep.join([str(tmp_path / "hook"), str(root)]),
            "ATTEMPTS": str(tmp_path / "attempts"),
            "DEFECTSEG_CACHE_DIR": str(tmp_path / "cache"),
        },
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stderr.splitlines()[-1])
    assert found["codes"] == [0] * len(calls), done.stderr
    assert found["attempts"] == ""
    assert found["unroutable"] == 0
