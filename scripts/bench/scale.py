#!/usr/bin/env python
"""Measure `predict`, or `data check` and `data split`, on very many small images: time and peak memory.

Makes folders of hard links to twenty images of 32x64 px, and predicts with a very small network, with all outputs. The
images are given as a list on standard input. For each number of images: a fresh run, and the same command again, which
has nothing left to do. Prints a markdown table. All times count from the start of the process; "pending" is when it is
known which images have no result yet.

Usage: python scripts/bench/scale.py [--counts 10000,100000] [--model FILE] [--folder DIR] [--data]
"""

import argparse
import csv
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from predict import print_machine, random_bundle

from defectseg.image.find import find_images

SOURCES = 20  # ext4 allows 65,000 links to one file
RUN = """
import sys, time
from pathlib import Path
from defectseg.cli.predict import expand
from defectseg.image.find import find_images
from defectseg.machine import peak_memory_mb
from defectseg.predict import predict as room
model, out, begun = sys.argv[1], Path(sys.argv[2]), float(sys.argv[3])
seen = {}
def progress(done, total, text=""):
    seen.setdefault("pending" if not done else "first", time.time() - begun)
images = find_images(*expand(["-"]), keep_faulty=True)
room.predict(Path(model), images, out, device="cpu", progress=progress)
print(seen["pending"], seen.get("first", 0), time.time() - begun, peak_memory_mb())
"""


def make_images(folder: Path, count: int) -> list[Path]:
    (folder / "sources").mkdir(parents=True)
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    sources = [folder / "sources" / f"{number}.jpg" for number in range(SOURCES)]
    for source in sources:
        picture = cv2.GaussianBlur(rng.normal(120, 40, (32, 64)), (0, 0), 2)
        cv2.imwrite(str(source), np.clip(picture, 0, 255).astype(np.uint8))
    images = [folder / "images" / f"{number:07}.jpg" for number in range(count)]
    for number, image in enumerate(images):
        image.hardlink_to(sources[number % SOURCES])
    return images


def make_data(folder: Path, count: int) -> None:
    """Make a data folder of `count` pictures of noise and streaks; each fiftieth is a copy of the one before it."""
    (folder / "train_images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    rows = ["ImageId,ClassId,EncodedPixels"]
    picture = np.zeros((64, 400), np.float32)
    for number in range(count):
        last, grain = picture, cv2.GaussianBlur(rng.standard_normal((64, 400), np.float32), (0, 0), 1.2)
        picture = 120 + 60 * grain + 10 * rng.standard_normal(400, np.float32)
        if number % 50 == 49:
            copies = last[:, ::-1], 0.8 * last[::-1, ::-1], 0.5 * (last[::-1] + picture)
            picture = copies[number // 50 % 3]
        name, pixels = f"{number:07}.jpg", np.clip(picture, 0, 255).astype(np.uint8)
        cv2.imwrite(str(folder / "train_images" / name), pixels, [cv2.IMWRITE_JPEG_QUALITY, 60 + number % 36])
        rows.append(f"{name},1,{number % 20_000 + 1} 40" if number % 2 else f"{name},,")
    (folder / "train.csv").write_text("\n".join(rows) + "\n")


def measure_data(folder: Path, count: int) -> None:
    """Print the time and peak memory of both commands, and how many of the copies they found."""
    make_data(folder, count)
    copies = {(f"{number - 1:07}.jpg", f"{number:07}.jpg") for number in range(49, count, 50)}
    for command, options in (("check", ["--json"]), ("split", [])):
        start = time.perf_counter()
        with (folder / f"{command}.txt").open("w") as written:
            arguments = [sys.executable, "-m", "defectseg", "data", command, str(folder), *options]
            _, _, used = os.wait4(subprocess.Popen(arguments, stdout=written).pid, 0)
        if command == "check":
            listed = json.loads((folder / "check.txt").read_text())["duplicates"]
            found = copies & {(one["image"], one["other"]) for one in listed}
            others = f"{len(listed) - len(found)} others"
        else:
            with (folder / "split.csv").open() as table:
                fold_of = {row["ImageId"]: row["fold"] for row in csv.DictReader(table)}
            found, others = {(one, other) for one, other in copies if fold_of[one] == fold_of[other]}, "in one fold"
        print(
            f"| {count:,} | {command} | {time.perf_counter() - start:.0f} | {used.ru_utime + used.ru_stime:.0f} | "
            f"{used.ru_maxrss * 1024 / 1e6:.0f} | {len(found)} of {len(copies)}, {others} |",
            flush=True,
        )


def run(model: Path, images: list[Path], out: Path) -> list[float]:
    """Seconds until it is known what is pending, until the first result and until the end; peak memory in MB."""
    command = [sys.executable, "-c", RUN, str(model), str(out), str(time.time())]
    listed = "\n".join(map(str, images))
    done = subprocess.run(command, input=listed, stdout=subprocess.PIPE, text=True, check=True)
    return [float(figure) for figure in done.stdout.split()[-4:]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="10000,100000")
    parser.add_argument("--model", type=Path, help="a bundle or an export")
    parser.add_argument("--data", action="store_true", help="measure `data check` and `data split`")
    parser.add_argument("--folder", type=Path, help="for the images and results, instead of a temporary folder")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line sets it
    with tempfile.TemporaryDirectory(prefix="bench-", dir=options.folder) as name:
        folder = Path(name)
        if options.data:
            print_machine()
            print("| images | command | s | processor time, s | peak memory, MB | copies found |")
            print("| ---: | --- | ---: | ---: | ---: | --- |")
            for count in map(int, options.counts.split(",")):
                measure_data(folder / str(count), count)
            return
        first = make_images(folder / "first", 1)
        model = options.model or random_bundle(
            folder / "random.safetensors",
            "tu-test_resnet",
            find_images([folder / "first" / "images"]),
            decoder_channels=(16, 8, 8, 8, 8),
        )
        run(model, first, folder / "first" / "out")  # converts the model for its runtime
        print_machine()
        print("| images | run | pending, s | first result, s | all, s | peak memory, MB | journal, MB | tables, MB |")
        print("| ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for count in map(int, options.counts.split(",")):
            images, out = make_images(folder / str(count), count), folder / str(count) / "out"
            for kind in ("fresh", "again"):
                pending_s, first_s, all_s, memory_mb = run(model, images, out)
                journal_mb = (out / "journal.jsonl").stat().st_size / 1e6
                tables_mb = sum(path.stat().st_size for path in out.glob("*.csv")) / 1e6
                shown = f"{first_s:.1f}" if first_s else ""
                print(
                    f"| {count:,} | {kind} | {pending_s:.1f} | {shown} | {all_s:.1f} | {memory_mb:.0f} | "
                    f"{journal_mb:.1f} | {tables_mb:.1f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
