"""What the values in masks mean, decided for all masks of a source, or of one class, together."""

from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import NoReturn

from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import LabelError, spelling
from defectseg.formats.classes import BACKGROUND_NAMES, IGNORE_NAMES
from defectseg.formats.common import IGNORE_NAME
from defectseg.formats.labels import Choices
from defectseg.formats.losses import Tally
from defectseg.formats.masks.names import COLOUR, Names
from defectseg.formats.masks.values import MaskValues
from defectseg.progress import some

_NEARLY_WHITE = 239  # JPEG and anti-aliasing leave most pixels of a mask close to 0 or 255
_LARGEST_CLASS = 20  # without names; larger values are grey levels
_MOST_ODD_PX = 9  # in one mask
_MOST_OF_ALL = 0.5  # what covers more pixels than this is sound steel
_EXPECTED = "expected 0 and one other value, class numbers, or colours that labelmap.txt gives (name:red,green,blue::)"


def meaning_of(masks: Sequence[MaskValues], names: Names, choices: Choices, tally: Tally) -> dict[int, str]:
    """Value -> class, for the masks of one class or of all; without names, the class is a ClassId as text.

    One value, or grey levels between two, are one class. Else each value is a class, and 255 marks pixels to ignore.

    Raises:
        LabelError: the values cannot be meant as they are; names a file.
    """
    is_named = bool(names.where)
    ignore_name = (choices.ignore if is_named else "") or IGNORE_NAME
    black_is_class = names.by_colour and names.of_value.get(0, BACKGROUND_NAMES[0]).lower() not in BACKGROUND_NAMES
    background = int(choices.background) if choices.background.isdecimal() else -1 if black_is_class else 0
    px = sum((Counter(mask.px) for mask in masks), Counter[int]())
    meaning = {int(choices.ignore): ignore_name} if choices.ignore.isdecimal() else {}
    for value in (background, *meaning):
        del px[value]
    from_zero = 0 in px and 0 not in names.of_value and not names.by_colour
    of_value = {value - from_zero: name for value, name in names.of_value.items()}
    if not px.keys() <= of_value.keys() and not all(mask.own for mask in masks):
        is_number = len(px) == 1 and not is_named and 1 < min(px) <= _LARGEST_CLASS
        values = None if is_number or names.by_colour else _values_of_one(masks, px, background, tally)
        _check_meant(masks, px, names, choices, values)
        if values:
            return meaning | dict.fromkeys(values, [*names.classes, *of_value.values(), "1"][0])
    if not is_named:
        largest = IGNORE_CLASS_ID - 1 if choices.classes or len(px) > _LARGEST_CLASS + 1 else _LARGEST_CLASS
        of_value = {value: str(value + from_zero) for value in px if value <= largest}
        tally.add("from_zero", int(from_zero))
    for value in sorted(px, reverse=True):
        name = of_value.get(value, "")
        if name.lower() in IGNORE_NAMES or (value == IGNORE_CLASS_ID and not name):
            name = ignore_name
        elif not name:
            known = f"{names.where} names {some(of_value.values())}" if is_named else _EXPECTED
            _refuse(masks, px, value, f"{_shown(value)} is no class: {known}.", ignore=value)
        if name.lower() not in BACKGROUND_NAMES or choices.background:
            meaning[value] = name
    return meaning


def _values_of_one(masks: Sequence[MaskValues], px: Counter[int], background: int, tally: Tally) -> set[int] | None:
    """The values of the one class in binary masks, which are nearer to its usual value than to the background.

    None if the masks are not binary. Counts pixels of unusual values.
    """
    main = max(px, key=px.__getitem__)
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
            tally.add("odd_px", count, example=mask.picture.path.name)
    return {value for value in px if abs(value - usual) < abs(value - background)}


def _check_meant(
    masks: Sequence[MaskValues], px: Counter[int], names: Names, choices: Choices, values: set[int] | None
) -> None:
    """Refuse what cannot be meant; `values` are those of the one class, if the masks are binary."""
    refuse, main = partial(_refuse, masks, px), max(px, key=px.__getitem__)
    count = len(names.classes if names.where else choices.classes or ())
    share = px[main] / sum(mask.size_hw[0] * mask.size_hw[1] for mask in masks)
    if values and 1 not in values and count > 1:
        refuse(main, f"That is one class, but {names.where or 'the given list'} names {count}.")
    if not values and any(mask.lossy for mask in masks):
        refuse(max(px), "JPEG and the like change numbers. Save class maps as PNG.")
    if not values and IGNORE_CLASS_ID not in names.of_value:
        if px.keys() == {1, IGNORE_CLASS_ID} and not any(mask.px.keys() >= px.keys() for mask in masks):
            refuse(IGNORE_CLASS_ID, "No mask holds both. If both mean the defect, save all masks alike.")
        if 2 * px[IGNORE_CLASS_ID] > px.total():
            why = f"Is 255 sound steel, and 0 the first class? To ignore it, say {spelling('ignore', '255')}."
            refuse(IGNORE_CLASS_ID, why, background="255")
    if share > _MOST_OF_ALL and not choices.background:
        refuse(main, f"{_shown(main)} covers {share:.0%}. Which value is sound?", background=f"{main}|0")


def _refuse(masks: Sequence[MaskValues], px: Mapping[int, int], value: int, why: str, **go_on: object) -> NoReturn:
    """Raise LabelError that names the first mask with this value."""
    path = next(mask.picture.path for mask in masks if value in mask.px)
    held = some([f"{_shown(number)} ({count} px)" for number, count in px.items()])
    why = f"{path}: holds {_shown(value)}. All masks together hold {held}. {why}"
    raise LabelError(why, go_on=go_on if value < COLOUR else None)


def _shown(value: int) -> str:
    return str(value) if value < COLOUR else ",".join(map(str, (value - COLOUR).to_bytes(3, "big")))
