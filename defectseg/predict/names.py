"""The names of overlays and class maps."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from defectseg.predict.tables import PICTURES

_LONGEST_NAME_BYTES = 255  # of a file or folder, on nearly every file system
_LONGEST_PATH_BYTES = 2048  # of a picture within its folder; Linux allows 4096 for the whole path


def output_names(image_ids: Iterable[str]) -> dict[str, str]:
    """ImageId -> name of its pictures without their suffix: the ImageId without its own suffix, unless names clash.

    Names that differ only by case clash too, since some file systems do not distinguish them. The picture of one image
    may also clash with the folder of another ("a.png" and "a.jpg/b.png"). If a name is too long for file systems, a
    hash replaces its end.
    """
    ids = sorted(set(image_ids))
    names = {image_id: _fitting(without_suffix(image_id)) for image_id in ids}
    whole = {image_id: _fitting(image_id) for image_id in ids}
    folders = {str(parent).casefold() for name in names.values() for parent in PurePosixPath(name).parents}
    barred = {folder.removesuffix(end) for folder in folders for end in PICTURES.values() if folder.endswith(end)}
    while True:
        counts = Counter(name.casefold() for name in names.values())
        meeting = [
            image_id
            for image_id, name in names.items()
            if name != whole[image_id] and (counts[name.casefold()] > 1 or name.casefold() in barred)
        ]
        if not meeting:
            return names
        names |= {image_id: whole[image_id] for image_id in meeting}  # may clash with others: "a.jpg" and "a.jpg.bmp"


def without_suffix(image_id: str) -> str:
    """An ImageId without its suffix."""
    return image_id.removesuffix(PurePosixPath(image_id).suffix)


def _fitting(name: str) -> str:
    """A path that is short enough for file systems, with room for the suffix of a picture."""
    if len(name.encode()) > _LONGEST_PATH_BYTES:
        name = name.replace("/", "_")
    *folders, last = name.split("/")
    room = _LONGEST_NAME_BYTES - max(map(len, PICTURES.values()))
    return "/".join([*(_cut(folder, _LONGEST_NAME_BYTES) for folder in folders), _cut(last, room)])


def _cut(name: str, most_bytes: int) -> str:
    """A name of at most `most_bytes`; in a longer name, a hash of the whole replaces the end."""
    encoded = name.encode()
    if len(encoded) <= most_bytes:
        return name
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return f"{encoded[: most_bytes - len(digest) - 1].decode(errors='ignore')}-{digest}"
