"""Find the images in folders and files, and give each its ImageId."""

import os
import re
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from defectseg.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp"})


_UNFIT_FOR_AN_IMAGE_ID = re.compile(r"[\\\x00-\x1f\ud800-\udfff]")  # the last range: bytes that are not UTF-8


@dataclass(frozen=True, order=True)
class FoundImage:
    """An image file and its name within the run: the path relative to its input folder, POSIX, with its suffix."""

    image_id: str
    path: Path


def find_images(inputs: Sequence[Path], *, recursive: bool = True, skip: Path | None = None) -> list[FoundImage]:
    """List the images in folders and files, sorted by ImageId, each file once.

    An ImageId is the path relative to the input folder; a file given directly counts as one of its parent folder. Where
    ImageIds of several inputs are the same, those inputs get their folder's name in front, and more parents where that
    is not enough. Links to folders are followed, once each. Names that begin with a dot are passed over.

    Args:
        inputs: folders and files.
        recursive: look into subfolders.
        skip: a folder to leave out, with all below it (the output folder).

    Raises:
        DataError: an input that does not exist, an input file of an unknown kind, a folder that cannot be read, a file
            name that cannot be an ImageId, or no image at all.
    """
    search = _Search(recursive, None if skip is None else skip.resolve())
    found: dict[Path, list[tuple[str, Path]]] = defaultdict(list)  # input folder -> (path relative to it, path)
    for given in inputs:
        base, images = search.images_of(given)
        found[base].extend(images)
    named = sorted(_name_apart(found))
    if not named:
        names = ", ".join(map(str, inputs[:3])) or "an empty list of inputs"
        where = "" if recursive else " (subfolders were not searched)"
        hidden = skip is not None and any(given.resolve().is_relative_to(skip.resolve()) for given in inputs)
        why = f" What lies in {skip} is left out, since results go there: choose another --out." if hidden else ""
        raise DataError(f"No image in {names}{where}. Files that count end in {_suffixes()}.{why}")
    for image in named:
        if _UNFIT_FOR_AN_IMAGE_ID.search(image.image_id):
            raise DataError(
                f"{str(image.path)!r}: the name has a backslash or a control sign, or is not UTF-8. Rename it."
            )
    return named


class _Search:
    """Walks inputs and remembers what it has seen, so that no file counts twice and no loop of links hangs."""

    def __init__(self, recursive: bool, skip: Path | None) -> None:
        self.recursive = recursive
        self.skip = skip
        self.folders: set[Path] = set()
        self.files: set[tuple[Path, str]] = set()

    def images_of(self, given: Path) -> tuple[Path, list[tuple[str, Path]]]:
        """The absolute folder of an input, and its new images: path relative to that folder, path."""
        if given.is_dir():
            images = [
                (prefix + name, folder / name)
                for folder, prefix, real in self._folders_of(given)
                for name in self._image_names(folder)
                if self._is_new(real, name)
            ]
            return _absolute(given), images
        if not given.is_file():
            raise DataError(f"{given}: no such file or folder.")
        if given.suffix.lower() not in IMAGE_SUFFIXES:
            raise DataError(f"{given}: not an image by its name; expected one that ends in {_suffixes()}.")
        real = given.parent.resolve()
        wanted = not self._is_skipped(real) and self._is_new(real, given.name)
        return _absolute(given.parent), [(given.name, given)] if wanted else []

    def _folders_of(self, base: Path) -> Iterator[tuple[Path, str, Path]]:
        """Each folder not seen before, with its path relative to `base` and its real path. Links come last."""
        waiting = deque([(base, "")])
        while waiting:
            folder, prefix = waiting.popleft()
            real = folder.resolve()
            if real in self.folders or self._is_skipped(real):
                continue
            self.folders.add(real)
            yield folder, prefix, real
            for entry in _visible_entries(folder) if self.recursive else []:
                if _is_folder(entry):
                    add = waiting.append if entry.is_symlink() else waiting.appendleft
                    add((folder / entry.name, f"{prefix}{entry.name}/"))

    def _image_names(self, folder: Path) -> list[str]:
        return [
            entry.name
            for entry in _visible_entries(folder)
            # A broken link is kept: its image is missing, and must be reported rather than passed over.
            if entry.name.lower().endswith(tuple(IMAGE_SUFFIXES))
            and (entry.is_symlink() or entry.is_file(follow_symlinks=False))
            and not _is_folder(entry)
        ]

    def _is_skipped(self, real_folder: Path) -> bool:
        return self.skip is not None and real_folder.is_relative_to(self.skip)

    def _is_new(self, real_folder: Path, name: str) -> bool:
        new = (real_folder, name) not in self.files
        self.files.add((real_folder, name))
        return new


def _visible_entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be listed ({error.strerror or error}). Check its permissions.") from error


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _absolute(folder: Path) -> Path:
    """Absolute without `..`; links stay, since their names are what the user chose."""
    return Path(os.path.normpath(folder.absolute()))


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _name_apart(found: Mapping[Path, Sequence[tuple[str, Path]]]) -> list[FoundImage]:
    """Give every image its ImageId; inputs that share one get more and more of their own path in front."""
    parents = dict.fromkeys(found, 0)
    while True:
        owner_of: dict[str, Path] = {}
        clashing: set[Path] = set()
        images = []
        for base, relatives in found.items():
            prefix = "".join(f"{part}/" for part in base.parts[1:][-parents[base] :]) if parents[base] else ""
            for relative, path in relatives:
                owner = owner_of.setdefault(prefix + relative, base)
                if owner != base:
                    clashing |= {owner, base}
                images.append(FoundImage(prefix + relative, path))
        if not clashing:
            return images
        extendable = [base for base in clashing if parents[base] < len(base.parts) - 1]
        if not extendable:
            names = ", ".join(sorted(map(str, clashing)))
            raise DataError(
                f"{names}: hold images of the same names that cannot be told apart. Process them one by one."
            )
        for base in extendable:
            parents[base] += 1
