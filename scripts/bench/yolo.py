#!/usr/bin/env python
"""Compare `predict` with `yolo11n-seg` of ultralytics, exported to OpenVINO, on the same images.

YOLO is built from its YAML with random weights and timed from files to results in memory. `predict` is timed from files
to overlays, masks and tables. The two take turns; figures are medians. ultralytics (AGPL-3.0) is not a dependency of
this project: `pip install --no-deps ultralytics ultralytics-thop` in an environment with `train`.
Usage: python scripts/bench/yolo.py IMAGES MODEL [MODEL ...] [--rounds 5]
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from defectseg.benchmark.benchmark import run_pipeline
from defectseg.image.find import find_images
from defectseg.inference.settings import Settings
from defectseg.model.locate import find_model
from defectseg.runtime.load import load_runtime

YOLO_SIZE_HW = (256, 1600)


def yolo_contender(images: Path, folder: Path) -> Callable[[], float]:
    """Seconds that the export of YOLO takes for all images; made in `folder`."""
    os.environ["YOLO_AUTOINSTALL"] = "false"
    from ultralytics import YOLO

    os.chdir(folder)
    exported = YOLO("yolo11n-seg.yaml").export(format="openvino", imgsz=YOLO_SIZE_HW)
    network = YOLO(exported, task="segment")

    def seconds() -> float:
        begun = time.perf_counter()
        for _ in network.predict(images, imgsz=YOLO_SIZE_HW, stream=True, verbose=False, device="cpu"):
            pass
        return time.perf_counter() - begun

    return seconds


def main() -> None:
    """Parse the command line, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=lambda text: Path(text).resolve())
    parser.add_argument("models", nargs="+", type=lambda text: find_model(Path(text).resolve()))
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    images = find_images([options.images])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            contenders = {"yolo11n-seg": yolo_contender(options.images, folder)}
        except ModuleNotFoundError as error:
            sys.exit(f"{error.name} is not installed; see --help.")
        for model in options.models:
            runtime, info = load_runtime(model, "cpu")
            settings = Settings.of(info)
            contenders[f"{model.parent.name}/{model.name}, {runtime.name}"] = (
                lambda runtime=runtime, settings=settings: run_pipeline(runtime, settings, images, folder / "out")  # type: ignore[misc]
            )
        times: dict[str, list[float]] = {contender: [] for contender in contenders}
        for number in range(options.rounds + 1):
            for contender, seconds in contenders.items():
                taken_s = seconds()
                if number:  # the first round chooses kernels and allocates
                    times[contender].append(taken_s)
    rates = {contender: len(images) / statistics.median(taken) for contender, taken in times.items()}
    print(f"{len(images)} images; median of {options.rounds} rounds\n\n| | images/s | times yolo11n-seg |")
    print("| --- | ---: | ---: |")
    for contender, rate in rates.items():
        print(f"| {contender} | {rate:.1f} | {rate / rates['yolo11n-seg']:.2f} |")


if __name__ == "__main__":
    main()
