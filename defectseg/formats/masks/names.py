"""The files that say what the values and colours of masks mean."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from defectseg.errors import LabelError
from defectseg.formats.classes import BACKGROUND_NAMES, IGNORE_NAMES
from defectseg.formats.common import read_text
from defectseg.formats.masks.layouts import is_mask_folder
from defectseg.formats.source import LabelSource

LABELMAP, _DATASET, _VALUES = "labelmap.txt", "dataset.json", "_classes.csv"
_LISTS = ("class_names.txt", "labels.txt", "classes.txt")
_IGNORED_VALUE = 255  # labelme's -1
# In the first line of a list.
_SOUND = ("normal", "sound", "good", "ok", "none", "no_defect", "unlabeled", "unlabelled")

# Added to the 0xRRGGBB of every colour but black, so that colours are no numbers.
COLOUR = 1 << 24
# Colour -> number, by the colour table of Pascal VOC, which labelme has as well. The bits of a number are dealt to red,
# green and blue in turn, the highest bit of each colour first.
VOC_NUMBERS = {
    sum(((number >> bit) & 1) << (23 - 8 * (bit % 3) - bit // 3) for bit in range(8)) + COLOUR * (number > 0): number
    for number in range(256)
}
_VOC = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
# Colour -> class of Pascal VOC
VOC_NAMES = dict(zip(VOC_NUMBERS, _VOC.split(","), strict=False)) | {COLOUR + 0xE0E0C0: IGNORE_NAMES[0]}


@dataclass(frozen=True)
class Names:
    """What values or colours mean.

    Attributes:
        where: what says so, for messages; "" if nothing does.
        of_value: value, or colour -> class.
        by_colour: these are colours.
    """

    where: str = ""
    of_value: Mapping[int, str] = field(default_factory=dict)
    by_colour: bool = False

    @property
    def classes(self) -> list[str]:
        """The classes, without sound steel and pixels to ignore."""
        special = {*BACKGROUND_NAMES, *IGNORE_NAMES}
        return [name for name in dict.fromkeys(self.of_value.values()) if name.lower() not in special]


def read_names(source: LabelSource) -> Names:
    """The meaning of values or colours, from the first of these files that is there, in the outermost folder.

    labelmap.txt (CVAT, Datumaro), dataset.json (nnU-Net), _classes.csv (Roboflow), or a list of names: class_names.txt
    and labels.txt (labelme), classes.txt. The first line of a list names value 1, unless it is the background's.

    Raises:
        LabelError: the file is damaged; names the line.
    """
    for name in (LABELMAP, _DATASET, _VALUES, *_LISTS):
        files = [file for file in source.named(name) if not is_mask_folder(PurePosixPath(file).parent.name)]
        for file in sorted(files, key=lambda file: file.count("/"))[:1]:
            lines = [line.strip() for line in read_text(source.path(file), "expected names").rstrip().splitlines()]
            rows = [line.rsplit(":", 3) for line in lines if line and line[0] != "#"] if name == LABELMAP else []
            by_colour = any(row[1:] != ["", "", ""] for row in rows)  # else they are those of VOC
            if name == _DATASET:
                content = source.json(file)
                labels = content.get("labels") if isinstance(content, dict) else None
                if not isinstance(labels, dict):
                    continue
                # {"pit": 1}, or {"1": "pit"} as the first version of nnU-Net wrote it
                entries = [(it, key) if isinstance(it, str) else (key, it) for key, it in labels.items()]
            elif name == _VALUES:
                entries = [(row[2], row[0]) for row in (line.partition(",") for line in lines[1:])]
            elif by_colour:
                entries = [(row[0], ":".join(row[1:2])) for row in rows]
            else:
                entries = _in_order([row[0] for row in rows] if name == LABELMAP else lines)
            where = str(source.path(file))
            return Names(where, _table(entries, where, by_colour=by_colour), by_colour)
    return Names()


def _table(entries: Iterable[tuple[str, object]], where: str, *, by_colour: bool) -> dict[int, str]:
    """Value or colour -> class, from names, each with 1 or 3 numbers."""
    table: dict[int, str] = {}
    for name, numbers in entries:
        try:
            levels = bytes(map(int, str(numbers).split(",")))
        except ValueError:
            levels = b""
        key, name = int.from_bytes(levels), name.strip()
        key += COLOUR * (by_colour and key > 0)
        if len(levels) != (3 if by_colour else 1) or not name or table.setdefault(key, name) != name:
            form = "name:red,green,blue::, with a colour" if by_colour else "a class, and a number from 0 to 255"
            raise LabelError(f"{where}: '{f'{name}:{numbers}'[:60]}'; expected {form} of its own. Correct it.")
    return table


def _in_order(lines: Sequence[str]) -> list[tuple[str, object]]:
    """Names with their values, from a list that may have the values before the names."""
    numbered = [match for line in lines if (match := re.fullmatch(r"([0-9]+)[\s:]+(.+)", line))]
    if len(numbered) == len(lines):
        return [(BACKGROUND_NAMES[0] if match[1] == "0" else match[2], match[1]) for match in numbered]
    ignored = [(line, _IGNORED_VALUE) for line in lines[:1] if line.lower() in IGNORE_NAMES]
    names = list(lines[len(ignored) :])
    from_zero = bool(names) and names[0].lower().replace(" ", "_") in (*BACKGROUND_NAMES, *_SOUND)
    if from_zero:
        names[0] = BACKGROUND_NAMES[0]
    return [*ignored, *((name, number) for number, name in enumerate(names, 0 if from_zero else 1))]
