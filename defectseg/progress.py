"""How far long work has come, and lists of names that stay short."""

from collections.abc import Iterator
from typing import Protocol

EXAMPLES_SHOWN = 5


class Progress(Protocol):
    """Is told how far a long piece of work has come; the command line draws it as a bar."""

    def __call__(self, done: int, total: int, text: str = "") -> None:
        """Take `done` of `total` steps, 0 where the total is not known, and a line on the present step."""


def silent(done: int, total: int, text: str = "") -> None:
    """The Progress of a caller who does not want to know."""


def some(names: Iterator[str] | list[str] | set[str]) -> str:
    """The first few of some names in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - EXAMPLES_SHOWN
    return ", ".join(ordered[:EXAMPLES_SHOWN]) + (f" and {more} more" if more > 0 else "")
