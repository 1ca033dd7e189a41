"""Which ClassId each class of the labels gets."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from defectseg.data.classes import MOST_UNNAMED_CLASSES, check_class_names
from defectseg.data.table import IGNORE_CLASS_ID
from defectseg.errors import DataError, UsageError
from defectseg.formats.labels import Choices, LabelSet
from defectseg.progress import some

IGNORE_NAMES = ("ignore", "__ignore__", "_ignore_")
BACKGROUND_NAMES = ("background", "_background_", "__background__")
SOUND_CLASS_ID = 0
_SPECIAL = (("ignore", IGNORE_NAMES, IGNORE_CLASS_ID), ("background", BACKGROUND_NAMES, SOUND_CLASS_ID))


@dataclass(frozen=True)
class Classes:
    """The classes of the data folder.

    Attributes:
        names: name n-1 belongs to ClassId n.
        ids: name in the labels -> ClassId, 255 for pixels to ignore, 0 for sound steel.
        dropped: names that --classes drops.
    """

    names: tuple[str, ...]
    ids: Mapping[str, int]
    dropped: frozenset[str] = frozenset()


def choose_classes(labels: LabelSet, used: Collection[str], choices: Choices, *, where: str) -> Classes:
    """Number the classes.

    Args:
        labels: all labels.
        used: the names that shapes have.
        choices: `classes`, `dropped`, `background` and `ignore` count.
        where: names the source in messages.

    Raises:
        UsageError: `classes` leaves out a name, or has one that the labels do not know.
        DataError: the names cannot tell classes apart, or there are many and nobody named them.
    """
    own = list(dict.fromkeys([*labels.names, *sorted(used)]))
    special = {"": IGNORE_CLASS_ID}
    for option, usual, class_id in _SPECIAL:
        chosen = getattr(choices, option)
        if chosen and not chosen.isdecimal() and chosen not in (*IGNORE_NAMES, *BACKGROUND_NAMES, *map(_tidy, own)):
            raise UsageError(f"'{chosen}' is no class. {where} has {some(filter(None, own))}.", argument=option)
        if chosen and not labels.numbered:
            special |= {name: class_id for name in own if _tidy(name) == chosen}
        else:
            special |= {name: class_id for name in own if _tidy(name).lower() in usual}
    own = [name for name in own if name not in special]
    if labels.numbered:
        names = _name_numbers(own, choices.classes, where)
        return Classes(names, {name: int(name) for name in own} | special)
    own = own or list(choices.classes or ())
    if not own:
        raise DataError(f"{where}: no label is of a class. Name the classes that are looked for.", argument="classes")
    target = _renamed(own, choices.classes, where) if choices.classes else {name: _tidy(name) for name in own}
    names = tuple(dict.fromkeys(name for name in target.values() if name))
    times = Counter(map(str.casefold, names))
    if alike := [name for name in names if times[name.casefold()] > 1]:
        raise DataError(
            f"{where}: classes differ by case alone: {some(alike)}. Rename one as old=new.", argument="classes"
        )
    check_class_names(names, where=where)
    gone = SOUND_CLASS_ID if choices.dropped == "sound" else IGNORE_CLASS_ID
    ids = {old: names.index(new) + 1 if new else gone for old, new in target.items()}
    return Classes(names, ids | special, frozenset(old for old, new in target.items() if not new))


def _tidy(name: str) -> str:
    """Line ends and repeated blanks become single blanks."""
    return " ".join(name.split())


def _name_numbers(own: Sequence[str], given: Sequence[str] | None, where: str) -> tuple[str, ...]:
    largest = max(map(int, own), default=1)
    if given is None:
        if len(own) > MOST_UNNAMED_CLASSES:
            raise DataError(
                f"{where}: holds {len(own)} different values ({some(own)}); as many classes are rare. If they are "
                "classes, name them: entry n names the value n.",
                argument="classes",
            )
        return tuple(f"class {number}" for number in range(1, largest + 1))
    if any("=" in name for name in given) or len(given) < largest:
        raise UsageError(
            f"{len(given)} names, but the labels hold the values {some(own)}. Entry n names the value n.",
            argument="classes",
        )
    names = tuple(map(_tidy, given))
    check_class_names(names, where="the given classes")
    return names


def _renamed(own: Sequence[str], given: Sequence[str], where: str) -> dict[str, str]:
    """Name in the labels -> name in the data folder, "" to drop it."""
    old_of = {_tidy(name): name for name in own}
    target: dict[str, str] = {}
    for entry in given:
        old, equals, new = (_tidy(part) for part in entry.partition("="))
        if old not in old_of or old_of[old] in target:
            why = "stands there twice" if old in old_of else "is no class of the labels"
            raise UsageError(f"'{old}' {why}. {where} has {', '.join(old_of)}.", argument="classes")
        target[old_of[old]] = new if equals else old
    if left_out := [name for name in old_of.values() if name not in target]:
        raise UsageError(
            f"leaves out {', '.join(left_out)}. Name all classes of {where}; '{_tidy(left_out[0])}=' drops one.",
            argument="classes",
        )
    return target
