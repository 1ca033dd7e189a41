"""What makes a run end with another exit code: rules that images meet, and unreadable or blank images."""

import math
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Self

from defectseg import errors
from defectseg.errors import ExitCode, UsageError
from defectseg.predict.tables import (
    MM_COLUMNS,
    REGIONS,
    STATUS_BLANK,
    STATUS_UNREADABLE,
    OutputChoice,
    Record,
    region_columns,
)

ANY = "any"
_COUNT = "count"
_RANGES = {_COUNT: (1, math.inf), "score": (0, 1), "direction_deg": (0, 180)}  # more is never reached
_NUMBER = r"[0-9]{1,15}(?:\.[0-9]{1,15})?"
_FORM = "expected CLASS or CLASS:FIELD=NUMBER, such as any:area_px=500"


@dataclass(frozen=True)
class Rule:
    """One rule, met by an image with a region whose cell in a column of regions.csv is at least `least`.

    Attributes:
        text: the rule in words.
        class_id: of the region; None: any class.
        column: index of the column; None: the number of such regions in the image is at least `least`.
    """

    text: str
    class_id: int | None
    column: int | None
    least: float

    def met_by(self, record: Record) -> bool:
        """Whether an image meets the rule."""
        if self.class_id is None and self.column is None:  # needs no rows of regions.csv
            return (record.image["regions"] or 0) >= self.least
        rows = [row for row in record.regions if self.class_id in (None, row[1])]
        if self.column is None:
            return len(rows) >= self.least
        return any(float(row[self.column]) >= self.least for row in rows if len(row) > self.column)


@dataclass(frozen=True)
class Rules:
    """Rules of which an image has to meet one."""

    rules: tuple[Rule, ...]

    @classmethod
    def parse(
        cls, text: str, class_names: Sequence[str], choice: OutputChoice, only_classes: Collection[int] | None = None
    ) -> Self:
        """Read rules `CLASS[:FIELD=NUMBER]`, joined by commas; without FIELD, one region of the class is enough.

        CLASS is as for `class_id_of`, or `any`, which always means every class. FIELD is `count` or one of the columns
        of regions.csv that hold numbers.

        Args:
            text: the rules.
            class_names: of the model.
            choice: the outputs. Without `regions`, only the number of regions of any class is known.
            only_classes: ClassIds that are reported; None: all.

        Raises:
            UsageError: a rule of another form, or one that every image would meet, or none.
        """
        entries = [entry.strip() for entry in text.split(",") if entry.strip()]
        if not entries:
            raise UsageError(f"names no rule; {_FORM}.", argument="fail_on")
        return cls(tuple(_rule(entry, class_names, choice, only_classes) for entry in entries))

    def __str__(self) -> str:
        return " or ".join(rule.text for rule in self.rules)

    def met_by(self, record: Record) -> bool:
        """Whether an image meets one of the rules."""
        return any(rule.met_by(record) for rule in self.rules)


def _rule(entry: str, class_names: Sequence[str], choice: OutputChoice, only_classes: Collection[int] | None) -> Rule:
    def wrong(why: str) -> UsageError:
        return UsageError(f"{entry}: {why}.", argument="fail_on")

    name, field, number = _parts(entry, class_names)
    class_id = None if name == ANY else class_id_of(name, class_names)
    if class_id is None and name != ANY:
        known = f"CLASS is {ANY}, or the number or name of a class. The model has {listed_classes(class_names)}"
        raise wrong(f"{_FORM}. {known}")
    if class_id is not None and class_id not in (only_classes or (class_id,)):
        raise wrong(f"this class is not reported, only {listed_classes(class_names, only_classes)}")
    columns = region_columns(choice)
    fields = [_COUNT, *columns[columns.index("class_name") + 1 :]]
    if field not in fields:
        missing = f"{field} needs {errors.spelling('mm_per_px', 'X')}, the size of a pixel"
        raise wrong(missing if field in MM_COLUMNS else f"expected one of {', '.join(fields)}; found {field or 'none'}")
    low, high = _RANGES.get(field, (0, math.inf))
    value = float(number) if re.fullmatch(_NUMBER, number) else math.nan
    if not low <= value <= high:
        to_high = f" to {high:g}" if high < math.inf else ""
        raise wrong(f"expected a plain number from {low}{to_high}; found {number or 'none'}")
    if REGIONS not in choice.names and (class_id is not None or field != _COUNT):
        raise wrong(f"needs {REGIONS} among the outputs. Add it, or use {ANY} or {ANY}:{_COUNT}=NUMBER")
    shown = ANY if class_id is None else class_names[class_id - 1]
    text = shown if name == entry else f"{shown}:{field}>={number}"
    return Rule(text, class_id, None if field == _COUNT else columns.index(field), value)


def _parts(entry: str, class_names: Sequence[str]) -> tuple[str, str, str]:
    """The class, field and number in a rule. The name of a class may hold a colon and `=` itself."""
    name, _, condition = entry.rpartition(":")
    field, equals, number = condition.partition("=")
    if not name or not equals or class_id_of(entry, class_names):
        return entry, _COUNT, "1"
    return name.strip(), field.strip(), number.strip()


def class_id_of(entry: str, class_names: Sequence[str]) -> int | None:
    """The class given by number or name; None: there is none. A number is always a ClassId, even if it is a name."""
    if entry.isdecimal() and 1 <= int(entry) <= len(class_names):
        return int(entry)
    return class_names.index(entry) + 1 if entry in class_names else None


def listed_classes(class_names: Sequence[str], only: Collection[int] | None = None) -> str:
    """The classes for people, as `1 (pit), 2 (crack)`; `only`: ClassIds of those to list, None: all."""
    listed = only or range(1, len(class_names) + 1)
    return ", ".join(f"{class_id} ({class_names[class_id - 1]})" for class_id in listed)


def resolve_classes(wanted: Sequence[str], class_names: Sequence[str]) -> tuple[int, ...]:
    """ClassIds of classes given by number or name. A number is always a ClassId, even if a class has it as its name.

    Raises:
        UsageError: no class, or one that the model does not have.
    """
    known = f"the model has {listed_classes(class_names)}"
    if not wanted:
        raise UsageError(f"names no class; {known}. Leave it out to report all.", argument="classes")
    ids = set()
    for entry in wanted:
        class_id = class_id_of(entry, class_names)
        if class_id is None:
            raise UsageError(f"found {entry}; {known}.", argument="classes")
        ids.add(class_id)
    return tuple(sorted(ids))


@dataclass(frozen=True)
class Tolerance:
    """How many unreadable images are accepted: a number, or a percentage of the images that were given."""

    number: Decimal
    is_percentage: bool

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read `N` or `P%`. Raises UsageError."""
        match = re.fullmatch(rf"([0-9]{{1,15}})|({_NUMBER})%", text.strip())
        number = Decimal(match[1] or match[2]) if match else Decimal(-1)
        if match is None or (match[2] and number > 100):
            raise UsageError(f"expected a number such as 3, or 0% to 100%; found {text}.", argument="max_unreadable")
        return cls(number, match[2] is not None)

    def covers(self, unreadable: int, images: int) -> bool:
        """Whether so many unreadable ones among all images given are accepted."""
        return unreadable * 100 <= self.number * images if self.is_percentage else unreadable <= self.number


NONE_UNREADABLE = Tolerance(Decimal(0), is_percentage=False)


def exit_code_of(
    run: dict[str, Any], *, fail_on_blank: bool = False, max_unreadable: Tolerance = NONE_UNREADABLE
) -> ExitCode:
    """The exit code of a finished run.

    Rules (see `OutputFolder.finish`) and blank images count for all images in the folder; unreadable ones for those
    that were given to this run.
    """
    if run.get("fail_on", {}).get("images"):
        return ExitCode.DEFECT_FOUND
    unreadable = run[STATUS_UNREADABLE]
    given = run["processed"] + unreadable + run.get("already_done", 0)
    if not max_unreadable.covers(unreadable, given) or (fail_on_blank and run["images_in_folder"][STATUS_BLANK]):
        return ExitCode.PARTIAL
    return ExitCode.DONE
