"""The files that say what the values and colours of masks mean."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from defectseg.errors import LabelError
from defectseg.formats.classes import BACKGROUND_NAMES, IGNORE_NAMES
from defectseg.formats.common import read_text
from defectseg.formats.source import LabelSource

LABELMAP, _DATASET, _VALUES = "labelmap.txt", "dataset.json", "_classes.csv"
_LISTS = ("class_names.txt", "labels.txt", "classes.txt")
_BYTE = "([01]?[0-9]{1,2}|2[0-4][0-9]|25[0-5])"
_COLOUR, _VALUE = re.compile(f"(.+?):{_BYTE},{_BYTE},{_BYTE}(?::.*)?"), re.compile("(.+):([0-9]{1,5})", re.DOTALL)
_IGNORED_VALUE = 255  # labelme's -1

VOC_NAMES = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
COLOUR = 1 << 24
"""Added to the 0xRRGGBB of every colour but black, so that colours are no numbers."""
VOC_NUMBERS = {
    sum(((number >> bit) & 1) << (23 - 8 * (bit % 3) - bit // 3) for bit in range(8)) + COLOUR * (number > 0): number
    for number in range(256)
}
"""Colour -> number, by the colour table of Pascal VOC, which labelme has as well. The bits of a number are dealt to
red, green and blue in turn, the highest bit of each colour first."""


@dataclass(frozen=True)
class Names:
    """What values or colours mean.

    Attributes:
        where: the file that says so, for messages; "" if there is none.
        of_value: value, or colour -> class.
        by_colour: these are colours.
        from_one: these are a list whose first line names value 1.
    """

    where: str = ""
    of_value: Mapping[int, str] = field(default_factory=dict)
    by_colour: bool = False
    from_one: bool = False

    @property
    def classes(self) -> list[str]:
        """The classes, without sound steel and pixels to ignore."""
        special = {*BACKGROUND_NAMES, *IGNORE_NAMES}
        return [name for name in dict.fromkeys(self.of_value.values()) if name.lower() not in special]

    def of(self, values: Collection[int]) -> Mapping[int, str]:
        """Value -> class, for masks with these values: where 0 is a class, a list begins with it."""
        shift = int(0 in values and self.from_one)
        return {value - shift: name for value, name in self.of_value.items()}


def read_names(source: LabelSource) -> Names:
    """The meaning of values or colours, from the first of these files that is there, in the outermost folder.

    labelmap.txt (CVAT, Datumaro), dataset.json (nnU-Net), _classes.csv (Roboflow), or a list of names: class_names.txt
    and labels.txt (labelme), classes.txt. The first line of a list names value 1, unless it is the background's.

    Raises:
        LabelError: the file is damaged; names the line.
    """
    for name in (LABELMAP, _DATASET, _VALUES, *_LISTS):
        for file in sorted(source.named(name), key=lambda file: file.count("/"))[:1]:
            where = str(source.path(file))
            if name == LABELMAP:
                lines = [line for line in _lines(source, file) if line and not line.startswith("#")]
                if all(line.endswith(":::") for line in lines):  # the colours are those of VOC
                    return _read_list([line.removesuffix(":::") for line in lines], where)
                return Names(where, _read_table(lines, _COLOUR, "name:red,green,blue::", where), True)
            if name == _VALUES:
                rows = [line.partition(",") for line in _lines(source, file)[1:]]
                lines = [f"{label.strip()}:{value.strip()}" for value, _, label in rows]
                return Names(where, _read_table(lines, _VALUE, "a class and its value", where))
            if name in _LISTS:
                return _read_list(_lines(source, file), where)
            content = source.json(file)
            if isinstance(content, dict) and isinstance(labels := content.get("labels"), dict):
                # {"pit": 1}, or {"1": "pit"} as the first version of nnU-Net wrote it
                lines = [f"{it}:{key}" if isinstance(it, str) else f"{key}:{it}" for key, it in labels.items()]
                return Names(where, _read_table(lines, _VALUE, "a class and its value", where))
    return Names()


def _lines(source: LabelSource, file: str) -> list[str]:
    text = read_text(source.path(file), "expected a name on each line")
    return [line.strip() for line in text.rstrip().splitlines()]


def _read_table(lines: Sequence[str], pattern: re.Pattern[str], expected: str, where: str) -> dict[int, str]:
    """Value or colour -> class."""
    table: dict[int, str] = {}
    for line in lines:
        match = pattern.fullmatch(line)
        key = 0
        for number in match.groups()[1:] if match else ():
            key = key << 8 | int(number)
        key += COLOUR * (pattern is _COLOUR and key > 0)
        if match is None or table.setdefault(key, match[1].strip()) != match[1].strip():
            why = f"'{table[key]}' has the same value or colour" if match else f"expected {expected}"
            raise LabelError(f"{where}: '{line[:60]}'; {why}. Correct it.")
    return table


def _read_list(lines: Sequence[str], where: str) -> Names:
    if "" in lines:
        raise LabelError(f"{where}: line {lines.index('') + 1} is blank; expected a name on each line.")
    first = {_IGNORED_VALUE: lines[0]} if lines and lines[0].lower() in IGNORE_NAMES else {}
    rest = lines[len(first) :]
    from_one = not (rest and rest[0].lower() in BACKGROUND_NAMES)
    return Names(where, dict(enumerate(rest, start=int(from_one))) | first, from_one=from_one)
