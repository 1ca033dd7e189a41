#!/usr/bin/env python
"""Compare the speed of networks that need not be trained: milliseconds for one image, in OpenVINO.

Each network is built from a recipe with random weights, converted as `export` does, and timed in the processor's own
precision and in int8. int8 is NNCF's plain quantisation of all layers, calibrated on some of the images. `export` may
keep a few layers in floating point, but without trained weights there is no accuracy to judge by.
The networks take turns; figures are medians. One image at a time, on all cores.
Usage: python scripts/bench/architectures.py IMAGES --network LABEL RECIPE [KEY=VALUE ...] [--network ...]
"""

import argparse
import io
import logging
import os
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from networks import measure
from numpy.typing import NDArray

from defectseg.config import load_recipe
from defectseg.image.find import find_images
from defectseg.image.read import decode
from defectseg.machine import machine_facts, package_versions
from defectseg.model.graph import takes_any_size, to_openvino
from defectseg.model.info import ModelInfo, Thresholds
from defectseg.model.network import DefectNetwork, build_network
from defectseg.model.openvino_io import away_from_signals, read_model, save_model, unmark
from defectseg.runtime.base import Runtime
from defectseg.runtime.openvino import OpenVinoRuntime

CLASSES = ("1", "2", "3", "4")
CALIBRATION_IMAGES = 32
KINDS = ("float", "int8")


def runtimes_of(
    network: DefectNetwork, info: ModelInfo, images: Sequence[NDArray[np.uint8]], folder: Path
) -> dict[str, Runtime]:
    """The network as float and as int8, from the files in `folder`, which are written if they are not there."""
    files = {kind: folder / f"{kind}.xml" for kind in KINDS}
    if not files["int8"].exists():
        folder.mkdir(parents=True, exist_ok=True)
        model = to_openvino(network, info)
        if not takes_any_size(model, network):
            print(f"{folder.name}: OpenVINO takes it for one size only", flush=True)
            model = to_openvino(network, info, size_hw=images[0].shape)
        save_model(model, files["float"])
        unmark(model)  # NNCF quantises all layers
        save_model(away_from_signals(partial(quantize, model, images)), files["int8"])
    return {kind: OpenVinoRuntime(read_model(path), info, workers=1) for kind, path in files.items()}


def quantize(model: Any, images: Sequence[NDArray[np.uint8]]) -> Any:
    """The model in int8, but for normalisation and resizing, as in `export --int8`."""
    with redirect_stdout(io.StringIO()):  # NNCF draws bars
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)
        calibration = nncf.Dataset([image[None, None] for image in images])
        ignored = nncf.IgnoredScope(patterns=[r"__module\.network/.*"], validate=False)
        return nncf.quantize(model, calibration, subset_size=len(images), ignored_scope=ignored)


def main() -> None:
    """Parse the command line, convert, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument(
        "--network", nargs="+", action="append", required=True, metavar=("LABEL RECIPE", "KEY=VALUE"), dest="networks"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--kept", type=Path, help="keep the converted networks there, a folder for each label")
    options = parser.parse_args()
    found = find_images([options.images])[:CALIBRATION_IMAGES]
    images = [decode(image.path).pixels for image in found]
    runtimes: dict[str, Runtime] = {}
    weights: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as name:
        for label, recipe_name, *changes in options.networks:
            recipe = load_recipe(recipe_name, changes)
            network = build_network(recipe.model, len(CLASSES), "none").eval()
            info = ModelInfo(
                class_names=CLASSES,
                normalization=network.normalization,
                thresholds=Thresholds.default(len(CLASSES)),
                recipe=recipe,
            )
            weights[label] = sum(weight.numel() for weight in network.parameters())
            folder = (options.kept or Path(name)) / label
            runtimes |= {f"{label}, {kind}": it for kind, it in runtimes_of(network, info, images, folder).items()}
        taken_ms = measure(runtimes, images[0], options.rounds)
    facts = machine_facts()
    versions = facts["versions"] | package_versions(("segmentation-models-pytorch", "timm", "nncf"))
    print(f"{facts['cpu']}, {facts['cores']} cores, {' '.join(facts['cpu_flags'])}")
    print(", ".join(f"{package} {number}" for package, number in versions.items()))
    print(f"ONEDNN_MAX_CPU_ISA: {os.environ.get('ONEDNN_MAX_CPU_ISA', 'not set')}")
    height, width = images[0].shape
    float_name = next(iter(runtimes.values())).name
    print(f"one image of {height}x{width}, median of {options.rounds} rounds; float: {float_name}\n")
    print("| | million weights | float, ms | int8, ms |\n| --- | ---: | ---: | ---: |")
    for label, count in weights.items():
        as_float, as_int8 = (taken_ms[f"{label}, {kind}"] for kind in KINDS)
        print(f"| {label} | {count / 1e6:.1f} | {as_float:.1f} | {as_int8:.1f} |")


if __name__ == "__main__":
    main()
