"""ImageIds in tables, also in another Unicode form (macOS may store 'é' as 'e' and an accent); groups in ImageIds."""

import logging
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from unicodedata import normalize

from defectseg import errors
from defectseg.errors import LabelError, UsageError
from defectseg.files import check_image_id
from defectseg.progress import some
from defectseg.text import read_csv

log = logging.getLogger(__name__)


def respellings(listed: Iterable[str], image_ids: Iterable[str], *, where: Path) -> dict[str, str]:
    """Each listed name -> the one image that has the same letters in another Unicode form; else itself.

    Args:
        listed: the names in a table.
        image_ids: the images.
        where: the table, for the message.

    Raises:
        LabelError: several names, or several images, have the same letters.
    """
    names, images = set(listed), set(image_ids)
    alike: dict[str, set[str]] = defaultdict(set)
    for name in names | images:
        alike[normalize("NFC", name)].add(name)
    spelled = {name: name for name in names}
    for group in alike.values():
        if (absent := group - images) and absent != group:
            if len(group) > 2 or group <= names:
                raise LabelError(
                    f"{where}: {some(map(ascii, sorted(group)))} are the same letters. Rename all but one."
                )
            spelled[absent.pop()] = (group & images).pop()
    return spelled


def read_by_image(path: Path, column: str, image_ids: Iterable[str] = ()) -> Iterator[tuple[str, str, str]]:
    """File and line, ImageId, and the value of another column, for each row of a table such as groups.csv.

    Args:
        path: the table.
        column: the other column.
        image_ids: images; names that differ from one of these only by their Unicode form are given as that image.

    Raises:
        LabelError: as `read_csv`, `check_image_id` and `respellings`; a column is missing; or a row has too few or too
            many fields.
    """
    table = read_csv(path)
    places = table.columns("ImageId", column)
    if places is None:
        expected = ",".join(dict.fromkeys(["ImageId", column]))
        raise LabelError(f"{path}: has the columns {', '.join(table.header)}; expected {expected}.")
    if table.ragged:
        raise LabelError(f"{path}, line {table.ragged[0][0]}: has another number of fields than the header.")
    spelled = respellings({fields[places[0]] for _, fields in table.rows}, image_ids, where=path)
    for line, fields in table.rows:
        where, image_id = f"{path}, line {line}", spelled[fields[places[0]]]
        check_image_id(image_id, where=where)
        yield where, image_id, fields[places[1]].strip()


def match_groups(pattern: str, image_ids: Collection[str]) -> dict[str, str]:
    """ImageId -> group according to a regular expression, for the images that match; a warning tells of others.

    Raises:
        UsageError: it is no regular expression, or matches none of the images, if there are any.
    """
    try:
        regex = re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"'{pattern}' is no regular expression ({error}).", argument="group") from None
    found = {image_id: group for image_id in image_ids if (group := group_in(regex, image_id))}
    if image_ids and not found:
        raise UsageError(f"'{pattern}' matches no ImageId; one of them is {min(image_ids)}.", argument="group")
    if others := [image_id for image_id in image_ids if image_id not in found]:
        told = len(others), len(image_ids), errors.spelling("group", pattern), some(others)
        log.warning("%d of %d images belong to no group, because %s does not match: %s", *told)
    return found


def group_in(pattern: str | re.Pattern[str], image_id: str) -> str:
    """The part of an ImageId that the first parentheses of a pattern match, or without any, the pattern; "" if none."""
    match = re.search(pattern, image_id)
    return (match[min(1, match.re.groups)] or "").strip() if match else ""
