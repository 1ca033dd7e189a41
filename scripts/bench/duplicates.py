#!/usr/bin/env python
"""Measure the search for copies: recall by kind of change, false alarms, and time.

Changes every image of a folder in each way, searches the changed images among the originals, and prints a markdown
table. Pairs among the originals are printed for inspection: each one that is not a true copy is a false alarm.
--speed N times reading and searching on N images, made from the folder by rolling, turning and relighting. --memory N
fills the arrays for N images with noise, searches for half a minute, and prints the memory and the estimated time.
--peaks prints the measurements between which the thresholds of the search were set.

Usage: python scripts/bench/duplicates.py IMAGES [--most 600] [--seed 0] [--peaks] [--speed N] [--memory N]
"""

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from defectseg.copies.descriptors import TURNS, Descriptors, describe, describe_all, turned, whitened
from defectseg.copies.find import find_copies, find_peak
from defectseg.copies.strips import find_neighbours
from defectseg.image import read
from defectseg.image.find import find_images

Image = NDArray[np.uint8]
Change = Callable[[Image, Image], Image]


def encoded(image: Image, quality: int) -> Image:
    _, content = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    return np.asarray(cv2.imdecode(content, cv2.IMREAD_GRAYSCALE), np.uint8)


def lit(image: NDArray[Any], gain: float, offset: float = 0.0) -> Image:
    if image.dtype == np.uint8:
        levels = np.clip(np.rint(np.arange(256) * gain + offset), 0, 255).astype(np.uint8)
        return np.asarray(cv2.LUT(image, levels), np.uint8)
    return np.clip(np.rint(image * gain + offset), 0, 255).astype(np.uint8)


def resized(image: Image, factor: float) -> Image:
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=way), np.uint8)


def blended(image: Image, other: Image, share: float) -> Image:
    fitting = cv2.resize(other, image.shape[::-1]) if other.shape != image.shape else other
    return lit(share * image + (1 - share) * fitting.astype(np.float64), 1)


# What is done to an image; the second argument is another image, for blends.
CHANGES: dict[str, Change] = {
    "turned by 90": lambda image, _: turned(image, "90"),
    "turned by 180": lambda image, _: turned(image, "180"),
    "turned by 270": lambda image, _: turned(image, "270"),
    "mirrored": lambda image, _: turned(image, "mirror"),
    "mirrored, turned by 90": lambda image, _: turned(image, "mirror+90"),
    "JPEG quality 75": lambda image, _: encoded(image, 75),
    "JPEG quality 50": lambda image, _: encoded(image, 50),
    "JPEG quality 30": lambda image, _: encoded(image, 30),
    "20 % brighter (x 1.2)": lambda image, _: lit(image, 1.2),
    "20 % darker (x 0.8)": lambda image, _: lit(image, 0.8),
    "brighter by 25 levels": lambda image, _: lit(image, 1, 25),
    "brighter by 51 levels": lambda image, _: lit(image, 1, 51),
    "darker by 51 levels": lambda image, _: lit(image, 1, -51),
    "half the contrast": lambda image, _: lit(image, 0.5, 64),
    "resized to 95 %": lambda image, _: resized(image, 0.95),
    "resized to 90 %": lambda image, _: resized(image, 0.9),
    "resized to 110 %": lambda image, _: resized(image, 1.1),
    "noise, deviation 5 levels": lambda image, _: lit(
        image + np.random.default_rng(image.size).normal(0, 5, image.shape), 1
    ),
    "cropped by 1 %": lambda image, _: image[image.shape[0] // 100 :, image.shape[1] // 100 :],
    "turned by 90, JPEG quality 50": lambda image, _: encoded(turned(image, "90"), 50),
    "turned by 270, resized to 95 %, x 1.2, JPEG quality 75": lambda image, _: encoded(
        lit(resized(turned(image, "270"), 0.95), 1.2), 75
    ),
    "blend 80/20": lambda image, other: blended(image, other, 0.8),
    "blend 65/35": lambda image, other: blended(image, other, 0.65),
    "blend 50/50": lambda image, other: blended(image, other, 0.5),
    "blend 50/50, the image turned by 90": lambda image, other: blended(turned(image, "90"), other, 0.5),
}


def descriptors_of(pictures: list[Image]) -> Descriptors:
    descriptors = Descriptors(len(pictures))
    for index, picture in enumerate(pictures):
        descriptors[index] = describe(picture)
    return descriptors


def measure(paths: list[Path], seed: int) -> None:
    originals = [read.decode(path).pixels for path in paths]
    descriptors = descriptors_of(originals)
    within = find_copies(descriptors)
    print(f"{len(paths)} originals; pairs among them, to be looked at:")
    for copy in within:
        print(f"  {paths[copy.first].name} = {paths[copy.second].name} turned by {copy.turn}, score {copy.score:.2f}")
    alike = {(copy.first, copy.second) for copy in within} | {(copy.second, copy.first) for copy in within}
    # The partner in a blend; a permutation, so that each image is a partner once.
    partner = np.random.default_rng(seed).permutation(len(paths))
    print("\n| change | found | in the right turn | lowest score | median score | unlike images taken for copies |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for name, change in CHANGES.items():
        changed = [change(image, originals[partner[index]]) for index, image in enumerate(originals)]
        copies = find_copies(descriptors_of(changed), descriptors)
        blend = name.startswith("blend")
        own = {copy.first: copy for copy in copies if copy.first == copy.second}
        other = {copy.first for copy in copies if blend and copy.second == partner[copy.first]}
        right = sum(copy.turn == expected_turn(name) for copy in own.values())
        false = {
            copy.first
            for copy in copies
            if not any(
                source == copy.second or (source, copy.second) in alike
                for source in ((copy.first, partner[copy.first]) if blend else (copy.first,))
            )
        }
        found = len(own.keys() | other)
        scores = [copy.score for copy in own.values()] or [0.0]
        both = f" (the image itself {percent(len(own), len(paths))})" if blend else ""
        print(
            f"| {name} | {percent(found, len(paths))}{both} | {percent(right, max(len(own), 1))} | {min(scores):.2f} | "
            f"{np.median(scores):.2f} | {percent(len(false), len(paths))} |"
        )


def measure_peaks(paths: list[Path]) -> None:
    """Print the lowest peaks of true copies and the highest peaks of unlike images."""
    originals = [read.decode(path).pixels for path in paths]
    descriptors = descriptors_of(originals)
    pictures = [whitened(detail) for detail in descriptors.detail]
    print("| pairs | number | peak, in deviations | peak / highest rival |")
    print("| --- | ---: | ---: | ---: |")
    for name in ("JPEG quality 75", "JPEG quality 50", "JPEG quality 30", "20 % brighter (x 1.2)", "resized to 90 %"):
        changed = [whitened(describe(CHANGES[name](image, image)).detail) for image in originals]
        peaks = [find_peak(one, other) for one, other in zip(changed, pictures, strict=True)]
        deviations, rivals = min(peak.deviations for peak in peaks), min(peak.to_rival for peak in peaks)
        print(f"| {name}, the lowest | {len(peaks)} | {deviations:.0f} | {rivals:.1f} |")
    copies = {(copy.first, copy.second) for copy in find_copies(descriptors)}
    thumbs = descriptors.thumb.astype(np.float32)
    peaks = []
    for turn in TURNS if originals[0].shape[0] == originals[0].shape[1] else TURNS[::2]:
        alike = thumbs.reshape(len(thumbs), -1) @ turned(thumbs, turn).reshape(len(thumbs), -1).T
        for first, second in zip(*np.nonzero(np.triu(alike, 1) >= 0.2), strict=True):
            if (first, second) not in copies:
                peaks.append(find_peak(pictures[first], turned(pictures[second], turn)))
    deviations, rivals = max(peak.deviations for peak in peaks), max(peak.to_rival for peak in peaks)
    print(f"| unlike, thumbnails correlate by 0.2, the highest | {len(peaks)} | {deviations:.0f} | {rivals:.1f} |")


def expected_turn(name: str) -> str:
    mirrored = "mirror" if "mirrored" in name else ""
    degrees = next((degrees for degrees in ("90", "180", "270") if f"turned by {degrees}" in name), "")
    return "+".join(filter(None, (mirrored, degrees))) or "0"


def percent(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %"


def time_it(paths: list[Path], count: int, seed: int) -> None:
    """Time the reading and the searches on `count` images, almost none of which are copies."""
    rng = np.random.default_rng(seed)
    with tempfile.TemporaryDirectory() as folder:
        written = []
        for index in range(count):
            picture = new_picture(read.decode(paths[index % len(paths)]).pixels, rng)
            _, content = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_GRAY2BGR), [cv2.IMWRITE_JPEG_QUALITY, 95])
            written.append(Path(folder) / f"{index}.jpg")
            written[-1].write_bytes(content.tobytes())
        start = time.perf_counter()
        descriptors, _ = describe_all(written)
        read_s = time.perf_counter() - start
        start = time.perf_counter()
        copies = find_copies(descriptors)
        search_s = time.perf_counter() - start
        start = time.perf_counter()
        find_neighbours(descriptors)
        strips_s = time.perf_counter() - start
    print(
        f"{count} images of {picture.shape[0]}x{picture.shape[1]}: read {read_s:.2f} s, copies {search_s:.2f} s "
        f"({len(copies)} found), strips {strips_s:.2f} s; peak memory {peak_mib():.0f} MiB"
    )


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


class EnoughError(Exception):
    """Enough was measured."""


def fill_memory(count: int, seed: int, least_s: float = 30.0) -> None:
    """Search among `count` wide pictures of noise for half a minute."""
    rng = np.random.default_rng(seed)
    descriptors = Descriptors(count)
    descriptors.log_aspect[:] = np.log(256 / 1600)
    for index in range(count):
        descriptors.detail[index] = rng.integers(-96, 97, descriptors.detail.shape[1:], np.int8) | 1
        thumb = rng.standard_normal(descriptors.thumb.shape[1:], np.float32)
        descriptors.thumb[index] = thumb / np.linalg.norm(thumb)
    marks: list[tuple[float, float, float]] = []  # share that is done, seconds, processor time; after each block

    def report(done: int, total: int, text: str = "") -> None:
        marks.append((done / total, time.perf_counter(), time.process_time()))
        if marks[-1][1] - marks[0][1] > least_s:
            raise EnoughError

    with suppress(EnoughError):
        find_copies(descriptors, progress=report)
    share, whole_s, processor_s = (last - first for first, last in zip(marks[0], marks[-1], strict=True))
    print(
        f"{count} images: peak memory {peak_mib():.0f} MiB; the search of noise would take {whole_s / share:.0f} s, "
        f"{processor_s / share:.0f} s of processor time"
    )


def new_picture(image: Image, rng: Generator) -> Image:
    """A different picture with the same statistics: rolled by a random distance, turned, and relit."""
    shape = image.shape
    turns = TURNS if shape[0] == shape[1] else TURNS[::2]
    rolled = np.roll(image, [int(rng.integers(side // 4, 3 * side // 4)) for side in shape], (0, 1))
    return lit(turned(rolled, turns[int(rng.integers(len(turns)))]), float(rng.uniform(0.85, 1.1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", type=Path)
    parser.add_argument("--most", type=int, default=600)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peaks", action="store_true")
    parser.add_argument("--speed", type=int, default=0, metavar="N")
    parser.add_argument("--memory", type=int, default=0, metavar="N")
    arguments = parser.parse_args()
    paths = [image.path for image in find_images([arguments.images])][: arguments.most]
    if arguments.peaks:
        measure_peaks(paths)
    elif arguments.memory:
        fill_memory(arguments.memory, arguments.seed)
    elif arguments.speed:
        time_it(paths, arguments.speed, arguments.seed)
    else:
        measure(paths, arguments.seed)


if __name__ == "__main__":
    main()
