#!/usr/bin/env python
"""Compare `predict` with networks of ultralytics, exported to OpenVINO, on the same images.

The rivals are `yolo26n-sem` (semantic segmentation) and `yolo11n-seg` (instance segmentation), each as float and as
int8. They are built from their YAML with random weights, for the classes of the first model, and timed from files to
results in memory, as `YOLO.predict` runs them. Without trained weights, yolo11n-seg finds nothing and so saves the time
of its masks. `predict` is timed from files to overlays, masks and tables. All take turns; figures are medians.
ultralytics (AGPL-3.0) is not a dependency of this project: `pip install --no-deps ultralytics ultralytics-thop` in an
environment with `train` and `int8`.
Usage: python scripts/bench/yolo.py IMAGES MODEL [MODEL ...] [--rounds 5] [--exports FOLDER]
"""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import yaml

from defectseg.benchmark.benchmark import run_pipeline
from defectseg.image.find import find_images
from defectseg.image.read import decode
from defectseg.inference.settings import Settings
from defectseg.machine import machine_facts, package_versions
from defectseg.model.locate import find_model
from defectseg.runtime.load import load_runtime

YOLO_SIZE_HW = (256, 1600)
SEMANTIC, INSTANCES = "yolo26n-sem", "yolo11n-seg"
CALIBRATION_IMAGES = 32


def rivals(images: Path, class_names: Sequence[str], folder: Path) -> dict[str, Callable[[], float]]:
    """For each rival, a function that gives the seconds for all images; exports that `folder` lacks are made."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    from ultralytics import YOLO

    os.chdir(folder)  # where ultralytics writes
    contenders: dict[str, Callable[[], float]] = {}
    for name, names in ((SEMANTIC, ("background", *class_names)), (INSTANCES, class_names)):
        for kind in ("float", "int8"):
            exported = folder / f"{name}_{'int8_' if kind == 'int8' else ''}openvino_model"
            if not exported.is_dir():
                extra: dict[str, Any] = {}
                if kind == "int8":
                    extra = {"quantize": 8, "data": calibration_data(images, names, folder / f"{name}-data")}
                untrained(name, len(names)).export(format="openvino", imgsz=YOLO_SIZE_HW, **extra)
            network = YOLO(exported, task="semantic" if name == SEMANTIC else "segment")
            contenders[f"{name}, {kind}"] = partial(seconds_of, network, images)
    return contenders


def seconds_of(network: Any, images: Path) -> float:
    """Seconds that a network of ultralytics takes for a folder of images; the results stay in memory."""
    begun = time.perf_counter()
    for _ in network.predict(images, imgsz=YOLO_SIZE_HW, stream=True, verbose=False, device="cpu"):
        pass
    return time.perf_counter() - begun


def untrained(name: str, classes: int) -> Any:
    """A network from its YAML, with random weights. The YAML itself is for 19 or 80 classes, which takes longer."""
    from ultralytics import YOLO

    network = YOLO(f"{name}.yaml")
    model: Any = network.model
    network.model = type(model)(f"{name}.yaml", nc=classes, verbose=False)
    network.model.args, network.model.task = model.args, model.task
    return network


def calibration_data(images: Path, names: Sequence[str], folder: Path) -> Path:
    """The YAML of a data set of ultralytics with some of the images. Its masks are black: only the images count."""
    chosen = [image.path for image in find_images([images])]
    for part in ("images", "masks", "labels"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for path in chosen[:: max(1, len(chosen) // CALIBRATION_IMAGES)][:CALIBRATION_IMAGES]:
        shutil.copy(path, folder / "images")
        cv2.imwrite(str(folder / "masks" / f"{path.stem}.png"), np.zeros_like(decode(path).pixels))
        (folder / "labels" / f"{path.stem}.txt").touch()
    described = {"path": str(folder), "train": "images", "val": "images", "masks_dir": "masks"}
    target = folder / "data.yaml"
    target.write_text(yaml.safe_dump({**described, "names": dict(enumerate(names))}), encoding="utf-8")
    return target


def print_table(times: dict[str, list[float]], images: int) -> None:
    """Medians, the range over the rounds, and the ratio to the faster export of each rival."""
    rates = {contender: images / statistics.median(taken) for contender, taken in times.items()}
    best = {rival: max(rates[f"{rival}, {kind}"] for kind in ("float", "int8")) for rival in (SEMANTIC, INSTANCES)}
    facts = machine_facts()
    versions = facts["versions"] | package_versions(("ultralytics", "nncf"))
    print(f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['cpu_flags'])}")
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print(f"ONEDNN_MAX_CPU_ISA: {os.environ.get('ONEDNN_MAX_CPU_ISA', 'not set')}")
    print(f"{images} images; median of {len(next(iter(times.values())))} rounds (slowest to fastest)\n")
    print(f"| | images/s | times {SEMANTIC} | times {INSTANCES} |\n| --- | ---: | ---: | ---: |")
    for contender, rate in rates.items():
        spread = f"{images / max(times[contender]):.1f} to {images / min(times[contender]):.1f}"
        print(f"| {contender} | {rate:.1f} ({spread}) | {' | '.join(f'{rate / best[rival]:.2f}' for rival in best)} |")


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=lambda text: Path(text).resolve())
    parser.add_argument("models", nargs="+", type=lambda text: find_model(Path(text).resolve()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--exports", type=lambda text: Path(text).resolve(), help="keep the rivals' exports there")
    options = parser.parse_args()
    images = find_images([options.images])
    loaded = {f"{model.parent.name}/{model.name}": load_runtime(model, "cpu") for model in options.models}
    with tempfile.TemporaryDirectory() as name:
        exports = options.exports or Path(name, "exports")
        exports.mkdir(parents=True, exist_ok=True)
        try:
            contenders = rivals(options.images, next(iter(loaded.values()))[0].class_names, exports)
        except ModuleNotFoundError as error:
            sys.exit(f"{error.name} is not installed; see --help.")
        for label, (runtime, info) in loaded.items():
            contenders[f"{label}, {runtime.name}"] = partial(
                run_pipeline, runtime, Settings.of(info), images, Path(name, "out")
            )
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for number in range(options.rounds + 1):
            for contender, seconds in contenders.items():
                taken_s = seconds()
                if number:  # the first round chooses kernels and allocates
                    times[contender].append(taken_s)
    print_table(times, len(images))


if __name__ == "__main__":
    main()
