"""Compare networks: time for an image, and scores on the images that each held out.

    python scripts/bench/networks.py DATA LABEL=RUN [LABEL=RUN ...] [--metric positive_dice|miou] [--plot FILE.png]

DATA is a data folder, RUN a run folder of `defectseg train --fold N`. The networks take turns in each round, so that
other load on the machine affects all of them equally. Each sees one view of an image, whatever its recipe says.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np

from defectseg.data.folder import open_data_folder
from defectseg.evaluate.metrics import Metrics, summarise
from defectseg.evaluate.score import score_images
from defectseg.evaluate.subset import choose_subset
from defectseg.image.read import decode
from defectseg.inference.settings import Settings
from defectseg.model.info import ModelInfo
from defectseg.model.locate import find_model
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime


@dataclass(frozen=True)
class Point:
    """One network: milliseconds for an image, and its scores."""

    label: str
    milliseconds: float
    metrics: Metrics


def main() -> None:
    """Print a Markdown table, and draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("networks", nargs="+", metavar="LABEL=RUN")
    parser.add_argument("--metric", default="positive_dice", choices=("positive_dice", "miou"))
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    runs = dict(entry.split("=", 1) for entry in args.networks)
    data = open_data_folder(args.data)
    runtimes = {
        label: load_runtime(find_model(Path(run)), "cpu", args.runtime, workers=1) for label, run in runs.items()
    }
    image = decode(data.image_path(data.image_ids[0])).pixels
    milliseconds = measure({label: runtime for label, (runtime, _) in runtimes.items()}, image, args.rounds)
    points = [
        Point(label, milliseconds[label], score(runtime, info, args.data, Path(runs[label])))
        for label, (runtime, info) in runtimes.items()
    ]
    print_table(points, args.data.name)
    if args.plot is not None:
        draw(points, args.metric, args.plot)


def measure(runtimes: dict[str, Runtime], image: np.ndarray, rounds: int) -> dict[str, float]:
    """Median milliseconds of each for one image, after one call to warm up."""
    seconds: dict[str, list[float]] = {label: [] for label in runtimes}
    for number in range(rounds + 1):
        for label, runtime in runtimes.items():
            begun = time.perf_counter()
            runtime(image[None, None])
            if number:
                seconds[label].append(time.perf_counter() - begun)
    return {label: 1000 * median(values) for label, values in seconds.items()}


def score(runtime: Runtime, info: ModelInfo, root: Path, run: Path) -> Metrics:
    """Scores on the images that the run held out, with the thresholds in the model."""
    data = open_data_folder(root, class_names=info.class_names)
    image_ids, _ = choose_subset(data, info, (find_model(run),), "val", None)
    counts = score_images(runtime, data, image_ids, Settings.of(info, tta="none")).counts
    return summarise(counts, data.class_names)


def print_table(points: list[Point], data: str) -> None:
    """One row for each network, the quickest first."""
    print(f"| {data} | ms | Kaggle Dice | positive Dice | mIoU |\n| --- | ---: | ---: | ---: | ---: |")
    for point in sorted(points, key=lambda point: point.milliseconds):
        scores = point.metrics
        print(
            f"| {point.label} | {point.milliseconds:.1f} | {scores.kaggle_dice:.3f} | {scores.positive_dice:.3f} | "
            f"{scores.miou:.3f} |"
        )


def draw(points: list[Point], metric: str, path: Path) -> None:
    """Score over time; the line joins the networks that no other beats in both."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(7, 4.2))
    front: list[Point] = []
    for point in sorted(points, key=lambda point: point.milliseconds):
        value = getattr(point.metrics, metric)
        axes.plot(point.milliseconds, value, "o", color="tab:blue")
        axes.annotate(point.label, (point.milliseconds, value), textcoords="offset points", xytext=(6, 4), fontsize=8)
        if not front or value > getattr(front[-1].metrics, metric):
            front.append(point)
    axes.plot([point.milliseconds for point in front], [getattr(point.metrics, metric) for point in front], "r--", lw=1)
    axes.set_xlabel("ms for an image")
    axes.set_ylabel(metric.replace("_", " "))
    axes.margins(x=0.25, y=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    main()
