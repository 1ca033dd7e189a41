"""Which picture is the mask of which image, by their names and folders."""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from defectseg.formats.common import index_unique
from defectseg.formats.labels import Part, part_of
from defectseg.formats.losses import Tally
from defectseg.formats.source import LabelSource
from defectseg.image.find import IMAGE_SUFFIXES, find_images
from defectseg.text import read_text

_PART = "train(?:ing)?|val(?:id(?:ation)?)?|test(?:ing)?|tr|ts"
_IMAGES = "(?:source )?images?|jpegimages|imgs?|img_dir"
_MASKS = (
    "masks?(?:[_ -](?:images?|pngs?))?|labels?|lab|annots?|annotations?|ann_dir|gts?|segs?|segmentations?|"
    "segmentation_?class(?:png|raw)?"
)
_FOLDER = re.compile(  # such as masks, train_masks, masks-val, labelsTr
    f"(?:({_PART})[_-]?)?(?:(?P<image>{_IMAGES})|(?P<truth>ground[_ -]?truths?)|{_MASKS})(?:[_-]?(?P<part>{_PART}))?",
    re.IGNORECASE,
)
_OTHER_FOLDER = re.compile(r"(?:^|/)(?:segmentation_?object\w*|\w*visuali[sz]ations?|\w*_viz)/", re.IGNORECASE)
_ENDING = re.compile(r"[_\-. ](?:masks?|gt|labels?|seg|segmentation|ground_?truth|label(?:train)?ids)$", re.IGNORECASE)
_TAIL = re.compile(r"[_\-. ](?:(?:masks?|gt|labels?|seg)(?![^\W\d_])[_\-. ]*)?", re.IGNORECASE)
_SHORT_PARTS = {"tr": "train", "ts": "test"}  # nnU-Net, whose images have the number of their channel behind the name
_CHANNEL = re.compile("_[0-9]{4}$")
_MASK_ROLES = ("mask", "truth")
_TILE_FOLDER = "MT_"  # magnetic tiles: MT_Blowhole/Imgs
_SAME, _CLASS_FOLDER, _TAILS, _DEEPER = range(4)


@dataclass(frozen=True)
class Picture:
    """An image or a mask.

    Attributes:
        path: the file.
        role: "image", "mask" or "truth" (a mask in a folder ground_truth), if a folder says so.
        folders: its folders without the one that says so; "train" if that is "train_masks" or "labelsTr".
        stem: the file's name without suffix.
        image: of a mask: the key of its image.
        class_name: of a mask: the class that its folder or name says; "" if none does.
        tail: of a mask: what its name has more than that of its image, such as the number of a region.
    """

    path: Path
    role: str
    folders: tuple[str, ...]
    stem: str
    image: str = ""
    class_name: str = ""
    tail: str = ""

    @property
    def key(self) -> str:
        """Names an image among the images, in any case."""
        return _key(self.folders, self.stem)


def _key(folders: Sequence[str], stem: str) -> str:
    return "/".join([*folders, stem]).casefold()


def key_of(name: str) -> str:
    """The key of an image from its path below the source, with or without suffix."""
    return _picture(Path(), name).key


def find_pictures(
    source: LabelSource, images: Path | None = None, sound: str = ""
) -> tuple[list[Picture], list[Picture]]:
    """The images and the masks of a source. The images may lie in a folder elsewhere.

    Masks lie in a folder called masks, labels, ground_truth or so. Where there is none, they lie among the images:
    a_mask.png or a_GT.png beside a.png, or a.png beside a.jpg.
    """
    files = [file for file in source.with_suffix(*IMAGE_SUFFIXES) if not _OTHER_FOLDER.search(file)]
    by_top = {file.partition("/")[0] for file in files} == {"images", "masks"}
    pictures = [_picture(source.path(file), file, by_top=by_top) for file in files]
    masks = [picture for picture in pictures if picture.role in _MASK_ROLES] or _masks_among(pictures)
    if not masks and (images or is_mask_folder(source.root.name)):
        masks = pictures
    if images:
        pictures = [_picture(image.path, image.image_id) for image in find_images([images], tell=False)]
        inside = images.resolve()
        masks = [mask for mask in masks if mask.role in _MASK_ROLES or inside not in mask.path.resolve().parents]
    if any(picture.role == "image" for picture in pictures):  # what lies elsewhere are previews and the like
        pictures = [picture for picture in pictures if picture.role or sound in picture.folders]
    are_masks = {mask.path for mask in masks}
    return [picture for picture in pictures if picture.path not in are_masks], masks


def is_mask_folder(name: str) -> bool:
    """Whether a folder of this name holds masks."""
    match = _FOLDER.fullmatch(name)
    return match is not None and not match["image"]


def _picture(path: Path, name: str, *, by_top: bool = False) -> Picture:
    name = unicodedata.normalize("NFC", name)  # macOS spells accents differently
    *folders, last = PurePosixPath(name).parts or ("",)
    suffix = PurePosixPath(last).suffix
    stem = last.removesuffix(suffix) if suffix.lower() in IMAGE_SUFFIXES else last
    matches = [(place, match) for place, folder in enumerate(folders) if (match := _FOLDER.fullmatch(folder))]
    role = ""
    for place, match in matches[:1] if by_top else matches[-1:]:
        part = (match[1] or match["part"] or "").lower()
        folders[place : place + 1] = [_SHORT_PARTS.get(part, part)] if part else []
        role = "image" if match["image"] else "truth" if match["truth"] else "mask"
        if match["image"] and part in _SHORT_PARTS:
            stem = _CHANNEL.sub("", stem)
    return Picture(path, role, tuple(folders), stem)


def _masks_among(pictures: Sequence[Picture]) -> list[Picture]:
    """Masks in the same folders as their images: those with an ending such as _mask, and lossless beside lossy ones."""
    lossy = {one.path: one.key for one in pictures if one.path.suffix.lower() in (".jpg", ".jpeg", ".jfif")}
    keys, lossy_keys = {one.key for one in pictures}, set(lossy.values())
    masks = {one.path for one in pictures if one.key in lossy_keys} - lossy.keys()
    masks |= {one.path for one in pictures if any(_key(one.folders, stem) in keys for stem in _stems(one.stem)[1:])}
    return [one for one in pictures if one.path in masks]


def pair(images: Sequence[Picture], masks: Sequence[Picture]) -> tuple[list[Picture], bool]:
    """The masks that have an image, by the one of the rules of `_guesses` that finds the most; and whether this layout
    is that of MVTec AD, with a folder for each kind of defect.

    Raises:
        DataError: two images have one key, or an image has two masks of one class.
    """
    index_unique(((image.key, image.path) for image in images), "images")
    known: dict[str, set[str]] = defaultdict(set)
    for image in images:
        for key in (image.key, *(f"*/{key}" for _, key in _without_one(image.folders, image.stem))):
            known[key].add(image.key)
    fits: list[dict[Path, Picture]] = [{} for _ in range(4)]
    for mask in masks:
        for rule, key, class_name, tail in _guesses(mask):
            if len(found := known.get(key, ())) == 1:
                fits[rule].setdefault(mask.path, replace(mask, image=min(found), class_name=class_name, tail=tail))
    rule = max(range(4), key=lambda rule: len(fits[rule]))
    paired = [*fits[rule].values()]
    index_unique(((f"{mask.class_name}/{mask.image}/{mask.tail}", mask.path) for mask in paired), "masks")
    by_class = [mask for mask in paired if mask.class_name]
    return by_class or paired, rule == _DEEPER and any(mask.role == "truth" for mask in paired)


def _guesses(mask: Picture) -> Iterator[tuple[int, str, str, str]]:
    """The rule, the key that the image of a mask may have by it, the class, and the tail of the mask's name.

    _SAME: the image's name, or that and an ending such as _mask. _CLASS_FOLDER: the mask has one folder more, and
    perhaps a number. _TAILS: a class or number follows the image's name. _DEEPER: the image has one folder more, "*".
    """
    tile = next((folder for folder in mask.folders if folder.startswith(_TILE_FOLDER)), "")
    kind_of_defect = mask.folders[-1] if mask.role == "truth" and mask.folders else ""
    for stem in _stems(mask.stem):
        yield _DEEPER, f"*/{_key(mask.folders, stem)}", kind_of_defect, ""
        cuts = [(stem[: cut.start()], stem[cut.end() :]) for cut in _TAIL.finditer(stem)]
        for shorter, tail in [(stem, ""), *reversed(cuts)]:
            yield _TAILS if tail else _SAME, _key(mask.folders, shorter), tile, tail
            for folder, key in _without_one(mask.folders, shorter) if tail.isdecimal() or not tail else ():
                yield _CLASS_FOLDER, key, "" if part_of(folder) else folder, tail


def _stems(stem: str) -> list[str]:
    """The stem of a mask, and without its ending: "a_mask" and "a.jpg" -> "a"."""
    suffix = PurePosixPath(stem).suffix
    shorter = _ENDING.sub("", stem) if suffix.lower() not in IMAGE_SUFFIXES else stem.removesuffix(suffix)
    return [stem] if shorter == stem else [stem, shorter]


def _without_one(folders: tuple[str, ...], stem: str) -> list[tuple[str, str]]:
    """Each folder, and the key without it."""
    return [(it, _key([*folders[:place], *folders[place + 1 :]], stem)) for place, it in enumerate(folders)]


def listed_parts(source: LabelSource, keys: Collection[str], tally: Tally) -> dict[str, Part]:
    """Key of an image -> part, from lists of images called train.txt and so on, as in VOC's or PaddleSeg's layout.

    The lists lie in the folder of the data set or below it. Counts entries that name no image. Raises LabelError.

    Args:
        source: the files.
        keys: the images, see `key_of`.
        tally: for the counts.
    """
    parts: dict[str, Part] = {}
    for part in ("train", "val", "test"):  # an image in several lists is held out
        for file in (PurePosixPath(file) for file in source.with_suffix(".txt")):
            text = read_text(source.path(str(file)), "expected names of images") if part_of(file.stem) == part else ""
            for line in filter(None, (line.strip(' "') for line in text.splitlines())):
                names = (line, line.split()[0])  # PaddleSeg names the mask behind the image
                found = [key_of(f"{folder}/{name}") for folder in file.parents for name in names]
                if known := [key for key in found if key in keys]:
                    parts[known[0]] = part_of(part)
                else:
                    tally.add("listed", example=line)
    return parts
