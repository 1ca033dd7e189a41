"""Which images of a YOLO data set are for training, validation and test."""

from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any
from unicodedata import normalize

from defectseg.formats.common import Tally, read_text
from defectseg.formats.labels import Part, part_among, part_of
from defectseg.formats.locate import ImageFinder
from defectseg.formats.source import LabelSource

_NO_PARTS = ("names", "nc", "path", "classes", "backup", "download")
_ORDER: tuple[Part, ...] = ("train", "val", "test", "")


def place_of(file: str) -> PurePosixPath:
    """What an image and its label file have in common: their path without the suffix, where `labels` is `images`.

    Accents and letters are spelled in one way, as they are not on macOS and Windows.
    """
    path = "/" + normalize("NFC", file.rpartition(".")[0]).casefold()
    before, found, after = path.rpartition("/labels/")
    return PurePosixPath((f"{before}/images/{after}" if found else path).lstrip("/"))


def divide(
    source: LabelSource,
    file: str,
    document: Mapping[str, Any],
    places: Mapping[Path, PurePosixPath],
    finder: ImageFinder,
    tally: Tally,
) -> tuple[dict[Path, Part], list[str]]:
    """Find the images of each part.

    The entries of data.yaml are folders, or lists of images in a text file. Tools write them as they were on another
    machine, and people leave placeholders. If there is no such folder, the folders that are called train, val or test
    are taken; if there are none either, and no other entry fits, everything belongs to the data set.

    Args:
        source: the data set.
        file: data.yaml or obj.data; "" if there is none.
        document: what it says.
        places: all images, see `place_of`.
        finder: finds the images that lists name.
        tally: receives what was not as the file says.

    Returns:
        image -> its part, for all images that belong to the data set; and what the data set names that is not there.

    Raises:
        DataError: a list cannot be read, or a name in it fits several images.
    """
    by_folder = {image: part_among(place.parts[:-1]) for image, place in places.items()}
    folders = {folder for place in places.values() for folder in place.parents}
    parts: dict[Path, Part] = {}
    absent: list[str] = []
    nowhere: list[str] = []
    for part, key, entry in _entries(document):
        found: list[Path] = []
        path = _resolve(entry, document.get("path"), PurePosixPath(file).parent, source, folders)
        if path in source.files:
            lines = read_text(source.path(path), "expected a path on each line").split("\n")
            listed = {line.strip(): finder.find(line, where=str(source.path(path))) for line in lines if line.strip()}
            absent += [line for line, image in listed.items() if image is None]
            found = [image.path for image in listed.values() if image]
        elif path:
            found = [image for image, place in places.items() if _folder(path) in place.parents]
        elif part and (found := [image for image, its_part in by_folder.items() if its_part == part]):
            tally.add("absent_folder", example=f"{key}: {entry}")
        elif part:
            nowhere.append(f"{key}: {entry}")
        for image in found:
            if parts.setdefault(image, part) != part:
                tally.add("several_parts", example=image.name)
            elif not part:
                tally.add("other_part", example=image.name)
    if not parts and not absent:
        tally.add("absent_folder", len(nowhere), example=", ".join(nowhere))
        return by_folder, []
    for image in (image for image in places if image not in parts):
        tally.add("unlisted_images", example=image.name)
    return parts, absent + nowhere


def _entries(document: Mapping[str, Any]) -> list[tuple[Part, str, str]]:
    """Part, key and value of each entry that may be a folder or a list: train, val, test, then other names."""
    lists = {key: value if isinstance(value, list) else [value] for key, value in document.items()}
    texts = [(key, one) for key, values in lists.items() if key not in _NO_PARTS for one in values]
    entries = [(part_of(key), key, text) for key, text in texts if isinstance(text, str) and text.strip()]
    return sorted(entries, key=lambda one: _ORDER.index(one[0]))


def _resolve(
    entry: str, path: Any, base: PurePosixPath, source: LabelSource, folders: Collection[PurePosixPath]
) -> str:
    """The folder of images, or the list, that an entry means, as a path in the source; "" if there is none.

    Roboflow writes ../train/images for train/images, and other tools the path on the machine that wrote the set. So
    leading parts are left off until something is found, but none that says train, val or test.
    """
    whole = f"{path}/{entry}" if isinstance(path, str) else entry
    parts = [part for part in whole.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    most = next((place for place, part in enumerate(parts) if part_of(part)), max(0, len(parts) - 1))
    candidates = (str(PurePosixPath(base, *parts[start:])) for start in range(most + 1))
    return next((one for one in candidates if one in source.files or _folder(one) in folders), "")


def _folder(path: str) -> PurePosixPath:
    return place_of(f"{path}/x.").parent
