#!/usr/bin/env python
"""Measure time and memory for pictures larger than the model's tile, with a cheap function instead of a network.

Each picture is processed in its own process: read, `segment_image`, run-lengths, overlay, class map. Prints a markdown
table with seconds and bytes per pixel: the peak memory up to each stage, less that of a picture of one tile. With
--model it also measures how much the result of that network depends on the tile size.
Usage: python scripts/bench/large_images.py [--pictures 256x100000.png 256x100000.tif 16384x4096.png]
       [--model MODEL --image IMAGE --tiles 256x1600 256x800]
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image import rle
from defectseg.image.overlay import encode_jpeg, paint_prediction
from defectseg.image.read import decode
from defectseg.inference.segment import segment_image
from defectseg.inference.settings import Settings
from defectseg.model.info import Thresholds
from defectseg.runtime.base import Answer

STAGES = ("read", "segment", "run-lengths", "overlay", "class map")
CLASS_NAMES = ("one", "two", "three", "four")


class GreyLevels:
    """A Runtime that finds dark and bright blobs; its four classes overlap in part."""

    name = "grey levels"
    parallel, batch_px = 1, 0
    class_names = CLASS_NAMES

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        level = images[:, 0] / np.float32(255)
        answer = np.stack([level, 1 - level, level * np.float32(0.9), 1 - level * np.float32(1.1)], axis=1)
        answer = np.clip((answer - np.float32(0.7)) * 4, 0, 1)
        return Answer(answer.astype(np.float32), answer.max(axis=(2, 3)).astype(np.float32))


def make_picture(size_hw: tuple[int, int]) -> NDArray[np.uint8]:
    """Smooth noise around middle grey, some 7 % of it bright or dark enough to be a defect."""
    height, width = min(size_hw[0], 1024), min(size_hw[1], 2048)
    noise = cv2.GaussianBlur(np.random.default_rng(0).standard_normal((height, width)), (0, 0), 8)
    patch = np.clip(128 + 45 * noise / noise.std(), 0, 255).astype(np.uint8)
    repeats = (-(-size_hw[0] // height), -(-size_hw[1] // width))
    return np.ascontiguousarray(np.tile(patch, repeats)[: size_hw[0], : size_hw[1]])


def peak_bytes() -> int:
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(path: Path) -> dict[str, tuple[float, int]]:
    """Seconds of each stage, and the largest memory of the process until its end."""
    stages: dict[str, tuple[float, int]] = {}

    @contextmanager
    def stage(name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        stages[name] = (time.perf_counter() - start, peak_bytes())

    runtime = GreyLevels()
    thresholds = Thresholds(gate=(0.5,) * 4, pixel=(0.5,) * 4, min_area_px=(50,) * 4)
    settings = Settings(thresholds, tile_hw=(1024, 2048), tile_overlap_px=128)
    with stage("read"):
        pixels = decode(path).pixels
    with stage("segment"):
        found = segment_image(runtime, pixels, settings)
    with stage("run-lengths"):
        [rle.encode(mask) for mask in found.masks]
    with stage("overlay"):
        encode_jpeg(paint_prediction(pixels, found.masks, CLASS_NAMES))
    with stage("class map"):
        cv2.imencode(".png", found.class_map, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    return stages


def measure_apart(picture: str, folder: Path) -> dict[str, tuple[float, int]]:
    path = folder / picture
    height, width = map(int, path.stem.split("x"))
    cv2.imwrite(str(path), make_picture((height, width)))
    command = [sys.executable, __file__, "--measure", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    path.unlink()
    result: dict[str, tuple[float, int]] = json.loads(done.stdout)
    return result


def print_pictures(pictures: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        fixed = measure_apart("1024x2048.png", Path(folder))
        print("| picture |", " | ".join(f"{name}, s | bytes/px so far" for name in STAGES), "|")
        print("| --- " * (1 + 2 * len(STAGES)) + "|")
        for picture in pictures:
            stages = measure_apart(picture, Path(folder))
            height, width = map(int, Path(picture).stem.split("x"))
            cells = []
            for name in STAGES:
                above = stages[name][1] - fixed[name][1]
                cells += [f"{stages[name][0]:.2f}", f"{above / (height * width):.1f}"]
            print(f"| {picture} |", " | ".join(cells), "|")
        print(f"\nA picture of one tile took {fixed[STAGES[-1]][1] / 2**20:.0f} MiB.")


def print_tiles(model: Path, image: Path, tiles: list[str]) -> None:
    """How the masks with smaller tiles agree with those with the first."""
    from defectseg.inference.tiles import predict_image
    from defectseg.runtime.load import load_runtime

    (runtime, info), pixels = load_runtime(model), decode(image).pixels
    settings = Settings.of(info)
    print("\n| tile | largest difference of probability | mean difference | Dice of masks |\n| --- | --- | --- | --- |")
    first = None
    for tile in tiles:
        height, width = map(int, tile.split("x"))
        overlap_px = min(settings.tile_overlap_px, min(height, width) // 2)
        other = replace(settings, tile_hw=(height, width), tile_overlap_px=overlap_px)
        probabilities = predict_image(runtime, pixels, other).probabilities
        first = probabilities if first is None else first
        difference = np.abs(probabilities - first)
        pixel = np.array(info.thresholds.pixel, np.float32)[:, None, None]
        masks, firsts = probabilities >= pixel, first >= pixel
        both, total = int(np.count_nonzero(masks & firsts)), int(np.count_nonzero(masks) + np.count_nonzero(firsts))
        dice = 2 * both / max(total, 1)
        print(f"| {tile} | {difference.max():.3f} | {difference.mean():.5f} | {dice:.4f} |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pictures", nargs="+", default=["256x100000.png", "256x100000.tif", "16384x4096.png"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--image", type=Path)
    parser.add_argument("--tiles", nargs="+", default=["256x1600", "256x800", "256x400", "128x400"])
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure(options.measure)))
        return
    print_pictures(options.pictures)
    if options.model and options.image:
        print_tiles(options.model, options.image, options.tiles)


if __name__ == "__main__":
    main()
