"""What the values in masks mean, decided for all masks of a source, or of one class, together."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NoReturn

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import LabelError, UsageError
from defectseg.formats.classes import BACKGROUND_NAMES, IGNORE_NAMES
from defectseg.formats.common import IGNORE_NAME
from defectseg.formats.labels import Choices
from defectseg.formats.losses import Tally
from defectseg.formats.masks.layouts import is_mask_folder
from defectseg.formats.masks.values import COLOUR, VOC_NUMBERS, MaskValues
from defectseg.formats.source import LabelSource
from defectseg.progress import some
from defectseg.text import read_text

LABELMAP, _DATASET, _VALUES = "labelmap.txt", "dataset.json", "_classes.csv"
_LISTS = ("class_names.txt", "labels.txt", "classes.txt")
# In the first line of a list.
_SOUND = ("normal", "sound", "good", "ok", "none", "no_defect", "unlabeled", "unlabelled")

_VOC = (
    "background,aeroplane,bicycle,bird,boat,bottle,bus,car,cat,chair,cow,diningtable,dog,horse,motorbike,person,"
    "pottedplant,sheep,sofa,train,tvmonitor"
)
# Colour -> class of Pascal VOC
VOC_NAMES = dict(zip(VOC_NUMBERS, _VOC.split(","), strict=False)) | {COLOUR + 0xE0E0C0: IGNORE_NAMES[0]}

_NEARLY_WHITE = 239  # JPEG and anti-aliasing leave most pixels of a mask close to 0 or 255
_LARGEST_CLASS = 20  # without names; larger values are grey levels
_MOST_ODD_PX = 9  # in one mask
_MOST_OF_ALL = 0.5  # what covers more pixels than this is sound steel
_EXPECTED = "expected 0 and one other value, class numbers, or colours that labelmap.txt gives (name:red,green,blue::)"


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
                content = source.content(file)
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
    ignored = [(line, IGNORE_CLASS_ID) for line in lines[:1] if line.lower() in IGNORE_NAMES]
    names = list(lines[len(ignored) :])
    from_zero = bool(names) and names[0].lower().replace(" ", "_") in (*BACKGROUND_NAMES, *_SOUND)
    if from_zero:
        names[0] = BACKGROUND_NAMES[0]
    return [*ignored, *((name, number) for number, name in enumerate(names, 0 if from_zero else 1))]


def meaning_of(masks: Sequence[MaskValues], names: Names, choices: Choices, tally: Tally) -> dict[str, set[int]]:
    """Class -> values, for the masks of one class or of all; without names, the class is a ClassId as text.

    One value, or grey levels between two, are one class. Else each value is a class, and 255 marks pixels to ignore.

    Raises:
        LabelError: the values cannot be meant as they are; names a file.
    """
    ignore_name = (choices.ignore if names.where else "") or IGNORE_NAME
    black_is_class = names.by_colour and names.of_value.get(0, BACKGROUND_NAMES[0]).lower() not in BACKGROUND_NAMES
    background = int(choices.background) if choices.background.isdecimal() else -1 if black_is_class else 0
    px = sum((Counter(mask.px) for mask in masks), Counter[int]())
    meaning = defaultdict[str, set[int]](set)
    if choices.ignore.isdecimal():
        meaning[ignore_name].add(int(choices.ignore))
    if background > 0 and background not in px:
        raise UsageError(f"no mask holds {background}.", argument="background")
    for value in (background, *meaning[ignore_name]):
        del px[value]
    if not px.keys() <= names.of_value.keys() and not all(mask.own for mask in masks):
        is_number = len(px) == 1 and not names.where and 1 < min(px) <= _LARGEST_CLASS
        values = set() if is_number or names.by_colour else _values_of_one(masks, px, background, tally)
        _check_meant(masks, px, names, choices, values)
        if values:
            return meaning | {[*names.classes, *names.of_value.values(), "1"][0]: values}
    numbers, from_zero = px.keys() - {IGNORE_CLASS_ID}, 0 in px and not names.where
    tally.add("from_zero", int(from_zero))
    largest = max(2 * len(numbers), len(choices.classes or ()))  # else most ClassIds would have no pixel
    of_value = names.of_value if names.where else {it: str(it + from_zero) for it in numbers if it <= largest}
    for value in sorted(px, reverse=True):
        name = of_value.get(value, "")
        if name.lower() in IGNORE_NAMES or (value == IGNORE_CLASS_ID and not name):
            name = ignore_name
        elif not name:
            known = f"{names.where} names {some(of_value.values())}" if names.where else _EXPECTED
            go_on = {"ignore": value} if names.where else {"classes": ",".join(f"{one}=NAME" for one in sorted(px))}
            _refuse(masks, px, value, f"{_shown(value)} is no class: {known}.", go_on)
        if name.lower() not in BACKGROUND_NAMES or choices.background:
            meaning[name].add(value)
    return meaning


def _values_of_one(masks: Sequence[MaskValues], px: Counter[int], background: int, tally: Tally) -> set[int]:
    """The values of the one class in binary masks, which are nearer to its usual value than to the background.

    Empty if the masks are not binary. Counts pixels of unusual values.
    """
    main = max(px, key=px.__getitem__)
    levels = {value: abs(value - background) for value in px}
    high = [value for value, level in levels.items() if level > _LARGEST_CLASS]
    white = [value for value in high if levels[value] >= _NEARLY_WHITE]
    are_soft = len(high) - len(white) > _LARGEST_CLASS or (len(white) > 2 and not background)
    is_mostly_white = sum(px[value] for value in high) <= 3 * sum(px[value] for value in white)
    is_grey = are_soft and is_mostly_white and max(levels.values()) <= 255
    usual = abs(255 - background) if is_grey else main
    odd = [sum(count for value, count in mask.px.items() if value in px and value != usual) for mask in masks]
    are_few = max(odd) <= _MOST_ODD_PX and 100 * sum(odd) <= px[main]
    is_plain = main > _LARGEST_CLASS or (main < 2 and IGNORE_CLASS_ID not in px)
    if not is_grey and len(px) > 1 and not (are_few and is_plain):
        return set()
    for mask, count in zip(masks, odd, strict=True):
        if count:
            tally.add("odd_px", count, example=mask.picture.path.name)
    return {value for value in px if abs(value - usual) < levels[value]}


def _check_meant(
    masks: Sequence[MaskValues], px: Counter[int], names: Names, choices: Choices, values: set[int]
) -> None:
    """Refuse what cannot be meant; `values` are those of the one class, if the masks are binary."""
    main = max(px, key=px.__getitem__)
    count = len(names.classes if names.where else choices.classes or ())
    share = px[main] / sum(mask.size_hw[0] * mask.size_hw[1] for mask in masks)
    if values and 1 not in values and count > 1:
        _refuse(masks, px, main, f"That is one class, but {names.where or 'the given list'} names {count}.")
    if not values and any(mask.lossy for mask in masks):
        _refuse(masks, px, max(px), "JPEG and the like change numbers. Save class maps as PNG.")
    if px.keys() == {1, IGNORE_CLASS_ID} and not any(mask.px.keys() >= px.keys() for mask in masks):
        _refuse(masks, px, IGNORE_CLASS_ID, "No mask holds both. If both mean the defect, save all masks alike.")
    if share > _MOST_OF_ALL and not choices.background:
        why = f"{_shown(main)} covers {share:.0%}. Which value is sound?"
        _refuse(masks, px, main, why, {"background": f"{main}|0"})


def _refuse(
    masks: Sequence[MaskValues], px: Mapping[int, int], value: int, why: str, go_on: Mapping[str, object] | None = None
) -> NoReturn:
    """Raise LabelError that names the first mask with this value."""
    path = next(mask.picture.path for mask in masks if value in mask.px)
    held = some([f"{_shown(number)} ({count} px)" for number, count in px.items()])
    why = f"{path}: holds {_shown(value)}. All masks together hold {held}. {why}"
    raise LabelError(why, go_on=go_on if value < COLOUR else None)


def _shown(value: int) -> str:
    return str(value) if value < COLOUR else ",".join(map(str, (value - COLOUR).to_bytes(3, "big")))
