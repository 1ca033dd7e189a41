"""The names of the pictures that are written for images."""

import hashlib
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePosixPath

from defectseg.predict.tables import PICTURES

_LONGEST_NAME_BYTES = 255  # of a file or folder, on nearly every file system
_LONGEST_PATH_BYTES = 2048  # of a picture within its folder: Linux ends at 4096 for the whole path


def output_names(image_ids: Iterable[str]) -> dict[str, str]:
    """ImageId -> name of its pictures without their suffix: the ImageId's own suffix goes, unless two would meet.

    Names that differ only by case meet too, since some file systems do not tell them apart; so do the picture of one
    image and the folder of another ("a.png" and "a.jpg/b.png"). The end of a name that is too long for a file system
    becomes a hash of the whole.
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
        names |= {image_id: whole[image_id] for image_id in meeting}  # these may meet others: "a.jpg" and "a.jpg.bmp"


def without_suffix(image_id: str) -> str:
    """An ImageId without its suffix."""
    return image_id.removesuffix(PurePosixPath(image_id).suffix)


def _fitting(name: str) -> str:
    """A path that file systems take, with room for the suffix of a picture."""
    if len(name.encode()) > _LONGEST_PATH_BYTES:
        name = name.replace("/", "_")
    *folders, last = name.split("/")
    room = _LONGEST_NAME_BYTES - max(map(len, PICTURES.values()))
    return "/".join([*(_cut(folder, _LONGEST_NAME_BYTES) for folder in folders), _cut(last, room)])


def _cut(name: str, most_bytes: int) -> str:
    """A name of at most so many bytes; the end of a longer one becomes a hash of the whole."""
    encoded = name.encode()
    if len(encoded) <= most_bytes:
        return name
    digest = hashlib.blake2b(encoded, digest_size=8).hexdigest()
    return f"{encoded[: most_bytes - len(digest) - 1].decode(errors='ignore')}-{digest}"
