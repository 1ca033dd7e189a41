#!/usr/bin/env python
"""Measure `evaluate --predictions` on synthetic sheets: time and peak memory, for several numbers of images.

Makes data folders of links to twenty images of 256x1600 px with four classes, and tables of predictions in which each
label is shifted by some pixels, a tenth of the defects is missing, and a tenth of the sound sheets has one. Prints a
markdown table; the time is that of the whole command, with its report.

Usage: python scripts/bench/predictions.py [--counts 1000,5000]
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from predict import print_machine

from defectseg.data.folder import open_data_folder
from defectseg.data.synthetic import write_data_folder
from defectseg.data.table import write_label_table
from defectseg.image import rle

SIZE_HW = (256, 1600)
SOURCES = 20


def make_data(sources: Path, root: Path, count: int) -> None:
    """Write `root` as a data folder, and `root`.csv as predictions for it."""
    folder, rng, labels, found = open_data_folder(sources), np.random.default_rng(0), {}, {}
    spare = next(encoded for by_class in folder.table.rles.values() for encoded in by_class.values())
    (root / "train_images").mkdir(parents=True)
    for number in range(count):
        source, image_id = folder.image_ids[number % SOURCES], f"{number:06}.jpg"
        (root / "train_images" / image_id).hardlink_to(folder.image_path(source))
        own = labels[image_id] = dict(folder.table.rles.get(source, {}))
        found[image_id] = {1: spare} if not own and rng.random() < 0.1 else {}
        for class_id, encoded in own.items():
            if rng.random() < 0.9:
                mask = rle.decode(encoded, SIZE_HW)
                found[image_id][class_id] = rle.encode(np.roll(mask, int(rng.integers(-9, 10)), axis=1))
    write_label_table(root, found)
    (root / "train.csv").rename(root.with_suffix(".csv"))
    write_label_table(root, labels)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1000,5000")
    counts = parser.parse_args().counts.split(",")
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        write_data_folder(Path(name) / "sources", images=SOURCES, seed=1, size_hw=SIZE_HW)
        print_machine()
        print("| images | s | peak memory, MB |\n| ---: | ---: | ---: |")
        for count in counts:
            root = Path(name) / count
            make_data(Path(name) / "sources", root, int(count))
            flags = ["--predictions", f"{root}.csv", "--data", str(root), "--out", f"{root}-report"]
            begun = time.perf_counter()
            with subprocess.Popen(
                [sys.executable, "-m", "defectseg", "evaluate", *flags], stdout=sys.stderr
            ) as process:
                _, status, usage = os.wait4(process.pid, 0)
                process.returncode = os.waitstatus_to_exitcode(status)
            assert process.returncode == 0
            print(f"| {count} | {time.perf_counter() - begun:.1f} | {usage.ru_maxrss / 1024:.0f} |", flush=True)


if __name__ == "__main__":
    main()
