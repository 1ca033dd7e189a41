#!/usr/bin/env python
"""Measure the whole line of a model: its network alone, `predict`, `evaluate`, `tune`, batches and a cold start.

Prints three markdown tables. In the first, all take turns in one process, on the same images, with the model loaded
before; times count from the first image to the last, with everything that the command writes; figures are medians.
With --bundle, `predict --runtime torch` and the validation of a training are compared as well. In the second, some
threads call the network alone, with some images in each call. The third is the time of a new process that predicts one
image, from start to exit; what OpenVINO compiled is in the cache by then.
Usage: python scripts/bench/line.py DATA MODEL [--bundle FILE] [--rounds 5] [--batches 1,2,4,8] [--starts 7]
DATA holds train_images/ and train.csv.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray
from predict import print_machine

from defectseg.benchmark.benchmark import run_network
from defectseg.data.folder import open_data_folder
from defectseg.evaluate.evaluate import evaluate
from defectseg.image.find import find_images
from defectseg.image.read import decode
from defectseg.inference.settings import Settings
from defectseg.model.locate import find_model
from defectseg.predict.predict import predict
from defectseg.runtime.load import load_runtime
from defectseg.tune.tune import tune

NETWORK, PREDICT, VALIDATION = "network alone", "predict", "validation of a training"
CALLERS = (1, 2)


class Stopwatch:
    """The progress of a command, which takes the time from before its first image until its last."""

    seconds = begun = 0.0

    def __call__(self, done: int, total: int, text: str = "") -> None:
        now = time.perf_counter()
        self.begun = self.begun if done else now
        self.seconds = now - self.begun


def commands(
    model: Path, data: Path, pixels: list[NDArray[np.uint8]], folder: Path, runtime: str = "auto"
) -> dict[str, Callable[[], float]]:
    """For each row of the first table, a function that processes all images and gives the seconds."""
    images = find_images([data / "train_images"])
    loaded = load_runtime(model, "cpu", runtime)

    def timed(module: str, run: Callable[[Path, Stopwatch], object]) -> Callable[[], float]:
        def seconds() -> float:
            watch = Stopwatch()
            with tempfile.TemporaryDirectory(dir=folder) as out, patch(module, lambda *_, **__: loaded):
                run(Path(out) / "out", watch)
            return watch.seconds

        return seconds

    return {
        NETWORK: lambda: run_network(loaded[0], Settings.of(loaded[1]), pixels),
        PREDICT: timed(
            "defectseg.predict.predict.load_runtime",
            lambda out, watch: predict(model, images, out, runtime=runtime, progress=watch),
        ),
        "evaluate": timed(
            "defectseg.evaluate.evaluate.load_runtime",
            lambda out, watch: evaluate(model, data, out, progress=watch),
        ),
        "tune": timed(
            "defectseg.tune.tune.load_runtime",
            lambda out, watch: tune(model, data, subset="all", dry_run=True, progress=watch),
        ),
    }


def validation(bundle: Path, data: Path) -> Callable[[], float]:
    """A function that validates as a training does after an epoch, on all images, and gives the seconds."""
    from accelerate import Accelerator

    from defectseg.model.bundle import load_bundle
    from defectseg.train.validation import validate

    network, info = load_bundle(bundle)
    folder = open_data_folder(data, class_names=info.class_names)
    run: Any = SimpleNamespace(accelerator=Accelerator(cpu=True), val_ids=folder.image_ids, info=info, data=folder)

    def seconds() -> float:
        begun = time.perf_counter()
        validate(run, network)
        return time.perf_counter() - begun

    return seconds


def print_line(contenders: dict[str, Callable[[], float]], images: int, rounds: int, predict_name: str) -> None:
    """Time all in turns; print the rates, and what they are of the network's and of predict's."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds + 1):
        for name, seconds in contenders.items():
            taken_s = seconds()
            if number:  # the first round chooses kernels and allocates
                times[name].append(taken_s)
    rates = {name: images / statistics.median(taken) for name, taken in times.items()}
    print(f"{images} images, median of {rounds} rounds (slowest to fastest)\n")
    print("| | images/s | of the network alone | of predict |\n| --- | ---: | ---: | ---: |")
    for name, rate in rates.items():
        spread = f"{images / max(times[name]):.1f} to {images / min(times[name]):.1f}"
        of_network = f"{rate / rates[NETWORK]:.0%}" if NETWORK in rates else ""
        print(f"| {name} | {rate:.1f} ({spread}) | {of_network} | {rate / rates[predict_name]:.2f} |")


def print_batches(model: Path, pixels: Sequence[NDArray[np.uint8]], sizes: list[int]) -> None:
    """Print images per second of the network alone for each number of threads and of images in a call."""
    print(
        "\n| callers | " + " | ".join(f"{size} in a call" for size in sizes) + " |\n| ---: |" + " ---: |" * len(sizes)
    )
    for callers in CALLERS:
        runtime, _ = load_runtime(model, "cpu", workers=callers)
        rates = []
        with ThreadPoolExecutor(callers) as pool:
            for size in sizes:
                count = len(pixels) // size
                calls = [np.stack(pixels[size * call : size * (call + 1)])[:, None] for call in range(count)]
                list(pool.map(runtime, calls[: 2 * callers]))  # the first calls choose kernels and allocate
                begun = time.perf_counter()
                list(pool.map(runtime, calls))
                rates.append(f"{size * count / (time.perf_counter() - begun):.1f}")
        print(f"| {callers} | {' | '.join(rates)} |", flush=True)


def print_starts(model: Path, image: Path, starts: int, folder: Path) -> None:
    """Print the seconds of a process that predicts one image."""
    # An installed package has its bytecode.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    seconds = []
    for number in range(starts + 1):
        out = folder / f"start-{number}"
        command = [sys.executable, "-m", "defectseg", "predict", str(model), str(image), "--out", str(out)]
        begun = time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        if number:  # the first compiles
            seconds.append(time.perf_counter() - begun)
    print(
        f"\n| cold start, s | fastest | slowest |\n| ---: | ---: | ---: |\n| {statistics.median(seconds):.2f} |", end=""
    )
    print(f" {min(seconds):.2f} | {max(seconds):.2f} |")


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("model", type=lambda text: find_model(Path(text)))
    parser.add_argument("--bundle", type=lambda text: find_model(Path(text)), help="also validate this bundle in torch")
    parser.add_argument("--rounds", type=int, default=5, help="0: without the first table")
    parser.add_argument("--batches", default="1,2,4,8", help='"": without the second table')
    parser.add_argument("--starts", type=int, default=7, help="0: without the third table")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line sets it
    images = find_images([options.data / "train_images"])
    pixels = [decode(found).pixels for found in images]
    print_machine()
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        folder = Path(name)
        if options.rounds:
            print_line(commands(options.model, options.data, pixels, folder), len(images), options.rounds, PREDICT)
        if options.rounds and options.bundle:
            in_torch = commands(options.bundle, options.data, pixels, folder, "torch")[PREDICT]
            contenders = {f"{PREDICT} --runtime torch": in_torch, VALIDATION: validation(options.bundle, options.data)}
            print_line(contenders, len(images), options.rounds, f"{PREDICT} --runtime torch")
        if options.batches:
            print_batches(options.model, pixels, [int(size) for size in options.batches.split(",")])
        if options.starts:
            print_starts(options.model, images[0].path, options.starts, folder)


if __name__ == "__main__":
    main()
