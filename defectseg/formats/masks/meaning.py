"""What the values in masks mean, decided for all masks of a source together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NoReturn

from defectseg import errors
from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import LabelError
from defectseg.formats.classes import BACKGROUND_NAMES, IGNORE_NAMES
from defectseg.formats.common import IGNORE_NAME
from defectseg.formats.labels import Choices
from defectseg.formats.losses import Tally
from defectseg.formats.masks.names import COLOUR, Names
from defectseg.formats.masks.values import MaskValues
from defectseg.progress import some

_THRESHOLD, _NEARLY_WHITE = 127, 239  # JPEG and anti-aliasing leave most pixels of a mask close to 0 or 255
_LARGEST_CLASS = 20  # without names; larger values are grey levels
_MOST_ODD_PX = 9  # in one mask
_MOST_OF_ALL = 0.75  # what covers more pixels than this is sound steel


def meaning_in_one_class(mask: MaskValues, class_name: str, choices: Choices, tally: Tally) -> dict[int, str]:
    """Value -> class, for a mask whose name or folder says the class. Raises LabelError if it holds several values."""
    background, px, meaning = _not_chosen([mask], choices, choices.ignore)
    values = _values_of_one_class([mask], px, background, tally, is_named=True) if px else set()
    if values is None:
        rarest = min(px, key=px.__getitem__)
        _refuse([mask], px, rarest, f"Expected 0 and one other value in a mask of '{class_name}'.", ignore=rarest)
    return meaning | dict.fromkeys(values, class_name)


def meaning_of_all(masks: Sequence[MaskValues], names: Names, choices: Choices, tally: Tally) -> dict[int, str]:
    """Value -> class, for masks whose names and folders say no class; without names, the class is a ClassId as text.

    One value, or grey levels between two, are one class. Else each value is a class, and 255 marks pixels to ignore.

    Raises:
        LabelError: the values cannot be meant as they are; names a file.
    """
    is_named, classes = bool(names.where), names.classes or ["1"]
    ignore_name = (choices.ignore if is_named else "") or IGNORE_NAME
    black_is_class = names.by_colour and names.of_value.get(0, BACKGROUND_NAMES[0]).lower() not in BACKGROUND_NAMES
    background, px, meaning = _not_chosen(masks, choices, ignore_name, background=-1 if black_is_class else 0)
    of_value = names.of(px)
    if not px.keys() <= of_value.keys() and not all(mask.own for mask in masks):
        values = None if names.by_colour else _values_of_one_class(masks, px, background, tally, is_named=is_named)
        _check_meant(masks, px, names, choices, values)
        if values:
            return meaning | dict.fromkeys(values, classes[0])
    for value in px:
        name = of_value.get(value, "") if is_named else str(value + (0 in px))
        if name.lower() in IGNORE_NAMES or (value == IGNORE_CLASS_ID and value not in of_value):
            name = ignore_name
        elif not name or (value > IGNORE_CLASS_ID and not names.by_colour):
            known = f"{names.where} names {some([*of_value.values()])}" if is_named else "classes are 1 to 254"
            _refuse(masks, px, value, f"{_shown(value)} is no class: {known}.", ignore=value)
        if name.lower() not in BACKGROUND_NAMES or choices.background:
            meaning[value] = name
    if 0 in px and not is_named:
        tally.add("from_zero")
    return meaning


def _not_chosen(
    masks: Sequence[MaskValues], choices: Choices, ignore_name: str, *, background: int = 0
) -> tuple[int, Counter[int], dict[int, str]]:
    """The background; value -> pixels, for values other than that and those to ignore; and the latter -> their name."""
    background = int(choices.background) if choices.background.isdecimal() else background
    px = sum((Counter(mask.px) for mask in masks), Counter[int]())
    del px[background]
    if not choices.ignore.isdecimal():
        return background, px, {}
    del px[int(choices.ignore)]
    return background, px, {int(choices.ignore): ignore_name}


def _values_of_one_class(
    masks: Sequence[MaskValues], px: Counter[int], background: int, tally: Tally, *, is_named: bool
) -> set[int] | None:
    """The values of the class in binary masks, which are nearer to its usual value than to the background.

    None if the masks are not binary. Counts pixels of unusual values.
    """
    main = max(px, key=px.__getitem__)
    if len(px) == 1 and not is_named and 1 < main <= _LARGEST_CLASS:
        return None
    levels = {abs(value - background): count for value, count in px.items()}
    between = [count for level, count in levels.items() if _LARGEST_CLASS < level < _NEARLY_WHITE]
    white = {level: count for level, count in levels.items() if _NEARLY_WHITE <= level <= 255}
    is_smeared = len(between) > _LARGEST_CLASS or (len(white.keys() - {255}) > 0 and not background)
    is_grey = is_smeared and len(px) > 1 and max(levels) <= 255 and sum(between) <= 2 * sum(white.values())
    usual = abs(255 - background) if is_grey else main
    odd = [sum(count for value, count in mask.px.items() if value in px and value != usual) for mask in masks]
    are_few = max(odd) <= _MOST_ODD_PX and 100 * sum(odd) <= px[main]
    is_plain = main > _LARGEST_CLASS or (main < 2 and IGNORE_CLASS_ID not in px)
    if not is_grey and len(px) > 1 and not (are_few and is_plain):
        return None
    for mask, count in zip(masks, odd, strict=True):
        if count:
            tally.add("odd_px", count, example=mask.path.name)
    return {value for value in px if abs(value - usual) < abs(value - background)}


def _check_meant(
    masks: Sequence[MaskValues], px: Counter[int], names: Names, choices: Choices, values: set[int] | None
) -> None:
    """Refuse what cannot be meant; `values` are those of the one class, if the masks are binary."""
    numbers = [value for value in px if value != IGNORE_CLASS_ID]
    largest, main = max(numbers, default=0), max(px, key=px.__getitem__)
    count = len(names.classes if names.where else choices.classes or ())
    if values and 1 not in values and count > 1:
        _refuse(masks, px, main, f"That is one class, but {names.where or 'the given list'} names {count}.")
    if not values and any(mask.lossy for mask in masks):
        _refuse(masks, px, max(px), "JPEG and the like change numbers. Save class maps as PNG.")
    if not values and largest > COLOUR and not names.where:
        _refuse(masks, px, largest, "Give each colour a line 'name:red,green,blue::' in a file labelmap.txt.")
    if not values and len(numbers) <= _LARGEST_CLASS < largest and not count:
        why = "Expected 0 and one other value, or class numbers from 1. Correct it, or name a value to ignore."
        _refuse(masks, px, largest, why, ignore=largest)
    if not values and 2 * px[IGNORE_CLASS_ID] > px.total():
        ignored = errors.spelling("ignore", "255")
        why = f"Is 255 sound steel, and 0 the first class? If 255 marks pixels to ignore, say {ignored}."
        _refuse(masks, px, IGNORE_CLASS_ID, why, background="255")
    if not values and px.keys() == {1, IGNORE_CLASS_ID} and not any(mask.px.keys() >= px.keys() for mask in masks):
        why = "No mask holds both. If both mean the defect, save all masks alike; if 255 is to be ignored, say so."
        _refuse(masks, px, IGNORE_CLASS_ID, why, ignore="255")
    share = px[main] / sum(mask.size_hw[0] * mask.size_hw[1] for mask in masks)
    if share > _MOST_OF_ALL and not choices.background:
        _refuse(masks, px, main, f"{_shown(main)} covers {share:.0%}. Which value is sound?", background=f"{main}|0")


def _refuse(masks: Sequence[MaskValues], px: Mapping[int, int], value: int, why: str, **go_on: object) -> NoReturn:
    """Raise LabelError that names the first mask with this value."""
    path = next(mask.path for mask in masks if value in mask.px)
    held = some([f"{_shown(number)} ({count} px)" for number, count in px.items()])
    raise LabelError(
        f"{path}: holds {_shown(value)}. All masks together hold {held}. {why}", go_on=go_on if value < COLOUR else None
    )


def _shown(value: int) -> str:
    return str(value) if value < COLOUR else ",".join(map(str, (value - COLOUR).to_bytes(3, "big")))
