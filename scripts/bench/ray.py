#!/usr/bin/env python
"""Compare `predict` with its engine ray on this machine: what a cluster costs where there is only one machine.

Prints a markdown table of images per second, from the first image to the last, and of the seconds of the whole command,
which include the start of Ray. Images are repeated under other names until there are enough. The contenders take turns.
Usage: python scripts/bench/ray.py MODEL IMAGES [--images 1000] [--rounds 1] [--cores 1,2]
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--cores", default="1,2", help="of each process of Ray")
    arguments = parser.parse_args()
    contenders = {"local": ["--engine", "local"]}
    for cores in arguments.cores.split(","):
        contenders[f"ray, {cores} cores a process"] = ["--engine", "ray", "--workers", cores]
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    speeds: dict[str, list[float]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        images = _repeated(arguments.folder, Path(folder, "images"), arguments.images)
        _predict(arguments.model, _repeated(arguments.folder, Path(folder, "few"), 4), Path(folder, "warm"), [])
        for turn in range(arguments.rounds):
            for name, options in contenders.items():
                out = Path(folder, f"{turn} {name}")
                begun = time.perf_counter()
                _predict(arguments.model, images, out, options)
                seconds[name].append(time.perf_counter() - begun)
                speeds[name].append(json.loads((out / "run.json").read_text())["images_per_second"])
    print(f"| {arguments.images} images | images/s | seconds in all |\n| --- | --- | --- |")
    for name in contenders:
        print(
            f"| {name} | {statistics.median(speeds[name]):.1f} | {statistics.median(seconds[name]):.1f} |", flush=True
        )


def _repeated(source: Path, target: Path, count: int) -> Path:
    """A folder of `count` links to the images of another, which are taken again and again."""
    target.mkdir()
    files = sorted(source.iterdir())
    for number in range(count):
        file = files[number % len(files)]
        (target / f"{number:06}{file.suffix}").symlink_to(file.absolute())
    return target


def _predict(model: Path, images: Path, out: Path, options: list[str]) -> None:
    command = [sys.executable, "-m", "defectseg", "predict", model, images, "--out", out, *options]
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


if __name__ == "__main__":
    main()
