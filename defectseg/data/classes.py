"""The names of the classes: classes.txt, and matching them with the classes of a model."""

import logging
import re
from collections.abc import Sequence
from pathlib import Path

from defectseg.errors import DataError, printable
from defectseg.files import write_text
from defectseg.text import read_text

log = logging.getLogger(__name__)

CLASSES_NAME = "classes.txt"
MAX_CLASSES = 254
MOST_UNNAMED_CLASSES = 20
_PLACEHOLDER = re.compile(r"class ([1-9][0-9]*)")
_FEWEST_UNNAMED_CLASSES = 4  # as Severstal has, so that a part of its table without rare classes has four, too


def write_class_names(root: Path, class_names: Sequence[str]) -> None:
    """Write classes.txt, whose line n names ClassId n. Raises ResourceError."""
    write_text(root / CLASSES_NAME, "".join(f"{name}\n" for name in class_names))


def read_class_names(root: Path, largest_class_id: int) -> tuple[str, ...]:
    """The lines of classes.txt, or "class 1" and so on where there is no such file. Raises DataError."""
    path = root / CLASSES_NAME
    if not path.exists():
        return tuple(f"class {number}" for number in range(1, max(_FEWEST_UNNAMED_CLASSES, largest_class_id) + 1))
    lines = read_text(path, "expected a name on each line").rstrip().splitlines()
    return tuple(line.strip() for line in lines)


def check_class_names(names: Sequence[str], *, where: str) -> None:
    """Refuse names that cannot tell classes apart.

    Raises:
        DataError: there are none, more than 254, a blank name or a duplicate; the message begins with `where`.
    """
    if not 1 <= len(names) <= MAX_CLASSES:
        raise DataError(f"{where}: {len(names)} class names; expected 1 to {MAX_CLASSES}.")
    for number, name in enumerate(names, start=1):
        if not name.strip():
            raise DataError(f"{where}: the name of ClassId {number} is blank. Line n names ClassId n.")
        if printable(name) != name:
            raise DataError(f"{where}: the name of ClassId {number} is too long or has control characters: {name}")
        if name in names[: number - 1]:
            raise DataError(f"{where}: '{name}' names ClassId {names.index(name) + 1} and {number}. Rename one.")


def match_classes(path: Path, names: Sequence[str], model_names: Sequence[str]) -> dict[str, int]:
    """The model's names of the folder's classes, in the model's order, each with its ClassId in the folder.

    Classes are matched by name; where all names of one side are placeholders, "class N", by number.

    Args:
        path: classes.txt.
        names: its lines.
        model_names: the classes of the model.

    Raises:
        DataError: the folder names a class that the model does not know.
    """
    keys: Sequence[str | int] = names
    model_keys: Sequence[str | int] = model_names
    numbers, model_numbers = _placeholder_numbers(names), _placeholder_numbers(model_names)
    if numbers or model_numbers:
        keys = numbers or range(1, len(names) + 1)
        model_keys = model_numbers or range(1, len(model_names) + 1)
        log.info("%s: classes are matched by number: %s has placeholders", path, "it" if numbers else "the model")
    if unknown := [name for name, key in zip(names, keys, strict=True) if key not in model_keys]:
        raise DataError(
            f"{path}: names {', '.join(unknown)}, which the model does not know. Classes of the folder: "
            f"{', '.join(names)}; of the model: {', '.join(model_names)}. Where the model only uses another word, "
            "write it into classes.txt, on the same line; else use a model that was trained on these classes."
        )
    ids = {name: keys.index(key) + 1 for name, key in zip(model_names, model_keys, strict=True) if key in keys}
    if left_out := [name for name in model_names if name not in ids]:
        others, named = ", ".join(left_out), ", ".join(ids)
        log.warning("%s: does not name %s; of the model's classes only %s count", path, others, named)
    return ids


def are_grey_values(names: Sequence[str]) -> bool:
    """Whether there are so many classes without names that they are probably the grey values of a picture."""
    return len(names) > MOST_UNNAMED_CLASSES and bool(_placeholder_numbers(names))


def _placeholder_numbers(names: Sequence[str]) -> tuple[int, ...]:
    """N of each name "class N"; empty if any name is not of this form."""
    found = [match for name in names if (match := _PLACEHOLDER.fullmatch(name))]
    return tuple(int(match[1]) for match in found) if len(found) == len(names) else ()
