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
_DEEPEST = 50
_ORDER: tuple[Part, ...] = ("train", "val", "test", "")


def place_of(file: str) -> PurePosixPath:
    """What an image and its label file have in common: their path without the suffix, where `labels` is `images`.

    Accents and letters are spelled in one way, as they are not on macOS and Windows.
    """
    path = "/" + normalize("NFC", file.rpartition(".")[0]).casefold().replace("\\", "/")
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
    lists = {place_of(f"{one}/."): source.path(one) for one in source.with_suffix(".txt")}
    parts: dict[Path, Part] = {}
    absent: list[str] = []
    nowhere: list[str] = []
    for part, entry, path in _entries(document):
        place = _find(path, place_of(f"{file}/.").parent, folders | lists.keys())
        if place in lists:
            lines = filter(None, map(str.strip, read_text(lists[place], "expected a path on each line").split("\n")))
            listed = {line: finder.find(line, where=str(lists[place])) for line in lines}
            absent += [line for line, image in listed.items() if image is None]
            found = [image.path for image in listed.values() if image]
        elif place:
            found = [image for image, its_place in places.items() if place in its_place.parents]
        else:
            found = [image for image, its_part in by_folder.items() if part and its_part == part]
            if found:
                tally.add("absent_folder", example=entry)
            elif part:
                nowhere.append(entry)
        for image in found:
            if parts.setdefault(image, part) != part or not part:
                tally.add("several_parts" if parts[image] != part else "other_part", example=image.name)
    if not parts and not absent:
        tally.add("absent_folder", len(nowhere), example=", ".join(nowhere))
        return by_folder, []
    for image in (image for image in places if image not in parts):
        tally.add("unlisted_images", example=image.name)
    return parts, absent + nowhere


def _entries(document: Mapping[str, Any]) -> list[tuple[Part, str, str]]:
    """Part, text and path of each entry that may be a folder or a list: train, val, test, then other names."""
    root = document["path"] if isinstance(document.get("path"), str) else ""
    lists = {key: value if isinstance(value, list) else [value] for key, value in document.items()}
    texts = [(key, one) for key, values in lists.items() if key not in _NO_PARTS for one in values]
    entries = [(part_of(key), f"{key}: {one}", f"{root}/{one}/.") for key, one in texts if isinstance(one, str) and one]
    return sorted(entries, key=lambda one: _ORDER.index(one[0]))


def _find(path: str, base: PurePosixPath, known: Collection[PurePosixPath]) -> PurePosixPath | None:
    """Which of the known places a path means.

    Roboflow writes ../train/images for train/images, and other tools the path on the machine that wrote the set. So
    leading parts are left off until something is found, but none that says train, val or test.
    """
    parts = [part for part in place_of(path).parts if part != ".."][-_DEEPEST:]
    most = next((start for start, part in enumerate(parts) if part_of(part)), max(0, len(parts) - 1))
    return next((one for start in range(most + 1) if (one := base.joinpath(*parts[start:])) in known), None)
