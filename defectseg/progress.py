"""The progress callback, and short lists of names for messages."""

from collections.abc import Iterable
from typing import Protocol

EXAMPLES_SHOWN = 5


class Progress(Protocol):
    """A callback for the progress of a long task; the command line draws it as a bar."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Report `done` of `total` steps (0 if the total is unknown) and a line about the current step."""


def silent(done: int, total: int, text: str = "") -> None:
    """A Progress that does nothing."""


def some(names: Iterable[str]) -> str:
    """The first few names in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - EXAMPLES_SHOWN
    return ", ".join(ordered[:EXAMPLES_SHOWN]) + (f" and {more} more" if more > 0 else "")
