"""What can be wrong with a data folder, one thing at a time."""

from dataclasses import dataclass
from typing import Literal

Severity = Literal["error", "warning"]


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes:
        severity: "error" where training or scoring would stop or be wrong, "warning" where it may be meant so.
        kind: "image", "image-note", "size", "dark", "missing-image", "fields", "image-id", "class", "rle", "duplicate",
            "overlap", "mask-size", "mask-disagreement", "classes", "groups", "split" or "against".
        image: ImageId, "" where none is concerned.
        row: line in the label table, groups.csv or split.csv, the header being 1; None where none is concerned.
        message: what is wrong, with its place.
        remedy: what to do.
    """

    severity: Severity
    kind: str
    image: str
    row: int | None
    message: str
    remedy: str


def error(kind: str, message: str, remedy: str, *, image: str = "", row: int | None = None) -> Fault:
    """A fault that has to be mended."""
    return Fault("error", kind, image, row, message, remedy)


def warning(kind: str, message: str, remedy: str, *, image: str = "", row: int | None = None) -> Fault:
    """A fault that may be meant so."""
    return Fault("warning", kind, image, row, message, remedy)
