"""Find the files of the images that labels name."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote

from defectseg.errors import DataError
from defectseg.image.find import FoundImage, find_images

_IMAGE_FOLDERS = ("images", "jpegimages", "train_images", "img", "imgs")


class ImageFinder:
    """Finds images below some folders by the names that labels give them.

    Tools write backslashes, URLs, percent signs, absolute paths of other machines, and paths that climb out of the
    folder; macOS spells accents differently. Names are therefore never followed. They are compared with the paths that
    exist: the last part must be the same, and of several such files the one is meant that shares the most folders.

    Args:
        roots: the folders.

    Raises:
        DataError: there is no image, or a folder does not exist.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.images: list[FoundImage] = find_images(roots, tell=False)
        self._by_name: dict[str, list[FoundImage]] = defaultdict(list)
        for image in self.images:
            name = _parts(image.image_id)[-1]
            self._by_name[name].append(image)
            self._by_name[name.rpartition(".")[0]].append(image)  # VOC may leave the suffix out

    def find(self, *names: str, where: str) -> FoundImage | None:
        """The image that the first name means that fits one best; None if no name fits.

        Raises:
            DataError: several files fit a name equally well, and no other name tells them apart.
        """
        doubt = ""
        for name in (*names, *(decoded for name in names if (decoded := unquote(name)) != name)):
            wanted = _parts(name)
            if not wanted or not (there := self._by_name.get(wanted[-1])):
                continue
            exact = unicodedata.normalize("NFC", name)
            ranks = [(_shared(wanted, _parts(one.image_id)), exact.endswith(one.path.name)) for one in there]
            best = [one for one, rank in zip(there, ranks, strict=True) if rank == max(ranks)]
            if len(best) == 1:
                return best[0]
            doubt = doubt or f"{where}: '{name}' may be {best[0].path} or {best[1].path}."
        if doubt:
            raise DataError(f"{doubt} Rename one of them, in the labels too.")
        return None


def _parts(name: str) -> list[str]:
    """The parts of a path or URL, comparable."""
    path = name.partition("?d=")[2] or name  # Label Studio's /data/local-files/?d=a/b.jpg
    path = path.partition("?")[0] if "://" in path else path
    return [
        part
        for part in re.split(r"[\\/]", unicodedata.normalize("NFC", path).casefold())
        if part not in ("", ".", "..")
    ]


def _shared(wanted: Sequence[str], there: Sequence[str]) -> int:
    """How many parts of a wanted path occur in another one, in order, counted from the end."""
    count, place = 0, len(there)
    for part in reversed(wanted):
        before = next((index for index in range(place - 1, -1, -1) if there[index] == part), None)
        if before is not None:
            count, place = count + 1, before
    return count


def image_ids(paths: Sequence[Path], root: Path) -> dict[Path, str]:
    """ImageIds of images below `root`: their paths below the last folder called "images" or so, or the common one."""
    common = Path(os.path.commonpath([path.parent for path in paths]))
    between = [folder for folder in (common, *common.parents) if folder.is_relative_to(root)]
    base = next((folder for folder in between if folder.name.lower() in _IMAGE_FOLDERS), common)
    return {path: path.relative_to(base).as_posix() for path in paths}
