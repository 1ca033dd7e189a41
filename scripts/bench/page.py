#!/usr/bin/env python
"""Measure index.html, the page of `predict`: its size, what writing it costs, and how fast it is in headless Chromium.

Makes output folders of that many images with random results (names such as `line 1/coil0012/sheet_000483.jpg`, 40 to a
coil, one in eight with defects of three classes), all with an overlay of 1600x256 px. For each folder, the tables are
written with and without the page, in processes of their own. Then the page is opened five times: "ready" is the end of
its load event, with the first images shown; a filter's time ends when the browser has painted its images.

Usage: python scripts/bench/page.py [--counts 1000,5000,20000,100000] [--folder DIR]
"""

import argparse
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from predict import print_machine

from defectseg.machine import peak_memory_mb
from defectseg.predict.output import output_folder, read_results
from defectseg.predict.tables import ALL_OUTPUTS, IMAGE_COLUMNS, OUTPUTS, PAGE, OutputChoice, Record

NAMES = ("pits", "scratches", "rolled-in scale")
KEY = {"only_classes": None}
GROUP = "coil[0-9]+"
ROUNDS = 5
LINKS = 50_000  # to one file; ext4 allows 65,000
FILTERS = {"status": 2, "class": 1, "size": 2, "group": 1, "unlike": 1, "part": 7, "order": 1}  # option to choose
TIMED = """async ([name, option]) => {
  const begun = performance.now(), control = document.getElementById(name);
  if (name === "text") { control.value = "coil000"; control.dispatchEvent(new Event("input")); }
  else { control.selectedIndex = option; control.dispatchEvent(new Event("change")); }
  await new Promise((paint) => requestAnimationFrame(() => setTimeout(paint)));
  const took = performance.now() - begun;
  document.querySelector("[type=reset]").click();
  await new Promise((paint) => requestAnimationFrame(() => setTimeout(paint)));
  return took;
}"""


def make_folder(root: Path, images: int) -> None:
    draw = random.Random(0)
    pixels = np.random.default_rng(0).normal(110, 20, (256, 1600)).clip(0, 255).astype(np.uint8)
    overlay = cv2.imencode(".jpg", cv2.GaussianBlur(pixels, (0, 0), 2))[1].tobytes()
    with output_folder(root, KEY, OutputChoice(group=GROUP)) as output:
        image_ids = [f"line 1/coil{number // 40:04}/sheet_{number:06}.jpg" for number in range(images)]
        output.name_pictures(image_ids)
        first = Path()
        for number, image_id in enumerate(image_ids):
            path = output.picture_paths(image_id)["overlays"]
            path.parent.mkdir(parents=True, exist_ok=True)
            if number % LINKS:
                path.hardlink_to(first)
            else:
                first = path
                path.write_bytes(overlay)
            output.journal.add(make_record(image_id, draw))
        output.finish({"status": "finished", "class_names": NAMES})


def make_record(image_id: str, draw: random.Random) -> Record:
    regions: list[list[Any]] = []
    for _ in range(draw.randint(1, 4) if draw.random() < 1 / 8 else 0):
        class_id, area_px = draw.randint(1, 3), int(10 ** draw.uniform(1.3, 4.5))
        regions.append([image_id, class_id, NAMES[class_id - 1], area_px, 0, 0, 9, 9, "4.0", "4.0", "0.9000"])
    image: dict[str, Any] = dict.fromkeys(IMAGE_COLUMNS, "") | {"ImageId": image_id, "height": 256, "width": 1600}
    image |= {"status": "defect" if regions else "clean", "regions": len(regions), "size_bytes": 1, "modified_ns": 1}
    image |= {"defect_area_px": sum(row[3] for row in regions), "top_score": "0.9000" if regions else ""}
    unlike = draw.random()
    image |= {"sheet_score": f"{draw.random():.4f}", "unlike": f"{unlike:.4f}"}
    image |= {"differs": "darker by 18 %, blurred" if unlike > 0.99 else ""}
    return Record(image, [[image_id, class_id, ""] for class_id in (1, 2, 3)], regions, [])


def finish(root: Path, names: tuple[str, ...]) -> None:
    with output_folder(root, KEY, OutputChoice(names, group=GROUP)) as output:
        output.pending([])
        begun_s = time.perf_counter()
        output.finish(read_results(root)[0])
        seconds = time.perf_counter() - begun_s
    print(json.dumps([seconds, peak_memory_mb()]))


def measure_finish(root: Path, names: tuple[str, ...]) -> tuple[float, float]:
    """Seconds and peak memory in MB of a process that writes the tables."""
    command = [sys.executable, __file__, "--folder", str(root), "--finish", ",".join(names)]
    return tuple(json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout))


def measure_page(path: Path) -> tuple[float, dict[str, float]]:
    """Median ms until the page is ready, and of each filter."""
    from playwright.sync_api import sync_playwright

    ready, filters = [], {name: list[float]() for name in (*FILTERS, "text")}
    with sync_playwright() as engines:
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = engines.chromium.launch(executable_path=shutil.which("chromium"), args=options)
        for _ in range(ROUNDS):
            page = chromium.new_page(viewport={"width": 1440, "height": 1000})
            page.goto(path.as_uri(), wait_until="load")
            page.wait_for_timeout(300)
            ready.append(page.evaluate("performance.getEntriesByType('navigation')[0].loadEventEnd"))
            for name, times in filters.items():
                times.append(page.evaluate(TIMED, [name, FILTERS.get(name)]))
            page.close()
        chromium.close()
    return float(np.median(ready)), {name: float(np.median(times)) for name, times in filters.items()}


def measure(root: Path, images: int) -> None:
    if not root.exists():
        make_folder(root, images)
    plain = measure_finish(root, tuple(name for name in OUTPUTS if name != PAGE))
    with_page = measure_finish(root, ALL_OUTPUTS.names)
    page = root / "index.html"
    ready_ms, filters_ms = measure_page(page)
    slowest = max(filters_ms, key=filters_ms.__getitem__)
    print(
        f"| {images:,} | {page.stat().st_size / 1e6:.2f} | {plain[0]:.2f} | {with_page[0]:.2f} | {plain[1]:.0f} | "
        f"{with_page[1]:.0f} | {ready_ms / 1000:.2f} | {np.median(list(filters_ms.values())):.0f} | "
        f"{filters_ms[slowest]:.0f} ({slowest}) |",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1000,5000,20000,100000", help="numbers of images")
    parser.add_argument("--folder", type=Path, help="where the output folders are made and kept")
    parser.add_argument("--finish", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.finish:
        finish(args.folder, tuple(args.finish.split(",")))
        return
    print_machine()
    columns = "page, MB", "tables, s", "with it, s", "peak, MB", "with it, MB", "ready, s", "filter, ms", "slowest, ms"
    print(f"| images | {' | '.join(columns)} |")
    print("| ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for images in map(int, args.counts.split(",")):
            measure(folder / str(images), images)


if __name__ == "__main__":
    main()
