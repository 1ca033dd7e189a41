"""The names of overlays and class maps."""

import hashlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import groupby, pairwise

from defectseg.predict.tables import PICTURES

_LONGEST_NAME_BYTES = 255  # of a file or folder, on nearly every file system
_LONGEST_PATH_BYTES = 2048  # of a picture within its folder; Linux allows 4096 for the whole path


def output_names(image_ids: Iterable[str]) -> Mapping[str, str]:
    """ImageId -> name of its pictures without their suffix: the ImageId without its own suffix, unless names clash.

    Names that differ only by case clash too, since some file systems do not distinguish them. The picture of one image
    may also clash with the folder of another ("a.png" and "a.jpg/b.png"). If a name is too long for file systems, a
    hash replaces its end.
    """
    names = _Names([one for one, _ in groupby(sorted(image_ids))])
    folders = folders_of(name.casefold() for name in names.values())
    barred = _barred_by(folders)
    while True:
        taken = sorted(name.casefold() for name in names.values())
        clashing = {one for one, other in pairwise(taken) if one == other}.union(barred)
        meeting = [one for one, name in names.items() if one not in names.whole and name.casefold() in clashing]
        if not meeting:
            return names
        names.whole.update(meeting)  # may clash with others: "a.jpg" and "a.jpg.bmp"


def _barred_by(folders: Iterable[str]) -> set[str]:
    """The names whose pictures would be called like one of the folders."""
    return {folder.removesuffix(end) for folder in folders for end in PICTURES.values() if folder.endswith(end)}


class TakenNames:
    """Says quickly whether the name of one more image changes the `output_names` of those before, or has to be another.

    Args:
        names: the output names of the images so far.
    """

    def __init__(self, names: Mapping[str, str]) -> None:
        self._hashes: set[int] = set()  # of names, since their texts would take three times the memory
        self._barred: set[str] = set()
        for image_id, name in names.items():
            self.add(image_id, name)

    def add(self, image_id: str, name: str) -> None:
        """One more image has got its name."""
        both = {name.casefold(), _fitting(without_suffix(image_id)).casefold()}
        self._hashes.update(map(hash, both))
        self._barred |= _barred_by(folders_of(both))

    def clash_with(self, image_id: str) -> bool:
        """Whether a new image clashes with those before."""
        name = _fitting(without_suffix(image_id)).casefold()
        mine = {name, *_barred_by(folders_of([name]))}
        return name in self._barred or not self._hashes.isdisjoint(map(hash, mine))


class _Names(Mapping[str, str]):
    """Names that are made when they are asked for, since those of a large folder would fill much memory.

    Attributes:
        whole: ImageIds that keep their suffix.
    """

    def __init__(self, image_ids: Sequence[str]) -> None:
        self._image_ids = image_ids
        self.whole: set[str] = set()

    def __getitem__(self, image_id: str) -> str:
        return _fitting(image_id if image_id in self.whole else without_suffix(image_id))

    def __iter__(self) -> Iterator[str]:
        return iter(self._image_ids)

    def __len__(self) -> int:
        return len(self._image_ids)


def folders_of(paths: Iterable[str]) -> set[str]:
    """The folders that relative POSIX paths lie in, and those around them, but not the outermost."""
    around = {path.rpartition("/")[0] for path in paths}
    return {folder[:end] for folder in around for end, letter in enumerate(f"{folder}/") if letter == "/" and end}


def without_suffix(image_id: str) -> str:
    """An ImageId without its suffix."""
    stem, _, suffix = image_id.rpartition("/")[2].rpartition(".")
    return image_id.removesuffix(f".{suffix}") if stem and suffix else image_id


def _fitting(name: str) -> str:
    """A path that is short enough for file systems, with room for the suffix of a picture."""
    if 4 * len(name) < _LONGEST_NAME_BYTES - 4:  # as nearly all are: four bytes a letter, and a suffix
        return name
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
