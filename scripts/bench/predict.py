#!/usr/bin/env python
"""Compare `predict` in each runtime with a textbook script, on the same images and the same network.

Prints a markdown table of images per second from image files to overlays, masks and tables, without the start-up time.
The contenders take turns, so that they meet the same load on the machine; figures are medians. Without --model the
network has random weights, and thresholds that let 2 % of the pixels pass; its masks are more ragged than those of a
trained network. --memory prints the peak memory of predict on few and on many images, with a very small network.

--device compares `predict --runtime torch` on a device with rivals/textbook_predict.py, whose network of its own runs
on the same device in float32; with the network alone, its data on the device; and with the line without a network,
which remembers the answers. Dice says how well the class maps agree with those of float32 on the CPU.
Usage: python scripts/bench/predict.py IMAGES [--model FILE | --encoder resnet18] [--int8 FILE] [--images 20]
           [--rounds 5] [--runtimes torch,openvino,onnx] [--no-textbook]
       python scripts/bench/predict.py IMAGES --device cuda [--model FILE | --encoder resnet18] [--images 20]
           [--repeat 10] [--rounds 5] [--batches 1,4,8,16,32]
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
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.benchmark.benchmark import run_network, run_pipeline
from defectseg.config import ModelConfig, Recipe
from defectseg.data.synthetic import CLASS_NAMES
from defectseg.errors import DefectsegError
from defectseg.image import read as image_files
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, stream
from defectseg.machine import machine_facts
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.locate import find_model
from defectseg.predict.predict import predict
from defectseg.runtime.base import Answer, Reached, Runtime, ThresholdingRuntime
from defectseg.runtime.load import load_runtime

TEXTBOOK = "textbook script"
RIVAL = Path(__file__).parent / "rivals" / "textbook_predict.py"
SHARE_OF_PIXELS = 0.02
ALONE_S = 1.0  # for how long the network alone is measured, at least

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


class NullNetwork:
    """A Runtime that answers at once: it remembers the answers of another, which it asks about new images only."""

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.class_names, self.name, self.parallel = runtime.class_names, "null network", runtime.parallel
        self.batch_px = runtime.batch_px
        self.known: dict[bytes, Any] = {}

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        answers: list[Answer] = [self._recall(image, lambda batch: [self.runtime(batch)]) for image in images]
        if len(answers) == 1:
            return answers[0]
        return Answer(*(np.concatenate([getattr(one, name) for one in answers]) for name in ("probabilities", "gate")))

    def _recall(self, image: NDArray[np.uint8], ask: Callable[[NDArray[np.uint8]], list[Any]]) -> Any:
        key = image[..., ::29, ::29].tobytes()  # tells photographs apart in no time
        if key not in self.known:
            (self.known[key],) = ask(image[None])
        return self.known[key]


class NullCard(NullNetwork):
    """The same for a ThresholdingRuntime."""

    def reach(self, images: NDArray[np.uint8], *arguments: Any) -> list[Reached]:
        assert isinstance(self.runtime, ThresholdingRuntime)
        reach = self.runtime.reach
        return [self._recall(image, lambda batch: reach(batch, *arguments)) for image in images]


def alone_rates(runtime: Any, pixels: Sequence[NDArray[np.uint8]], batches: list[int]) -> dict[str, float]:
    """Images per second of the network of a TorchRuntime for each batch size, with the images on its device."""
    import torch

    def seconds(batch: Any, calls: int) -> float:
        begun = time.perf_counter()
        for _ in range(calls):
            runtime.network.answer(batch)
        if runtime.device.type == "cuda":
            torch.cuda.synchronize(runtime.device)
        return time.perf_counter() - begun

    rates: dict[str, float] = {}
    precision = str(runtime.dtype or torch.float32).removeprefix("torch.")
    for size in batches:
        images = np.stack([pixels[number % len(pixels)] for number in range(size)])[:, None]
        batch = torch.from_numpy(images).to(runtime.device).contiguous(memory_format=torch.channels_last)
        autocast = torch.autocast(runtime.device.type, runtime.dtype, enabled=runtime.dtype is not None)
        try:
            with torch.inference_mode(), autocast:
                seconds(batch, 2)  # which choose kernels and allocate
                calls = max(1, round(ALONE_S / seconds(batch, 1)))
                rates[f"network alone, {precision}, batch of {size}"] = size * calls / seconds(batch, calls)
        except torch.OutOfMemoryError:
            break
    return rates


def textbook_rate(images: Path, masks: Path, encoder: str, count: int, device: str) -> float:
    arguments = (str(images), str(masks), encoder, str(count), device)
    command = [sys.executable, str(RIVAL), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return float(done.stdout.split()[-2])


def class_maps(runtime: Runtime, settings: Settings, images: list[FoundImage]) -> list[NDArray[np.uint8]]:
    def keep(one: Segmented) -> NDArray[np.uint8]:
        return one.segmentation.class_map

    with closing(stream(images, runtime, settings, keep)) as results:
        return [result for result in results if isinstance(result, np.ndarray)]


def pooled_dice(found: list[NDArray[np.uint8]], expected: list[NDArray[np.uint8]]) -> float:
    """Dice of all classes and images together; nan if nothing was found."""
    pairs = list(zip(found, expected, strict=True))
    both = sum(np.count_nonzero((one == other) & (one > 0)) for one, other in pairs)
    total = sum(np.count_nonzero(one) + np.count_nonzero(other) for one, other in pairs)
    return 2 * both / total if total else float("nan")


def on_device(options: argparse.Namespace, folder: Path) -> None:
    """Print the rates on a device, and what they are of the limits; at last the agreement with float32."""
    from defectseg.model.bundle import load_bundle
    from defectseg.runtime.torch import TorchRuntime

    (folder / "images").mkdir()
    for found in find_images([options.folder])[: options.images]:
        (folder / "images" / found.path.name).symlink_to(found.path.absolute())
    images = find_images([folder / "images"])
    given = options.model and find_model(options.model)
    model = given or random_bundle(folder / "random.safetensors", options.encoder, images)
    runtime, info = load_runtime(model, options.device, "torch")
    settings = Settings.of(info, tta="none")  # the textbook script has one view, too
    null = (NullCard if isinstance(runtime, ThresholdingRuntime) else NullNetwork)(runtime)
    many = [replace(found, image_id=f"{k}/{found.image_id}") for k in range(options.repeat) for found in images]
    predict(model, images, folder / "first", device=options.device, runtime="torch", tta="none")
    pixels = [image_files.decode(found.path).pixels for found in images]
    pixels = [one for one in pixels if one.shape == pixels[0].shape]

    times: dict[str, list[float]] = {}
    for number in range(options.rounds + 1):
        encoder = info.recipe.model.encoder
        masks = folder / "first" / "masks"
        rates: dict[str, float] = {}
        if not options.no_textbook:
            rates[TEXTBOOK] = textbook_rate(folder / "images", masks, encoder, len(images), options.device)
        rates |= alone_rates(runtime, pixels, [int(size) for size in options.batches.split(",")])
        for name, one in {"line with a null network": null, "predict": runtime}.items():
            rates[name] = len(many) / run_pipeline(one, settings, many, folder / "out")
        for name, rate in rates.items():
            if number:  # the first round chooses kernels and allocates
                times.setdefault(name, []).append(rate)
    medians = {name: statistics.median(values) for name, values in times.items()}

    network, _ = load_bundle(model)
    exact = TorchRuntime(network, info)
    dice = pooled_dice(class_maps(runtime, settings, images), class_maps(exact, settings, images))
    print_machine()
    print_device_table(options, runtime, medians, len(images), dice)


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


def print_device_table(
    options: argparse.Namespace, runtime: Runtime, rates: dict[str, float], count: int, dice: float
) -> None:
    network = "given" if options.model else f"U-Net {options.encoder} with random weights"
    print(
        f"{runtime.name}, {runtime.parallel} calls at once; network: {network}; {count} images, {options.repeat} times "
        f"over; median of {options.rounds} rounds\n"
    )
    print("| | images/s |\n| --- | ---: |")
    for name, rate in rates.items():
        print(f"| {name} | {rate:.2f} |")
    alone = max(rate for name, rate in rates.items() if name.startswith("network alone"))
    limit, rate = min(alone, rates["line with a null network"]), rates["predict"]
    if TEXTBOOK in rates:
        print(f"\npredict: {rate / rates[TEXTBOOK]:.1f} times the textbook script", end="")
    print(f"\npredict: {rate / limit:.0%} of the lower of both limits, {limit:.1f} images/s")
    print(f"class maps agree with float32 on the CPU at a pooled Dice of {dice:.4f}")


def print_machine() -> None:
    facts = machine_facts()
    versions = ", ".join(f"{name} {version}" for name, version in facts["versions"].items())
    print(f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['cpu_flags'])}; {versions}\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, metavar="IMAGES")
    parser.add_argument("--model", type=Path, help="a bundle, or its run folder")
    parser.add_argument("--encoder", default="resnet18", help="of a U-Net with random weights, without --model")
    parser.add_argument("--runtimes", default="torch,openvino,onnx")
    parser.add_argument("--int8", type=Path, help="the same network, exported with --int8")
    parser.add_argument("--no-textbook", action="store_true")
    parser.add_argument("--device", help="compare on this device: cpu, cuda, cuda:N or mps")
    parser.add_argument("--repeat", type=int, default=1, help="process the images so many times, with --device")
    parser.add_argument("--batches", default="1,4,8,16,32", help="of the network alone, with --device")
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--memory", action="store_true")
    parser.add_argument("--counts", default="500,5000")
    options = parser.parse_args()
    os.environ.setdefault("GOMP_SPINCOUNT", "30000")  # as the command line sets it
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        (memory if options.memory else on_device if options.device else speed)(options, Path(name))


if __name__ == "__main__":
    main()
