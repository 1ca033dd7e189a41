"""The group of each image: the coil, strip or tile that it shares with others. Groups are the unit of intervals."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from defectseg.data.folder import GROUPS_NAME, DataFolder
from defectseg.data.names import match_groups
from defectseg.data.split import SPLIT_NAME, read_split_groups


class Groups(dict[str, str]):
    """ImageId -> name of its group. `source` tells in words where the names come from."""

    def __init__(self, names: Mapping[str, str], source: str) -> None:
        super().__init__(names)
        self.source = source


def groups_of(
    folder: DataFolder, image_ids: Sequence[str], pattern: str | None = None, *, splits: Sequence[Path] = ()
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
    named, source = folder.groups, str(folder.root / GROUPS_NAME)
    if pattern is not None:
        named, source = match_groups(pattern, image_ids), f"'{pattern}' in the ImageId"
    for path in (folder.root / SPLIT_NAME, *splits) if pattern is None else ():
        column = read_split_groups(path, image_ids)
        if not column.keys().isdisjoint(image_ids):
            named, source = {**folder.groups, **column}, str(path)
            break
    names = {image_id: named.get(image_id, image_id) for image_id in image_ids}
    return Groups(names, source if len(set(names.values())) < len(names) else "each image is its own group")
