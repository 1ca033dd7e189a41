"""Flags that several commands share."""

import logging
import re
from dataclasses import dataclass
from typing import Annotated

import typer

from defectseg.errors import UsageError
from defectseg.image.whole import MAX_PIXELS, allow_pixels


def _set_verbose(value: bool) -> bool:
    if value:
        logging.getLogger("defectseg").setLevel(logging.DEBUG)
        state.verbose = True
    return value


def _allow_pixels(count: int | None) -> int | None:
    allow_pixels(MAX_PIXELS if count is None else count)
    return count


@dataclass
class _State:
    verbose: bool = False


state = _State()

Verbose = Annotated[
    bool, typer.Option("--verbose", help="Show details, and the traceback of an error.", callback=_set_verbose)
]
Device = Annotated[str, typer.Option("--device", help="auto, cpu, cuda, cuda:N or mps.", metavar="DEVICE")]
RuntimeName = Annotated[
    str,
    typer.Option(
        "--runtime",
        help="Library that computes: auto takes torch on a GPU and openvino on a CPU.",
        metavar="auto|torch|openvino|onnx",
    ),
]
Tta = Annotated[
    str | None,
    typer.Option(
        "--tta",
        help="Average over 4 mirrored views of each image, or over 8 where it is square. Default: what MODEL says.",
        metavar="none|flips|turns",
    ),
]
BitDepth = Annotated[
    int | None,
    typer.Option(
        "--bit-depth",
        help="Bits that 16-bit files hold. Default: what their TIFF tag says, else what the model was trained with, "
        "else 16.",
        min=9,
        max=16,
        metavar="BITS",
    ),
]
MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        help=f"Images with more pixels than this are not decoded, to save memory. Default: {MAX_PIXELS}.",
        callback=_allow_pixels,
        min=1,
        max=2**30,  # OpenCV's own limit
        metavar="N",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object to standard output.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what an earlier run left in --out.")]


def entries(listed: str | None) -> list[str] | None:
    """The entries of a comma-separated list; None where there is no list."""
    return None if listed is None else [entry.strip() for entry in listed.split(",") if entry.strip()]


def parse_size(text: str) -> tuple[int, int]:
    """Height and width of `--size HxW`."""
    match = re.fullmatch(r"([1-9]\d{0,4})[xX×]([1-9]\d{0,4})", text)
    if match is None:
        raise UsageError(f"--size {text}: expected height x width in px, such as 256x1600.")
    return int(match[1]), int(match[2])
