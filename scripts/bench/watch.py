#!/usr/bin/env python
"""Measure `defectseg watch` behind a camera: is an image lost or done twice, does memory grow, how long does it take?

A camera writes a picture of 64x400 px every 200 ms, as a child of this script. The day's journal already holds the
names of earlier images, and the camera's folder may hold old files. In the middle, the watch is killed with SIGKILL and
started again. Prints a markdown table of memory and latencies over time, and counts at the end the images without a
line in the journal or without pictures, and those with two lines.

Usage: python scripts/bench/watch.py MODEL [--minutes 20] [--every-ms 200] [--names 400000] [--old-files 0]
           [--folder DIR]
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import asdict
from datetime import datetime
from pathlib import Path

import cv2
import numpy as np
from predict import print_machine

from defectseg.model.locate import model_paths
from defectseg.predict.output import output_folder
from defectseg.predict.predict import load
from defectseg.predict.tables import IMAGE_COLUMNS, Record

CAMERA = """
import itertools, os, sys, time
from pathlib import Path
source, folder, count, every_s = Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
contents = [path.read_bytes() for path in sorted(source.iterdir())]
begun = time.monotonic()
for number in range(count):
    time.sleep(max(0, begun + number * every_s - time.monotonic()))
    content = contents[number % len(contents)]
    with (folder / f"new_{number:06}.jpg").open("wb") as handle:  # in two parts, as slow cameras write
        handle.write(content[: len(content) // 2])
        handle.flush()
        time.sleep(0.01)
        handle.write(content[len(content) // 2 :])
"""
ROWS = 12  # of the table


def make_pictures(folder: Path) -> None:
    rng = np.random.default_rng(0)
    folder.mkdir()
    for number in range(20):
        picture = cv2.GaussianBlur(rng.normal(120, 40, (64, 400)), (0, 0), 2) + rng.normal(0, 5, (64, 400))
        cv2.imwrite(str(folder / f"{number:02}.jpg"), np.clip(picture, 0, 255).astype(np.uint8))


def fill_journal(model: str, out: Path, names: int) -> None:
    """Let the folder of today hold as many names as after some hours."""
    loaded = load(
        model_paths(model), classes=None, device="auto", runtime="auto", workers=None, tta=None, bit_depth=None
    )
    row = dict.fromkeys(IMAGE_COLUMNS, "") | {"status": "clean", "height": 64, "width": 400, "regions": 0}
    row |= {"classes": "", "defect_area_px": 0, "defect_area_percent": "0.0000", "size_bytes": 5000}
    row |= {"modified_ns": time.time_ns() - 10**9 * 3600}
    classes = range(1, len(loaded.network.class_names) + 1)
    day = out / datetime.now().astimezone().date().isoformat()
    with output_folder(day, loaded.key), (day / "journal.jsonl").open("a", encoding="utf-8") as handle:
        for number in range(names):
            image_id = f"old_{number:07}.jpg"
            record = Record({**row, "ImageId": image_id}, [[image_id, one, ""] for one in classes], [], [])
            handle.write(json.dumps(asdict(record)) + "\n")


def start(model: str, folder: Path, out: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "defectseg", "watch", model, str(folder), "--out", str(out)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) / 1000 for line in status.splitlines() if line.startswith("VmRSS:"))


def wait_until_running(out: Path, pid: int) -> None:
    health: dict[str, object] = {}
    while (health.get("pid"), health.get("state")) != (pid, "running"):
        time.sleep(0.1)
        path = out / "health.json"
        health = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def stop(watch: "subprocess.Popen[str]", out: Path) -> list[list[str]]:
    """What it prints, and what it says, by lines."""
    wait_until_running(out, watch.pid)
    watch.send_signal(signal.SIGTERM)
    return [text.splitlines() for text in watch.communicate(timeout=300)]


def show(watch: "subprocess.Popen[str]", out: Path, begun_s: float, written: int) -> None:
    path = out / "health.json"
    health = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    if health.get("pid") != watch.pid:
        health = {}
    told = {**health, **health.get("latency_s", {})}
    cells = [written, *(told.get(name, "-") for name in ("processed", "backlog", "p50", "p95"))]
    minutes = (time.monotonic() - begun_s) / 60
    print(f"| {minutes:.1f} | {resident_mb(watch.pid):.1f} |", *(f"{cell} |" for cell in cells))
    sys.stdout.flush()


def lines_of(out: Path) -> Counter[str]:
    """The images of the camera in the journals, with the number of lines of each."""
    found: Counter[str] = Counter()
    for path in out.glob("*/journal.jsonl"):
        with path.open("rb") as handle:
            found.update(json.loads(line)["image"]["ImageId"] for line in handle if b'"new_' in line[:40])
    return found


def measure(model: str, work: Path, minutes: float, every_s: float) -> None:
    folder, out, count = work / "camera", work / "out", round(60 * minutes / every_s)
    begun_s = time.monotonic()
    watch = start(model, folder, out)
    wait_until_running(out, watch.pid)
    print(f"It watches {time.monotonic() - begun_s:.1f} s after its start.\n")
    print("| minute | VmRSS in MB | written | processed since its start | backlog | p50 in s | p95 in s |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    begun_s = time.monotonic()
    asked = [str(work / "source"), str(folder), str(count), str(every_s)]
    camera = subprocess.Popen([sys.executable, "-c", CAMERA, *asked])
    for row in range(1, ROWS + 1):
        time.sleep(max(0.0, begun_s + 60 * minutes * row / ROWS - time.monotonic()))
        show(watch, out, begun_s, len(list(folder.glob("new_*"))))
        if row == ROWS // 2:
            watch.kill()
            watch.wait()
            print("| killed, started again | | | | | | |")
            watch = start(model, folder, out)
    camera.wait()
    written = {path.name for path in folder.glob("new_*")}
    while len(lines_of(out)) < len(written) and time.monotonic() < begun_s + 60 * minutes + 120:
        time.sleep(1.0)
    show(watch, out, begun_s, len(written))
    stopping_s = time.monotonic()
    printed, said = stop(watch, out)
    print(f"\nStopped after {time.monotonic() - stopping_s:.1f} s with exit code {watch.returncode}: {printed[0]}")
    lines = lines_of(out)
    pictures = {path.stem for path in out.glob("*/masks/*")} & {path.stem for path in out.glob("*/overlays/*")}
    bare, twice = {name[:-4] for name in written} - pictures, sum(one > 1 for one in lines.values())
    print(f"Written {len(written)}; lost {len(written - set(lines))}; without pictures {len(bare)}; twice {twice}.")
    print("".join(f"Said: {line}\n" for line in said[:20]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--every-ms", type=float, default=200.0)
    parser.add_argument("--names", type=int, default=400_000)
    parser.add_argument("--old-files", type=int, default=0, help="files in the camera's folder that are done already")
    parser.add_argument("--folder", type=Path)
    asked = parser.parse_args()
    print_machine()
    with tempfile.TemporaryDirectory(dir=asked.folder) as temporary:
        work = Path(temporary)
        make_pictures(work / "source")
        (work / "camera").mkdir()
        stop(start(asked.model, work / "camera", work / "out"), work / "out")  # which makes the folder one of watch
        fill_journal(asked.model, work / "out", asked.names)
        day_s = json.loads(next((work / "out").glob("*/journal.jsonl")).open().readline())["image"]["modified_ns"]
        for number in range(asked.old_files):
            path = work / "camera" / f"old_{number:07}.jpg"
            path.write_bytes(b"0" * 5000)
            os.utime(path, ns=(day_s, day_s))
        measure(asked.model, work, asked.minutes, asked.every_ms / 1000)


if __name__ == "__main__":
    main()
