"""The group of each image: the coil, strip or tile that it shares with others. Groups are the unit of intervals."""

import logging
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from defectseg.data.names import read_by_image
from defectseg.errors import UsageError, spelling
from defectseg.progress import some
from defectseg.text import read_csv

if TYPE_CHECKING:
    from defectseg.data.folder import DataFolder

log = logging.getLogger(__name__)

GROUP_COLUMN = "group"  # of split.csv, and of the tables of `predict`
ALL_SINGLE = "each image is its own group"


class Groups(dict[str, str]):
    """ImageId -> name of its group. `source` tells in words where the names come from."""

    def __init__(self, names: Mapping[str, str], source: str) -> None:
        super().__init__(names)
        self.source = source


def groups_of(
    folder: "DataFolder", image_ids: Sequence[str], pattern: str | None = None, *, splits: Sequence[Path] = ()
) -> Groups:
    """The group of each image; an image that nothing assigns to a group is one of its own, named as the image.

    Args:
        folder: the data folder. Without a pattern, its groups.csv counts, and over that the column `group` of the first
            split.csv that has a group for one of the images.
        image_ids: the images.
        pattern: a regular expression, which replaces both; see `match_groups`.
        splits: files to look at after the split.csv of the folder, such as those beside models; they may be missing.

    Raises:
        UsageError: as `match_groups`.
        LabelError: a split.csv is faulty.
    """
    from defectseg.data.folder import GROUPS_NAME
    from defectseg.data.split import SPLIT_NAME

    named, source = folder.groups, str(folder.root / GROUPS_NAME)
    if pattern is not None:
        named, source = match_groups(pattern, image_ids), f"{pattern} in the ImageId"
    for path in (folder.root / SPLIT_NAME, *splits) if pattern is None else ():
        column = read_split_groups(path, image_ids)
        if not column.keys().isdisjoint(image_ids):
            named, source = {**folder.groups, **column}, str(path)
            break
    names = {image_id: named.get(image_id, image_id) for image_id in image_ids}
    return Groups(names, source if len(set(names.values())) < len(names) else ALL_SINGLE)


def match_groups(pattern: str, image_ids: Collection[str]) -> dict[str, str]:
    """ImageId -> group according to a regular expression, for the images that match; a warning tells of others.

    Raises:
        UsageError: it is no regular expression, or no image matches.
    """
    check_pattern(pattern)
    found = {image_id: group for image_id in image_ids if (group := group_in(pattern, image_id))}
    if image_ids and not found:
        raise UsageError(f"{pattern} matches no ImageId; one of them is {min(image_ids)}.", argument="group")
    if others := [image_id for image_id in image_ids if image_id not in found]:
        told = len(others), len(image_ids), spelling("group", pattern), some(others)
        log.warning("%d of %d images belong to no group, because %s does not match: %s", *told)
    return found


def group_in(pattern: str, image_id: str) -> str:
    """The part of an ImageId that the first parentheses of a pattern match, or without any, the pattern; "" if none."""
    match = re.search(pattern, image_id)
    return (match[min(1, match.re.groups)] or "").strip() if match else ""


def check_pattern(pattern: str) -> None:
    """Raise UsageError if a text is no regular expression."""
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        raise UsageError(f"{pattern} is no regular expression ({error}).", argument="group") from None


def read_split_groups(path: Path, image_ids: Collection[str] = ()) -> dict[str, str]:
    """ImageId -> group from a split.csv, for rows that name one; empty if it has no column `group`, or is not there.

    Names are matched with `image_ids` as in `read_split`. Raises LabelError.
    """
    if not path.is_file() or read_csv(path).columns(GROUP_COLUMN) is None:
        return {}
    return {image_id: group for _, image_id, group in read_by_image(path, GROUP_COLUMN, image_ids) if group}
