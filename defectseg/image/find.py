"""Find the images in folders and files, and give each its ImageId."""

import logging
import os
import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path, PurePath

import cv2

from defectseg.errors import DataError
from defectseg.files import UNFIT_CHARACTERS

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp"}).union(
    # Not in every build of OpenCV; each of these has a writer where it has a reader.
    suffix
    for suffix in (".jp2", ".gif", ".avif")
    if cv2.haveImageWriter(f"x{suffix}")
)

_UNFIT_FOR_AN_IMAGE_ID = re.compile(UNFIT_CHARACTERS)
_MOST_SUFFIXES_TOLD = 8


@dataclass(frozen=True, order=True)
class FoundImage:
    """An image file and its name within the run: the path relative to its input folder, POSIX, with its suffix.

    Attributes:
        image_id: ImageId.
        path: the file.
        fault: why it is unreadable, known before it is opened; "" where nothing is known against it. The path may then
            be that of a folder which cannot be listed, or of nothing.
    """

    image_id: str
    path: Path
    fault: str = ""


def find_images(
    inputs: Sequence[Path],
    listed: Sequence[Path] = (),
    *,
    recursive: bool = True,
    skip: Path | None = None,
    keep_faulty: bool = False,
) -> list[FoundImage]:
    """List the images in folders and files, sorted by ImageId, each file once.

    An ImageId is the path relative to the input folder; a file given directly counts as one of its parent folder. Where
    ImageIds of several inputs are the same, those inputs get their folder's name in front, and more parents where that
    is not enough. Links to folders are followed, once each. Names that begin with a dot are passed over, and so is what
    has another suffix, which is logged by suffix.

    Faulty are: a file whose name cannot be an ImageId (it gets one in which `escaped` writes what is unfit), a
    subfolder that cannot be listed, and whatever of `listed` is gone or no image by its suffix.

    Args:
        inputs: folders and files.
        listed: more of them, from a list that may be out of date.
        recursive: look into subfolders.
        skip: a folder to leave out, with all below it (the output folder).
        keep_faulty: return what is faulty too, with the fault.

    Raises:
        DataError: of `inputs`, something that does not exist, a file of an unknown kind or a folder that cannot be
            listed; without `keep_faulty`, anything faulty; no image at all.
    """
    search = _Search(recursive, skip)
    for given in inputs:
        search.add(given)
    for image in chain.from_iterable(search.found.values()):
        if image.fault and image.path in inputs:
            raise DataError(image.fault)
    for given in listed:
        search.add(given)
    search.log_passed_over()
    images = _with_valid_ids(sorted(_name_apart(search.found)))
    if not images:
        names = ", ".join(map(str, [*inputs, *listed][:3])) or "an empty list of inputs"
        where = "" if recursive else " (subfolders were not searched)"
        why = f" {skip} is left out, since results go there: choose another output folder for images in it."
        raise DataError(f"No image in {names}{where}. Files that count end in {_suffixes()}.{why if skip else ''}")
    if not keep_faulty and (fault := next((image.fault for image in images if image.fault), "")):
        raise DataError(fault)
    return images


def escaped(name: str | Path) -> str:
    """A name with control characters, backslashes and bytes that are not UTF-8 written as %XX."""
    text = name.as_posix() if isinstance(name, Path) else name
    return _UNFIT_FOR_AN_IMAGE_ID.sub(lambda unfit: "".join(f"%{byte:02X}" for byte in os.fsencode(unfit[0])), text)


class _Search:
    """Walks inputs and remembers what it has seen, so that no file counts twice and no loop of links hangs.

    Attributes:
        found: absolute folder of an input -> its images, named relative to that folder.
    """

    def __init__(self, recursive: bool, skip: Path | None) -> None:
        self.found: dict[Path, list[FoundImage]] = defaultdict(list)
        self._recursive = recursive
        self._skip = None if skip is None else f"{os.path.realpath(skip)}{os.sep}"
        self._seen: set[str] = set()
        self._passed_over: Counter[str] = Counter()

    def add(self, given: Path) -> None:
        """Take in a folder, with what is below it, or a file."""
        whole = Path(os.path.abspath(given))  # noqa: PTH100  # links stay: their names are what the user chose
        if os.path.isdir(given):  # noqa: PTH112  # Path.is_dir raises an error for what may not be looked at
            self._add_folder(given, whole)
            return
        folder, fault = str(whole.parent), ""
        if not os.path.lexists(given):
            fault = f"{escaped(given)}: no such file or folder, or no permission to see it."
        elif _suffix(given.name) not in IMAGE_SUFFIXES:
            fault = f"{escaped(given)}: not an image by its name; expected one that ends in {_suffixes()}."
        else:
            folder = os.path.realpath(given.parent)
        if self._is_new(folder + os.sep + whole.name):
            self.found[whole.parent].append(FoundImage(whole.name, given, fault))

    def _add_folder(self, base: Path, whole: Path) -> None:
        """Take in the images of a folder and, if wanted, of those below it, each once. Links to folders come last."""

        def fail(error: OSError) -> None:
            folder = Path(error.filename)
            fault = f"{escaped(folder)}: the folder cannot be listed ({error.strerror}). Check its permissions."
            if self._is_new(os.path.realpath(folder) + os.sep):
                owner = whole.parent if folder == base else whole
                name = whole.name if folder == base else folder.relative_to(base).as_posix()
                self.found[owner].append(FoundImage(name, folder, fault))

        waiting = [base]
        for start in waiting:
            for name, subfolders, files in os.walk(start, onerror=fail):
                folder, real = Path(name), os.path.realpath(name)  # Path.resolve fails on links in a circle
                if not self._is_new(real + os.sep):
                    subfolders.clear()
                    continue
                subfolders[:] = sorted(name for name in subfolders if self._recursive and not name.startswith("."))
                waiting += [folder / name for name in subfolders if (folder / name).is_symlink()]
                prefix = "" if folder == base else f"{folder.relative_to(base).as_posix()}/"
                for file in files:
                    if file.startswith("."):
                        continue
                    if _suffix(file) not in IMAGE_SUFFIXES:
                        self._passed_over[_suffix(file)] += 1
                    # Broken links and what is no regular file are kept: they must be reported rather than passed over.
                    elif self._is_new(real + os.sep + file):
                        self.found[whole].append(FoundImage(prefix + file, folder / file))

    def log_passed_over(self) -> None:
        """Say how many files have a suffix of another kind."""
        if self._passed_over:
            counts = sorted(self._passed_over.items(), key=lambda item: (-item[1], item[0]))
            told = [f"{count} {escaped(suffix) or 'without a suffix'}" for suffix, count in counts]
            if more := sum(count for _, count in counts[_MOST_SUFFIXES_TOLD:]):
                told[_MOST_SUFFIXES_TOLD:] = [f"{more} with others"]
            log.info("passed over for their suffix: %s", ", ".join(told))

    def _is_new(self, real: str) -> bool:
        """Whether this is the first time for a file or a folder (ends in a slash), and it is not to be left out."""
        is_new = real not in self._seen and not (self._skip and real.startswith(self._skip))
        self._seen.add(real)
        return is_new


def _suffix(name: str) -> str:
    return PurePath(name).suffix.lower()


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _with_valid_ids(images: Sequence[FoundImage]) -> list[FoundImage]:
    """The images, sorted by ImageId; one whose ImageId is not valid gets a valid and unique one, and a fault."""
    taken = {image.image_id for image in images}
    valid = []
    for image in images:
        if _UNFIT_FOR_AN_IMAGE_ID.search(image.image_id):
            why = "the name has a backslash or a control character, or is not UTF-8. Rename it."
            image_id = escaped(image.image_id)
            while image_id in taken:
                image_id = image_id.replace("%", "%25", 1)
            taken.add(image_id)
            image = replace(image, image_id=image_id, fault=image.fault or f"{escaped(image.path)}: {why}")
        valid.append(image)
    return sorted(valid)


def _name_apart(found: Mapping[Path, Sequence[FoundImage]]) -> list[FoundImage]:
    """Give every image its ImageId; inputs that share one get more and more of their own path in front."""
    parents = dict.fromkeys(found, 0)
    while True:
        owner_of: dict[str, Path] = {}
        clashing: set[Path] = set()
        images = []
        for base, relatives in found.items():
            prefix = "".join(f"{part}/" for part in base.parts[1:][-parents[base] :]) if parents[base] else ""
            for image in relatives:
                owner = owner_of.setdefault(prefix + image.image_id, base)
                if owner != base:
                    clashing |= {owner, base}
                images.append(FoundImage(prefix + image.image_id, image.path, image.fault) if prefix else image)
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
