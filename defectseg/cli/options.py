"""Arguments and options that several commands share."""

import logging
import re
from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from defectseg.errors import UsageError
from defectseg.image.limits import MAX_PIXELS, allow_pixels


def _set_verbose(value: bool) -> bool:
    if value:
        logging.getLogger("defectseg").setLevel(logging.DEBUG)
    return value


def _allow_pixels(count: int | None) -> int | None:
    allow_pixels(MAX_PIXELS if count is None else count)
    return count


MODEL = Argument(
    help="Model file or run folder of train. Several are averaged: comma-separated, or the folder of train --fold all.",
    metavar="MODEL",
)
Model = Annotated[str, MODEL]
DataFolder = Annotated[Path, Argument(help="Data folder: train.csv beside train_images/.", metavar="DIR")]
DATA = Option(help="Data folder: train.csv beside train_images/.", metavar="DIR")
Data = Annotated[Path, DATA]
NewFolder = Annotated[Path, Option(help="Folder to write; absent or empty.", metavar="DIR")]
Split = Annotated[
    Path | None, Option(help="split.csv that defines train, val and test. Default: beside MODEL.", metavar="FILE")
]
Device = Annotated[str, Option(help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
Runtime = Annotated[
    Literal["auto", "torch", "openvino", "onnx"],
    Option(help="Library that runs the network. auto: torch on a GPU, openvino on a CPU."),
]
Tta = Annotated[
    Literal["none", "flips", "turns"] | None,
    Option(help="Average over 4 mirrored views, or over 8 views of square images. Default: as MODEL says."),
]
BitDepth = Annotated[
    int | None,
    Option(
        help="Bits used in 16-bit files. Default: from the TIFF tag, else as in training, else 16.",
        metavar="BITS",
        min=9,
        max=16,
    ),
]
MaxPixels = Annotated[
    int | None,
    Option(
        help="Do not decode images with more pixels, or that take the memory of more, as colours of 16 bits do. "
        f"Default: {MAX_PIXELS}.",
        metavar="N",
        min=1,
        max=2**33,  # OpenCV decodes 2**30, which may take the memory of more
        callback=_allow_pixels,
    ),
]
Classes = Annotated[
    str | None, Option(help="Report only these classes, by number or name, e.g. 1,scratch.", metavar="LIST")
]
Outputs = Annotated[
    str | None,
    Option(
        help="Write only these; rle is predictions.csv, page index.html.", metavar="overlays,masks,rle,regions,page"
    ),
]
Overlays = Annotated[Literal["all", "defects", "none"] | None, Option(help="Images that get an overlay. Default: all.")]
Workers = Annotated[
    int | None,
    Option(help="Images in the network at once; with --engine ray, cores of each process.", min=1, metavar="N"),
]
FailOn = Annotated[
    str | None,
    Option(
        help="Exit with 10 if an image in --out meets one of these rules, comma-separated. CLASS: number, name or any; "
        "FIELD: column of regions.csv, or count; met from NUMBER on. E.g. 1,scratch:area_px=500,any:count=20.",
        metavar="CLASS[:FIELD=NUMBER]",
    ),
]
FailOnDefect = Annotated[
    bool, Option("--fail-on-defect", help="Exit with 10 if any image in --out has a defect: --fail-on any.")
]
FailOnBlank = Annotated[
    bool, Option("--fail-on-blank", help="Exit with 3 if any image in --out is blank (shows nothing).")
]
MaxUnreadable = Annotated[
    str, Option(help="Accept so many unreadable images, or % of those given: no exit code 3.", metavar="N|P%")
]
MmPerPx = Annotated[
    str | None,
    Option(
        help="Add sizes in mm to regions.csv. X: mm of a pixel along the rows; Y: across them, if different.",
        metavar="X[xY]",
    ),
]
Group = Annotated[
    str | None,
    Option(
        help="Regular expression: images in whose ImageId it matches the same text are of one group, such as a coil. "
        "Parentheses choose a part of the match.",
        metavar="REGEX",
    ),
]
Seed = Annotated[int, Option(help="The same seed gives the same result.", min=0, metavar="S")]
Json = Annotated[bool, Option("--json", help="Print one JSON object to standard output.")]
Overwrite = Annotated[bool, Option("--overwrite", help="Replace the results of an earlier run in --out.")]
Verbose = Annotated[
    bool, Option("--verbose", help="Show details, and the traceback of an error.", callback=_set_verbose)
]


def entries(listed: str | None) -> list[str] | None:
    """The entries of a comma-separated list; None if there is no list."""
    return None if listed is None else [entry.strip() for entry in listed.split(",") if entry.strip()]


def all_rules(fail_on: str | None, fail_on_defect: bool) -> str | None:
    """The rules of `--fail-on` and `--fail-on-defect` together."""
    if not fail_on_defect:
        return fail_on
    return "any" if fail_on is None else f"any,{fail_on}"


def parse_mm_per_px(text: str | None) -> tuple[float, float] | None:
    """Width and height of a pixel in mm of `--mm-per-px X[xY]`, or None."""
    if text is None:
        return None
    sides = [float(side) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", side) else 0.0 for side in re.split("[xX×]", text)]
    if len(sides) > 2 or not all(sides):
        raise UsageError(f"--mm-per-px {text}: expected mm along the rows x mm across them, such as 0.5 or 0.5x0.8.")
    return sides[0], sides[-1]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width in px of `--size HxW`."""
    match = re.fullmatch(r"([1-9]\d{0,4})[xX×]([1-9]\d{0,4})", text)
    if match is None:
        raise UsageError(f"--size {text}: expected height x width in px, such as 256x1600.")
    return int(match[1]), int(match[2])
