"""What imports and exports share: folders that appear whole or not at all, and the account of what was lost."""

import secrets
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from defectseg import files
from defectseg.errors import OutputExistsError

IGNORE_NAME = "ignore"  # what ClassId 255 is called in formats that know classes by name

Progress = Callable[[int, int], None]
_EXAMPLES_SHOWN = 5


@dataclass(frozen=True)
class Loss:
    """Something that the other format could not hold, or that could not be taken over.

    Attributes:
        kind: a short name, the same for ever, for programs.
        count: how many; of what, the message says.
        message: a sentence or two for people.
    """

    kind: str
    count: int
    message: str


class Tally:
    """Counts what gets lost while it gets lost."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, list[str]] = {}

    def add(self, kind: str, count: int = 1, *, example: str = "") -> None:
        """Count something lost; `example` names where."""
        if count:
            self._counts[kind] += count
            examples = self._examples.setdefault(kind, [])
            if example and example not in examples and len(examples) < _EXAMPLES_SHOWN:
                examples.append(example)

    def losses(self, messages: Mapping[str, str]) -> tuple[Loss, ...]:
        """The account, in the order of `messages`: kind -> sentence with {count} and {examples}."""
        assert self._counts.keys() <= messages.keys()
        return tuple(
            Loss(
                kind,
                self._counts[kind],
                message.format(count=self._counts[kind], examples=", ".join(self._examples[kind])),
            )
            for kind, message in messages.items()
            if self._counts[kind]
        )


def some(names: Iterator[str] | list[str] | set[str]) -> str:
    """The first few of some names in order, and how many more there are."""
    ordered = sorted(names)
    more = len(ordered) - _EXAMPLES_SHOWN
    return ", ".join(ordered[:_EXAMPLES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def check_is_free(out: Path) -> None:
    """Raise OutputExistsError unless a folder is absent or empty."""
    if out.exists() and not (out.is_dir() and files.is_empty_folder(out)):
        raise OutputExistsError(f"{out}: exists and is not empty. Choose another --out.")


@contextmanager
def new_folder(out: Path, *, last: str) -> Iterator[Path]:
    """Give an empty folder beside `out`; on leaving without an error it becomes `out`, else nothing is left.

    Args:
        out: a folder that is absent or empty.
        last: the entry that makes the folder complete: where `out` is there already, it is moved in after the others.

    Raises:
        OutputExistsError: `out` is not empty.
        ResourceError: it cannot be written.
    """
    check_is_free(out)
    out = out.absolute()
    building = out.with_name(f"{files.TEMPORARY_PREFIX}{secrets.token_hex(4)}-{out.name}")
    try:
        with files.resource_errors(out):
            building.mkdir(parents=True)
            yield building
            if out.exists():  # perhaps somebody's working folder: fill it
                for entry in sorted(building.iterdir(), key=lambda entry: (entry.name == last, entry.name)):
                    entry.rename(out / entry.name)
            else:
                building.rename(out)
    finally:
        shutil.rmtree(building, ignore_errors=True)


def place_image(source: Path, target: Path, *, link: bool) -> None:
    """Copy an image, or make a link to it. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if link:
        target.symlink_to(source.resolve())
    else:
        shutil.copyfile(source, target)
