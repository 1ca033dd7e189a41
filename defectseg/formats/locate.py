"""Find the files of the images that labels name."""

import os
import re
import unicodedata
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from defectseg.errors import DataError
from defectseg.files import check_image_id
from defectseg.formats.common import index_unique, stem_of
from defectseg.formats.labels import Choices, LabelSet, Record
from defectseg.formats.losses import Tally
from defectseg.formats.source import LabelSource, leads_out
from defectseg.image.find import FoundImage, escaped, find_images
from defectseg.progress import some

_IMAGE_FOLDERS = ("images", "jpegimages", "train_images", "img", "imgs")


class ImageFinder:
    """Finds images below some folders by the names that labels give them.

    Tools write backslashes, URLs, percent signs, absolute paths of other machines, and paths that climb out of the
    folder; macOS spells accents differently. Names are therefore never followed. They are compared with the paths that
    exist: the last part must be the same, and of several such files the one is meant that shares the most folders.

    Args:
        roots: the folders.
        inside: leave out images behind links that lead out of the folders; `left_out` counts them.

    Raises:
        DataError: there is no image, or a folder does not exist.
    """

    def __init__(self, roots: Sequence[Path], *, inside: bool = False) -> None:
        try:
            images = find_images(roots, tell=False)
        except DataError as error:
            raise DataError(f"{error} Give the folder that holds the images.", argument="images") from error
        real_roots = list(map(os.path.realpath, roots))
        self.images = [one for one in images if not (inside and leads_out(one.path, *real_roots))]
        self.left_out = len(images) - len(self.images)
        if not self.images:
            raise DataError(f"{roots[0]}: all its images lie behind links out of it.", go_on={"follow_links": True})
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
            ranks = [(len({*wanted} & {*_parts(one.image_id)}), exact.endswith(one.path.name)) for one in there]
            best = [one for one, rank in zip(there, ranks, strict=True) if rank == max(ranks)]
            if len(best) == 1:
                return best[0]
            doubt = doubt or f"{where}: '{name}' may be {best[0].path} or {best[1].path}."
        if doubt:
            raise DataError(f"{doubt} Rename one, in the labels too, or leave one out.")
        return None


def find_all(source: LabelSource, choices: Choices, tally: Tally) -> ImageFinder:
    """The images of a source, or of the folder that a choice names. Counts those that links keep out."""
    finder = ImageFinder([choices.images or source.root], inside=not choices.follow_links)
    if choices.images or source.file is not None:  # else, they are told with the other files of the source
        tally.add("links", finder.left_out)
    return finder


def _parts(name: str) -> list[str]:
    """The parts of a path or URL, comparable."""
    path = name.partition("?d=")[2] or name  # Label Studio's /data/local-files/?d=a/b.jpg
    path = path.partition("?")[0] if "://" in path else path
    return [
        part
        for part in re.split(r"[\\/]", unicodedata.normalize("NFC", path).casefold())
        if part not in ("", ".", "..")
    ]


@dataclass(frozen=True)
class Placed:
    """The labels of one image, its file and its ImageId."""

    record: Record
    path: Path
    image_id: str


def place(labels: LabelSet, source: LabelSource, choices: Choices, tally: Tally) -> tuple[list[Placed], list[str]]:
    """Find the image of each record, sorted by ImageId, and the labels that have none. Two of one image are refused."""
    if not labels.records and not labels.lonely:
        raise DataError(f"{source.given}: holds no labels of this kind.")
    root = choices.images or source.root
    is_named = any(isinstance(record.image, str) for record in labels.records)
    finder = find_all(source, choices, tally) if is_named else None
    found: dict[Path, Record] = {}
    missing = list(labels.lonely)
    for record in labels.records:
        path = record.image
        if isinstance(path, str):
            image = finder.find(path, *record.also, where=record.where) if finder else None
            if image is None:
                missing.append(path)
                continue
            path = image.path
        if (other := found.setdefault(path, record)) is not record:
            raise DataError(f"{record.where} and {other.where} both stand for {path}. Keep one of the two.")
    is_any_labelled = any(record.shapes for record in found.values())
    if not found or (missing and (choices.absent is None or not is_any_labelled)):
        what = f"{len(missing)} of {len(labels.records) + len(labels.lonely)} labels have no image: {some(missing)}"
        raise DataError(
            f"{source.given}: {what}. Give the folder that holds the images, or give both the same names.",
            argument="images",
            go_on={"absent": "skip"} if is_any_labelled else None,
        )
    if finder and (source.file is None or choices.images):
        beside = {path.parent for path in found} if labels.file_each and source.file is None else set()
        for image in finder.images:
            if image.path not in found and image.path.parent in beside:
                found[image.path] = Record(image.path, str(image.path), status="unlabelled")
            elif image.path not in found:
                tally.add("unlisted_images", example=image.image_id)
    names = _name(list(found), labels.roots, root)
    if choices.exif == "turn":  # turned images end in .png
        index_unique(((stem_of(names[path]), path) for path in found), "images")
    return [Placed(found[path], path, names[path]) for path in sorted(found, key=names.__getitem__)], missing


def _name(paths: Sequence[Path], roots: Sequence[Path], root: Path) -> dict[Path, str]:
    """ImageIds of images: their paths below `roots`; without these, below the folder called "images" or so, if one
    holds all of them, or below their common folder. Raises DataError.
    """
    if roots:
        names = {image.path: image.image_id for image in ImageFinder(roots).images}
    else:
        common = Path(os.path.commonpath([path.parent for path in paths]))
        between = [folder for folder in (common, *common.parents) if folder.is_relative_to(root)]
        base = next((folder for folder in between if folder.name.lower() in _IMAGE_FOLDERS), common)
        names = {path: path.relative_to(base).as_posix() for path in paths}
    for path in paths:
        check_image_id(names[path], where=escaped(path))
    return names
