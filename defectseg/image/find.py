"""Find the images in folders and files, and give each its ImageId."""

import logging
import os
import re
import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePath

from defectseg.errors import DataError
from defectseg.files import UNFIT_CHARACTERS, size_and_time

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    [".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2", ".gif", ".avif"]
)
SUFFIXES_SHOWN = ", ".join(sorted(IMAGE_SUFFIXES))
_SEPARATORS = ("/", os.sep)
_UNFIT_FOR_AN_IMAGE_ID = re.compile(UNFIT_CHARACTERS)


@dataclass(frozen=True, order=True, slots=True)
class FoundImage:
    """An image file and its name within the run.

    Attributes:
        image_id: ImageId, the POSIX path relative to the input folder, with its suffix.
        where: path of the file; or, if it ends with a separator, of the folder to which the ImageId is relative. Images
            share this text, since paths of their own would fill much memory, in each of perhaps a million.
        fault: "", or why the image is unreadable, known before it is opened; the path may then be that of a folder
            that cannot be listed, or of nothing at all.
    """

    image_id: str
    where: str
    fault: str = ""

    @property
    def file(self) -> str:
        """The path of the file as text."""
        return self.where + self.image_id if self.where.endswith(_SEPARATORS) else self.where

    @property
    def path(self) -> Path:
        """The file."""
        return Path(self.file)

    @property
    def shown(self) -> str:
        """The path of the file in tables."""
        return escaped(self.path)

    @property
    def stamp(self) -> tuple[int, int]:
        """Size and time of the file as it is now, see `size_and_time`."""
        return size_and_time(self.file)


def find_images(
    inputs: Sequence[Path],
    listed: Iterable[Path] = (),
    *,
    recursive: bool = True,
    skip: Path | None = None,
    keep_faulty: bool = False,
    tell: bool = True,
) -> list[FoundImage]:
    """List the images in folders and files, sorted by ImageId, each file once.

    An ImageId is the path relative to the input folder; the folder of a file is its parent. If two inputs have images
    with the same ImageId, all are named relative to the folder that the inputs share.
    Links to folders are followed once. Hidden files are skipped. Files with another suffix are counted and logged.

    An image is faulty if its name cannot be an ImageId (it gets one from `escaped`), or if it is a subfolder that
    cannot be listed, or if it is in `listed` and has another suffix and is no folder.

    Args:
        inputs: folders and files.
        listed: more folders and files, from a list that may be long and out of date: a name that ends like that of an
            image is taken for an image, and whether it exists is only known once it is opened.
        recursive: search subfolders.
        skip: a folder to leave out, with everything below it (the output folder).
        keep_faulty: also return faulty images.
        tell: log how many files have another suffix.

    Raises:
        DataError: an entry of `inputs` does not exist, has another suffix or cannot be listed; an image is faulty and
            `keep_faulty` is off; there is no image.
    """
    search = _Search(recursive, skip)
    for given in inputs:
        search.add(given)
    for image in chain.from_iterable(search.found.values()):
        if image.fault and image.path in inputs:
            raise DataError(image.fault)
    for given in listed:
        search.add(given, listed=True)
    search.forget_seen()
    if tell:
        search.log_passed_over()
    images = with_valid_ids(sorted(_name_apart(search.found)))
    if not images:
        names = ", ".join(map(str, inputs[:3])) or "the list of inputs"
        where = "" if recursive else " (subfolders were not searched)"
        why = f" {skip} is left out, since results go there: choose another output folder for images in it."
        raise DataError(f"No image in {names}{where}. Files that count end in {SUFFIXES_SHOWN}.{why if skip else ''}")
    if not keep_faulty and (fault := next((image.fault for image in images if image.fault), "")):
        raise DataError(fault)
    return images


def escaped(name: str | Path) -> str:
    """Write control characters, backslashes and bytes that are not UTF-8 in a name as %XX."""
    text = name.as_posix() if isinstance(name, Path) else name
    return _UNFIT_FOR_AN_IMAGE_ID.sub(lambda unfit: "".join(f"%{byte:02X}" for byte in os.fsencode(unfit[0])), text)


class _Search:
    """Walks the inputs and remembers every file and folder, so that none counts twice and loops of links end.

    Attributes:
        found: absolute path of an input folder -> its images, named relative to that folder.
    """

    def __init__(self, recursive: bool, skip: Path | None) -> None:
        self.found: dict[str, list[FoundImage]] = defaultdict(list)
        self._recursive = recursive
        self._skip = None if skip is None else f"{os.path.realpath(skip)}{os.sep}"
        self._seen: dict[str, set[str]] = defaultdict(set)  # folder -> names of its files, and "" for itself
        self._passed_over: Counter[str] = Counter()
        self._real_folder = lru_cache(maxsize=1024)(os.path.realpath)

    def add(self, given: Path, *, listed: bool = False) -> None:
        """Add a file, or the images below a folder; if `listed`, without looking whether an image exists."""
        file = str(given)
        whole = os.path.abspath(file)  # noqa: PTH100  # keeps links: the user chose their names
        is_named_so = given.suffix.lower() in IMAGE_SUFFIXES
        fault = ""
        if not (listed and is_named_so):
            if os.path.isdir(given):  # noqa: PTH112  # Path.is_dir raises PermissionError
                self._add_folder(given, whole)
                return
            if not os.path.lexists(given):
                fault = f"{escaped(given)}: no such file or folder, or no permission to see it."
            elif not is_named_so:
                fault = f"{escaped(given)}: not an image by its name; expected one that ends in {SUFFIXES_SHOWN}."
        folder, name = os.path.split(whole)
        if self._is_new(self._real_folder(os.path.dirname(file)), name):  # noqa: PTH120  # Path is slower by seconds
            self.found[folder].append(FoundImage(name, sys.intern(file.removesuffix(name)) or file, fault))

    def _add_folder(self, base: Path, whole: str) -> None:
        """Add the images of a folder and, if recursive, its subfolders. Links to folders come last."""
        where = str(base / "_")[:-1]
        folders, links = deque([base]), deque[Path]()
        while folders or links:
            folder = (folders or links).popleft()
            real = os.path.realpath(folder)  # Path.resolve fails on links in a circle
            if not self._is_new(real):
                continue
            prefix = "" if folder == base else f"{folder.relative_to(base).as_posix()}/"
            try:
                entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
            except OSError as error:
                fault = f"{escaped(folder)}: the folder cannot be listed ({error.strerror}). Check its permissions."
                owner, name = (whole, prefix[:-1]) if prefix else os.path.split(whole)
                self.found[owner].append(FoundImage(name, str(folder), fault))
                continue
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                # Only links are followed with os.path, which takes a link in a circle for no folder.
                if os.path.isdir(entry) if entry.is_symlink() else entry.is_dir():  # noqa: PTH112
                    if self._recursive:
                        (links if entry.is_symlink() else folders).append(folder / entry.name)
                elif suffix_of(entry.name) not in IMAGE_SUFFIXES:
                    self._passed_over[suffix_of(entry.name)] += 1
                # Broken links and irregular files are kept, so that they are reported as unreadable.
                elif self._is_new(real, entry.name):
                    self.found[whole].append(FoundImage(name := prefix + entry.name, where or name))

    def log_passed_over(self) -> None:
        """Log how many files have another suffix."""
        if self._passed_over:
            counts = sorted(self._passed_over.items(), key=lambda item: (-item[1], item[0]))
            told = [f"{count} {escaped(suffix) or 'without a suffix'}" for suffix, count in counts]
            log.info("passed over for their suffix: %s", ", ".join(told))

    def forget_seen(self) -> None:
        """Free the memory for what was seen; nothing is added any more."""
        self._seen.clear()

    def _is_new(self, folder: str, name: str = "") -> bool:
        """Whether a file of a folder (real path) or the folder itself is new, and not in `skip`."""
        names = self._seen[folder]
        is_new = name not in names and not (self._skip and f"{folder}{os.sep}{name}".startswith(self._skip))
        names.add(name)
        return is_new


def suffix_of(name: str) -> str:
    """The suffix of a file's name in small letters."""
    return PurePath(name).suffix.lower()


def with_valid_ids(images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images, sorted by ImageId; an image with an invalid ImageId gets a valid, unique one and a fault."""
    if not any(_UNFIT_FOR_AN_IMAGE_ID.search(image.image_id) for image in images):
        return sorted(images)
    taken = {image.image_id for image in images}
    valid = []
    for image in images:
        if _UNFIT_FOR_AN_IMAGE_ID.search(image.image_id):
            why = "the name has a backslash or a control character, or is not UTF-8. Rename it."
            image_id = escaped(image.image_id)
            while image_id in taken:
                image_id = image_id.replace("%", "%25", 1)
            taken.add(image_id)
            fault = image.fault or f"{escaped(image.file)}: {why}"
            image = replace(image, image_id=image_id, where=image.file, fault=fault)
        valid.append(image)
    return sorted(valid)


def _name_apart(found: Mapping[str, Sequence[FoundImage]]) -> list[FoundImage]:
    """Give every image its ImageId: relative to its input or, if names clash, to the folder that all inputs share."""
    images = [image for relatives in found.values() for image in relatives]
    if len(found) == 1 or len({image.image_id for image in images}) == len(images):
        return images
    shared = len(os.path.commonprefix([Path(base).parts for base in found]))  # noqa: RUF071 - of parts, not of letters
    return [
        replace(image, image_id="/".join([*Path(base).parts[shared:], image.image_id]), where=image.file)
        for base, relatives in found.items()
        for image in relatives
    ]
