#!/usr/bin/env python
"""Compare the run-length codec with a plain Python loop and pycocotools on synthetic masks.

Prints a markdown table: median microseconds for one mask, and the ratio to the codec.
Usage: python scripts/bench/rle.py [--size 256x1600] [--masks 20] [--repeats 5]
"""

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.image import rle

try:
    from pycocotools import mask as coco
except ImportError:
    coco = None


def make_masks(size_hw: tuple[int, int], count: int) -> list[NDArray[np.bool_]]:
    """Blobs with some 350 runs each in 256x1600 (Severstal's masks: 245 on average); the runs decide the time."""
    rng = np.random.default_rng(0)
    masks = []
    for _ in range(count):
        noise = cv2.GaussianBlur(rng.standard_normal(size_hw), (0, 0), min(size_hw) / 10)
        masks.append(noise > np.quantile(noise, 0.97))
    return masks


def loop_encode(mask: NDArray[np.bool_]) -> str:
    words: list[str] = []
    start = 0
    pixels = [*mask.T.ravel().tolist(), False]
    for number, pixel in enumerate(pixels, start=1):
        if pixel and not start:
            start = number
        elif not pixel and start:
            words += [str(start), str(number - start)]
            start = 0
    return " ".join(words)


def loop_decode(encoded: str, size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    pixels = np.zeros(size_hw[0] * size_hw[1], np.bool_)
    words = encoded.split()
    for start, length in zip(words[::2], words[1::2], strict=True):
        pixels[int(start) - 1 : int(start) - 1 + int(length)] = True
    return np.ascontiguousarray(pixels.reshape(size_hw[1], size_hw[0]).T)


def median_us(call: Callable[[Any], object], arguments: list[Any], repeats: int) -> float:
    times = []
    for argument in arguments:
        for _ in range(repeats):
            start = time.perf_counter()
            call(argument)
            times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", default="256x1600", help="height x width in pixels")
    parser.add_argument("--masks", type=int, default=20)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    height, width = map(int, options.size.split("x"))
    masks = make_masks((height, width), options.masks)
    texts = [rle.encode(mask) for mask in masks]
    assert texts == [loop_encode(mask) for mask in masks]

    ours_encode = median_us(rle.encode, masks, options.repeats)
    ours_decode = median_us(lambda text: rle.decode(text, (height, width)), texts, options.repeats)
    rows = [
        ("defectseg", ours_encode, ours_decode),
        (
            "Python loop",
            median_us(loop_encode, masks, 1),
            median_us(lambda text: loop_decode(text, (height, width)), texts, options.repeats),
        ),
    ]
    if coco is not None:
        # It takes column-major uint8 and writes its own packed text; the time includes making that layout.
        packed = [coco.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
        rows.append(
            (
                "pycocotools",
                median_us(lambda mask: coco.encode(np.asfortranarray(mask, np.uint8)), masks, options.repeats),
                median_us(lambda text: np.ascontiguousarray(coco.decode(text)), packed, options.repeats),
            )
        )
    print(f"{height}x{width}, {len(masks)} masks, median of {options.repeats} calls for each\n")
    print("| codec | encode, us | ratio | decode, us | ratio |\n| --- | --- | --- | --- | --- |")
    for name, encode_us, decode_us in rows:
        encode_ratio, decode_ratio = encode_us / ours_encode, decode_us / ours_decode
        print(f"| {name} | {encode_us:,.0f} | {encode_ratio:.1f} | {decode_us:,.0f} | {decode_ratio:.1f} |")


if __name__ == "__main__":
    main()
