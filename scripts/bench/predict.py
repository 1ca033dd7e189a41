#!/usr/bin/env python
"""Compare `predict` in each runtime with a textbook script, on the same images and the same network.

Prints a markdown table of images per second from image files to overlays, masks and tables, without the start-up time.
The contenders take turns, so that they meet the same load on the machine; figures are medians. Without --model the
network has random weights, and thresholds that let 2 % of the pixels pass; its masks are more ragged than those of a
trained network. --memory prints the peak memory of predict on few and on many images, with a very small network.
Usage: python scripts/bench/predict.py IMAGES [--model FILE | --encoder resnet18] [--int8 FILE] [--images 20]
           [--rounds 5] [--runtimes torch,openvino,onnx] [--no-textbook]
       python scripts/bench/predict.py IMAGES --memory [--counts 500,5000]
"""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from defectseg.benchmark.benchmark import run_network, run_pipeline
from defectseg.config import ModelConfig, Recipe
from defectseg.data.synthetic import CLASS_NAMES
from defectseg.errors import DefectsegError
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.settings import Settings
from defectseg.machine import machine_facts
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime

TEXTBOOK = "textbook script"
SHARE_OF_PIXELS = 0.02

PEAK = """
import sys
from pathlib import Path
from defectseg.image.find import find_images
from defectseg.predict.predict import predict
from defectseg.machine import peak_memory_mb
model, folder, out = map(Path, sys.argv[1:])
predict(model, find_images([folder]), out, device="cpu")
print(peak_memory_mb())
"""


@dataclass(frozen=True)
class Contender:
    """Something to time.

    Attributes:
        name: of its row.
        seconds: processes all images once and says how long it took.
        network: name of the row of its network alone, or "".
    """

    name: str
    seconds: Callable[[], float]
    network: str = ""


def random_bundle(path: Path, encoder: str, images: list[FoundImage], **options: Any) -> Path:
    """A U-Net whose weights are random, but the same each time."""
    import torch

    from defectseg.model.bundle import save_bundle
    from defectseg.model.network import build_network

    torch.manual_seed(0)
    config = ModelConfig(encoder=encoder, encoder_weights="none", classification_head=False, options=options)
    network = build_network(config, len(CLASS_NAMES), "none").eval()
    pixels = np.stack([image_files.decode(found.path).pixels for found in images[:1]])[:, None]
    with torch.no_grad():
        probabilities = network.answer(torch.from_numpy(pixels))[0].numpy()
    pixel = np.quantile(probabilities, 1 - SHARE_OF_PIXELS, axis=(0, 2, 3)).tolist()
    zero = (0,) * len(CLASS_NAMES)
    thresholds = Thresholds(gate=zero, pixel=tuple(pixel), min_area_px=(100,) * len(CLASS_NAMES))
    info = ModelInfo(
        class_names=CLASS_NAMES, normalization=network.normalization, thresholds=thresholds, recipe=Recipe(model=config)
    )
    save_bundle(path, network.state_dict(), info)
    return path


def textbook_contender(model: Path, images: list[FoundImage], folder: Path) -> Contender:
    from textbook import Textbook

    textbook = Textbook(model)

    def seconds() -> float:
        begun = time.perf_counter()
        textbook.run([found.path for found in images], folder / "textbook")
        return time.perf_counter() - begun

    return Contender(TEXTBOOK, seconds)


def contenders_of(
    model: Path, runtime_name: str, label: str, images: list[FoundImage], folder: Path
) -> list[Contender]:
    """The network alone, predict, and predict with one call at a time where it makes several."""
    pixels = [image_files.decode(found.path).pixels for found in images]

    def predict(name: str, runtime: Runtime) -> Contender:
        return Contender(name, lambda: run_pipeline(runtime, settings, images, folder / "out"), alone)

    alone = f"network alone, {label}"
    try:
        runtime, info = load_runtime(model, "cpu", runtime_name)
        settings = Settings.of(info)
        found = [
            Contender(alone, lambda: run_network(runtime, settings, pixels)),
            predict(f"predict, {label}", runtime),
        ]
        if runtime.parallel > 1:
            single, _ = load_runtime(model, "cpu", runtime_name, workers=1)
            found.append(predict(f"predict, {label}, one worker", single))
    except DefectsegError as error:
        print(f"{label} is left out: {error}", file=sys.stderr)
        return []
    print(f"{label}: {runtime.name}, {runtime.parallel} at once", file=sys.stderr)
    return found


def speed(options: argparse.Namespace, folder: Path) -> None:
    images = find_images([options.folder])[: options.images]
    model = options.model or random_bundle(folder / "random.safetensors", options.encoder, images)
    contenders = [] if options.no_textbook else [textbook_contender(model, images, folder)]
    for name in options.runtimes.split(","):
        contenders += contenders_of(model, name, name, images, folder)
    if options.int8:
        contenders += contenders_of(options.int8, "auto", "int8", images, folder)
    times: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for number in range(options.rounds + 1):
        for contender in contenders:
            seconds = contender.seconds()
            if number:  # the first round chooses kernels and allocates
                times[contender.name].append(seconds)
    rates = {name: len(images) / statistics.median(seconds) for name, seconds in times.items()}
    print_machine()
    network = "given" if options.model else f"U-Net {options.encoder} with random weights"
    print(f"{len(images)} images, network: {network}; median of {options.rounds} rounds\n")
    print("| | images/s | times the textbook | of its network alone |\n| --- | ---: | ---: | ---: |")
    for contender in contenders:
        rate = rates[contender.name]
        ratio = f"{rate / rates[TEXTBOOK]:.1f}" if TEXTBOOK in rates else ""
        share = f"{rate / rates[contender.network]:.0%}" if contender.network else ""
        print(f"| {contender.name} | {rate:.2f} | {ratio} | {share} |")


def memory(options: argparse.Namespace, folder: Path) -> None:
    """Peak memory for each number of images, the same ones again and again under other names."""
    images = find_images([options.folder])[: options.images]
    model = options.model or random_bundle(
        folder / "random.safetensors", "tu-test_resnet", images, decoder_channels=(16, 8, 8, 8, 8)
    )
    peak_mb(model, images, 1, folder / "first")  # converts the model for its runtime, which takes memory once
    counts = [int(count) for count in options.counts.split(",")]
    peaks_mb = [peak_mb(model, images, count, folder / str(count)) for count in counts]
    print_machine()
    print("| images | peak memory, MB | more than for the fewest |\n| ---: | ---: | ---: |")
    for count, peak in zip(counts, peaks_mb, strict=True):
        print(f"| {count} | {peak:.0f} | {peak - peaks_mb[0]:.0f} MB, {peak / peaks_mb[0] - 1:.1%} |")


def peak_mb(model: Path, images: list[FoundImage], count: int, folder: Path) -> float:
    sources = folder / "sources"
    sources.mkdir(parents=True)
    (folder / "images").mkdir()
    copies = [
        Path(shutil.copy(found.path, sources / f"{number}{found.path.suffix}")) for number, found in enumerate(images)
    ]
    for number in range(count):
        source = copies[number % len(copies)]
        (folder / "images" / f"{number:06}{source.suffix}").hardlink_to(source)
    arguments = (str(path) for path in (model, folder / "images", folder / "out"))
    done = subprocess.run([sys.executable, "-c", PEAK, *arguments], stdout=subprocess.PIPE, text=True, check=True)
    shutil.rmtree(folder)
    return float(done.stdout.split()[-1])


def print_machine() -> None:
    facts = machine_facts()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['cpu_flags'])}; {versions}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="IMAGES")
    parser.add_argument("--model", type=Path, help="a bundle")
    parser.add_argument("--encoder", default="resnet18", help="of a U-Net with random weights, without --model")
    parser.add_argument("--runtimes", default="torch,openvino,onnx")
    parser.add_argument("--int8", type=Path, help="the same network, exported with --int8")
    parser.add_argument("--no-textbook", action="store_true")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--counts", default="500,5000")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line sets it
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        (memory if options.memory else speed)(options, Path(name))


if __name__ == "__main__":
    main()
