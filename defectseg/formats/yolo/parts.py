"""Which images of a YOLO data set are for training, validation and test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from defectseg.formats.common import read_text
from defectseg.formats.labels import Part, part_of
from defectseg.formats.locate import ImageFinder
from defectseg.formats.losses import Tally
from defectseg.formats.source import LabelSource
from defectseg.formats.yolo.write import label_path

_NO_PARTS = ("names", "nc", "path", "classes", "backup", "download")


@dataclass(frozen=True)
class Pair:
    """An image and its label file.

    Attributes:
        path: the image.
        name: its path below the folder of images.
        labels: the path of its label file in the source, which need not exist.
    """

    path: Path
    name: str
    labels: str


def divide(
    source: LabelSource,
    file: str,
    document: Mapping[str, Any],
    pairs: Sequence[Pair],
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
        pairs: all images.
        finder: finds the images that lists name.
        tally: receives what was not as the file says.

    Returns:
        image -> its part, for all images that belong to the data set; and what the data set names that is not there.

    Raises:
        DataError: a list cannot be read, or a name in it fits several images.
    """
    by_folder = {pair.path: part for pair in pairs if (part := _part_by_folder(pair))}
    base = PurePosixPath(file).parent
    entries = [
        (part, f"{key}: {entry}", path)
        for part, key, entry in _entries(document)
        if (path := _resolve(entry, document.get("path"), base, source, pairs)) or part
    ]
    if not entries:
        return {pair.path: by_folder.get(pair.path, "") for pair in pairs}, []
    part_of_image: dict[Path, Part] = {}
    absent: list[str] = []
    placeholders: list[str] = []
    for part, entry, path in entries:
        if path is None:
            found = [image for image, its_part in by_folder.items() if its_part == part]
            if found:
                tally.add("absent_folder", example=entry)
            else:
                placeholders.append(entry)
        elif path in source.files:
            found = _listed(source, path, finder, absent)
        else:
            found = [pair.path for pair in pairs if _labels_folder(path) in PurePosixPath(pair.labels).parents]
        for image in found:
            if part_of_image.setdefault(image, part) != part:
                tally.add("several_parts", example=image.name)
            elif not part:
                tally.add("other_part", example=image.name)
    if not part_of_image and not absent:
        tally.add("absent_folder", len(placeholders), example=", ".join(placeholders))
        return {pair.path: "" for pair in pairs}, []
    for pair in pairs:
        if pair.path not in part_of_image:
            tally.add("unlisted_images", example=pair.name)
    return part_of_image, absent + placeholders


def _part_by_folder(pair: Pair) -> Part:
    return next((part for folder in PurePosixPath(pair.labels).parts[:-1] if (part := part_of(folder))), "")


def _entries(document: Mapping[str, Any]) -> list[tuple[Part, str, str]]:
    """Part, key and value of each entry that may be a folder or a list: train, val, test, then other names."""
    order = ("train", "val", "test", "")
    entries = [
        (part_of(key), key, entry)
        for key, value in document.items()
        if key not in _NO_PARTS
        for entry in (value if isinstance(value, list) else [value])
        if isinstance(entry, str) and entry.strip()
    ]
    return sorted(entries, key=lambda one: order.index(one[0]))


def _resolve(entry: str, path: Any, base: PurePosixPath, source: LabelSource, pairs: Sequence[Pair]) -> str | None:
    """The folder of images, or the list, that an entry means, as a path in the source; None if there is none.

    Roboflow writes ../train/images for train/images, and other tools the path on the machine that wrote the set. So
    leading parts are left off until something is found, but none that says train, val or test.
    """
    whole = f"{path}/{entry}" if isinstance(path, str) else entry
    parts = [part for part in whole.replace("\\", "/").split("/") if part not in ("", ".", "..")]
    folders = {folder for pair in pairs for folder in PurePosixPath(pair.labels).parents}
    most = next((place for place, part in enumerate(parts) if part_of(part)), max(0, len(parts) - 1))
    candidates = (str(PurePosixPath(base, *parts[start:])) for start in range(most + 1))
    return next((one for one in candidates if one in source.files or _labels_folder(one) in folders), None)


def _labels_folder(folder: str) -> PurePosixPath:
    return PurePosixPath(label_path(f"{folder}/x.")).parent


def _listed(source: LabelSource, file: str, finder: ImageFinder, absent: list[str]) -> list[Path]:
    """The images that a text file names, one on each line. Those that are not there go to `absent`."""
    found = []
    for number, line in enumerate(read_text(source.path(file), "expected a path on each line").splitlines(), start=1):
        if line.strip():
            image = finder.find(line.strip(), where=f"{source.path(file)}, line {number}")
            if image is None:
                absent.append(line.strip())
            else:
                found.append(image.path)
    return found
