"""Which picture is the mask of which image, by their names and folders."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from defectseg.formats.common import index_unique, read_text
from defectseg.formats.labels import Part, part_of
from defectseg.formats.source import LabelSource
from defectseg.image.find import IMAGE_SUFFIXES, find_images

_PART = "train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|tr|ts"
_IMAGES = "images?|jpegimages|imgs?|img_dir"
_MASKS = "masks?|labels?|annots?|annotations?|ann_dir|gts?|segs?|segmentations?|segmentation_?class(?:png|raw)?"
_FOLDER = re.compile(  # such as masks, train_masks, masks-val, labelsTr
    f"(?:({_PART})[_-]?)?(?:(?P<image>{_IMAGES})|(?P<truth>ground_?truths?)|{_MASKS})(?:[_-]?(?P<part>{_PART}))?",
    re.IGNORECASE,
)
_OTHER_FOLDER = re.compile(r"segmentation_?object\w*|\w*visuali[sz]ations?|\w*_viz", re.IGNORECASE)
_ENDING = re.compile(r"[_\-. ](?:masks?|gt|labels?|seg|segmentation|ground_?truth|label(?:train)?ids)$", re.IGNORECASE)
_TAIL = re.compile(r"[_\-. ](?:(?:masks?|gt|labels?|seg)(?![^\W\d_])[_\-. ]*)?", re.IGNORECASE)
_SHORT_PARTS = {"tr": "train", "ts": "test"}  # nnU-Net, whose images have the number of their channel behind the name
_CHANNEL = re.compile("_[0-9]{4}$")
_TILE_FOLDER = "MT_"  # magnetic tiles: MT_Blowhole/Imgs
_SAME, _CLASS_FOLDER, _CLASS_TAIL, _BOTH, _DEEPER = range(5)


@dataclass(frozen=True)
class Picture:
    """An image or a mask.

    Attributes:
        path: the file.
        role: "image" or "mask", if a folder says so.
        folders: its folders without the one that says so; "train" if that is "train_masks" or "labelsTr".
        stem: the file's name without suffix.
        is_truth: it lies in a folder called ground_truth.
        image: of a mask: the key of its image.
        class_name: of a mask: the class that its folder or name says; "" if none does.
    """

    path: Path
    role: str
    folders: tuple[str, ...]
    stem: str
    is_truth: bool = False
    image: str = ""
    class_name: str = ""

    @property
    def key(self) -> str:
        """Names an image among the images."""
        return "/".join([*self.folders, self.stem])

    @property
    def part(self) -> Part:
        """The part of the data set that a folder names."""
        return next((part for folder in self.folders if (part := part_of(folder))), "")


def find_pictures(source: LabelSource, images: Path | None = None) -> tuple[list[Picture], list[Picture]]:
    """The images and the masks of a source. The images may lie in a folder elsewhere.

    Masks lie in a folder called masks, labels, ground_truth or so. Where there is none, they lie among the images:
    a_mask.png or a_GT.png beside a.png, or a.png beside a.jpg.
    """
    files = [
        file for file in source.with_suffix(*IMAGE_SUFFIXES) if not any(map(_OTHER_FOLDER.fullmatch, file.split("/")))
    ]
    by_top = {file.partition("/")[0] for file in files} == {"images", "masks"}
    pictures = [_picture(source.path(file), file, by_top=by_top) for file in files]
    masks = [picture for picture in pictures if picture.role == "mask"] or _masks_among(pictures)
    if not masks and (images or ((match := _FOLDER.fullmatch(source.root.name)) and not match["image"])):
        masks = pictures
    if images:
        pictures = [_picture(image.path, image.image_id) for image in find_images([images], tell=False)]
        elsewhere = {picture.path.resolve() for picture in pictures}
        masks = [mask for mask in masks if mask.path.resolve() not in elsewhere]
    are_masks = {mask.path for mask in masks}
    return [picture for picture in pictures if picture.path not in are_masks], masks


def _picture(path: Path, name: str, *, by_top: bool = False) -> Picture:
    *folders, last = PurePosixPath(unicodedata.normalize("NFC", name)).parts  # macOS spells accents differently
    stem = last.rpartition(".")[0]
    matches = [(place, match) for place, folder in enumerate(folders) if (match := _FOLDER.fullmatch(folder))]
    if not matches:
        return Picture(path, "", tuple(folders), stem)
    place, match = matches[0 if by_top else -1]
    part = (match[1] or match["part"] or "").lower()
    folders[place : place + 1] = [_SHORT_PARTS.get(part, part)] if part else []
    if match["image"]:
        return Picture(path, "image", tuple(folders), _CHANNEL.sub("", stem) if part in _SHORT_PARTS else stem)
    return Picture(path, "mask", tuple(folders), stem, is_truth=bool(match["truth"]))


def _masks_among(pictures: Sequence[Picture]) -> list[Picture]:
    """Masks in the same folders as their images."""
    beside: dict[tuple[Path, str], list[Picture]] = defaultdict(list)
    for picture in pictures:
        beside[picture.path.parent, picture.stem].append(picture)
    masks = []
    for (folder, stem), same in beside.items():
        lossless = [one for one in same if one.path.suffix.lower() not in (".jpg", ".jpeg", ".jfif")]
        if any((folder, shorter) in beside for shorter in _stems(stem)[1:]):
            masks += same
        elif len(same) == 2 and len(lossless) == 1:
            masks += lossless
    return masks


def pair(images: Sequence[Picture], masks: Sequence[Picture]) -> tuple[list[Picture], bool]:
    """The masks that have an image, by the one of the rules of `_guesses` that finds the most; and whether this layout
    is that of MVTec AD, with a folder for each kind of defect.

    Raises:
        DataError: two images have one key, or an image has two masks of one class.
    """
    known, deeper = {image.key for image in images}, defaultdict[str, set[str]](set)
    index_unique(((image.key, image.path) for image in images), "images")
    for image in images:
        for _, others in _without_one(image.folders):
            deeper["/".join([*others, image.stem])].add(image.key)
    fits: list[dict[Path, Picture]] = [{} for _ in range(5)]
    for mask in masks:
        for rule, key, class_name in _guesses(mask):
            found = deeper.get(key, set()) if rule == _DEEPER else {key} & known
            if len(found) == 1:
                fits[rule].setdefault(mask.path, replace(mask, image=min(found), class_name=class_name))
    rule = max(range(5), key=lambda rule: (len(fits[rule]), -rule))
    paired = [*fits[rule].values()]
    if rule == _CLASS_TAIL and _are_regions(paired):
        paired = [replace(mask, class_name="") for mask in paired]
    elif rule != _BOTH:
        index_unique(((f"{mask.class_name}/{mask.image}", mask.path) for mask in paired), "masks")
    if any(mask.class_name for mask in paired):
        paired = [mask for mask in paired if mask.class_name]
    return paired, rule == _DEEPER and any(mask.is_truth for mask in paired)


def _guesses(mask: Picture) -> Iterator[tuple[int, str, str]]:
    """The keys that the image of a mask may have, by each rule, and the class that the rule finds.

    _SAME: the image's name, or that and an ending such as _mask. _CLASS_FOLDER: the mask has one folder more.
    _CLASS_TAIL: a class or number follows the image's name. _BOTH: a folder of the class, and a number. _DEEPER: the
    image has one folder more.
    """
    tile = next((folder for folder in mask.folders if folder.startswith(_TILE_FOLDER)), "")
    class_folders = [("" if part_of(folder) else folder, others) for folder, others in _without_one(mask.folders)]
    for stem in _stems(mask.stem):
        key = "/".join([*mask.folders, stem])
        yield _SAME, key, tile
        yield _DEEPER, key, mask.folders[-1] if mask.is_truth and mask.folders else ""
        for folder, others in class_folders:
            yield _CLASS_FOLDER, "/".join([*others, stem]), folder
        for cut in reversed([*_TAIL.finditer(stem)]):
            shorter, tail = stem[: cut.start()], stem[cut.end() :]
            yield _CLASS_TAIL, "/".join([*mask.folders, shorter]), tail
            for folder, others in class_folders if tail.isdecimal() else ():
                yield _BOTH, "/".join([*others, shorter]), folder


def _stems(stem: str) -> list[str]:
    """The stem of a mask, and without its ending: "a_mask" and "a.jpg" -> "a"."""
    suffix = PurePosixPath(stem).suffix
    shorter = _ENDING.sub("", stem) if suffix.lower() not in IMAGE_SUFFIXES else stem.removesuffix(suffix)
    return [stem] if shorter == stem else [stem, shorter]


def _without_one(folders: tuple[str, ...]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Each folder, and the others."""
    for place, folder in enumerate(folders):
        yield folder, folders[:place] + folders[place + 1 :]


def _are_regions(masks: Sequence[Picture]) -> bool:
    """Whether what follows the names are numbers of regions, which count from 0 or 1 in each image; else, classes."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for mask in masks:
        numbers[mask.image].add(int(mask.class_name) if mask.class_name.isdecimal() else -1)
    return any(all(found == set(range(first, first + len(found))) for found in numbers.values()) for first in (0, 1))


def listed_parts(source: LabelSource) -> dict[str, Part]:
    """Key of an image -> part, from the lists in VOC's ImageSets/Segmentation/. Raises LabelError."""
    parts: dict[str, Part] = {}
    lists = [file for file in source.with_suffix(".txt") if "imagesets/segmentation/" in file.lower()]
    for part in ("train", "val", "test"):  # an image in several lists is held out
        for file in lists:
            if part_of(PurePosixPath(file).stem) == part:
                lines = read_text(source.path(file), "expected names of images").splitlines()
                parts |= dict.fromkeys(map(str.strip, lines), part)
    return parts
