"""Masks as a kind of labels."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace

from defectseg.errors import DataError, LabelError, UsageError
from defectseg.formats.labels import Choices, Kind, LabelSet, Part, Record, Status, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.masks.layouts import Picture, find_pictures, listed_parts, pair
from defectseg.formats.masks.meaning import meaning_of
from defectseg.formats.masks.names import LABELMAP, VOC_NAMES, Names, read_names
from defectseg.formats.masks.values import MaskValues, read_values
from defectseg.formats.source import LabelSource

_PATH = "expected 0 and one other value, since its path"
_VOC_FOLDER = "SegmentationClass"
_GOOD, _FREE = "good", "MT_Free"  # folders of sound images in MVTec AD, and of magnetic tiles


def recognise(source: LabelSource) -> str:
    """See `Kind`."""
    images, masks = find_pictures(source)
    others = source.with_suffix(".json", ".xml", ".yaml")
    if masks and (masks[0].role or not others):
        return f"{masks[0].path.relative_to(source.root)} is one of {len(masks)} masks of {len(images)} images"
    return "labelmap.txt gives the colours of masks" if source.named(LABELMAP) and not others else ""


def read(source: LabelSource, choices: Choices, tally: Tally) -> LabelSet:
    """See `Kind`."""
    images, masks = find_pictures(source, choices.images, choices.sound)
    if not masks:
        raise LabelError(
            f"{source.given}: {'no masks' if images else 'neither masks nor images'}; expected masks in a folder "
            "called masks, SegmentationClass or so, or beside the images, called a_mask.png for a.png."
        )
    paired, is_mvtec = pair(images, masks)
    names = read_names(source)
    values = read_values(paired, by_colour=names.by_colour)
    if not names.where and all(mask.path.parent.name == _VOC_FOLDER for mask in paired):
        coloured = read_values(paired, by_colour=True)
        used = {colour for one in coloured for colour in one.px}
        if used <= VOC_NAMES.keys():
            of_colour = {colour: name for colour, name in VOC_NAMES.items() if colour in used}
            values, names = coloured, Names("the table of Pascal VOC", of_colour, by_colour=True)
    of_image = Counter(mask.image for mask in paired if mask.tail and not mask.class_name)
    if any(of_image[one.picture.image] > 1 and one.px.keys() <= {0} for one in values):  # a region is never empty
        values = [_by_class(one) for one in values]
    _check_chosen(values, choices)
    labels = _labels(values, names, choices, tally)
    parts = {mask.image: part_among(mask.folders) for mask in paired}
    parts |= {image.key: part for image in images if (part := part_among(image.folders))} | listed_parts(source)
    if is_mvtec:
        tally.add("mvtec_parts", sum(part != "" for part in parts.values()))
        parts = {}
    are_paired, root = {mask.path for mask in paired}, source.root / "images"
    return LabelSet(
        _records(images, labels, parts, choices, is_mvtec=is_mvtec),
        names.classes,
        numbered=not names.where and not any(one.picture.class_name for one in values),
        roots=[root] if all(image.path.is_relative_to(root) for image in images) else (),
        own=bool(values) and all(one.own for one in values),
        lonely=[str(mask.path.relative_to(source.root)) for mask in masks if mask.path not in are_paired],
    )


def _by_class(mask: MaskValues) -> MaskValues:
    return replace(mask, picture=replace(mask.picture, class_name=mask.picture.tail))


def _check_chosen(masks: Sequence[MaskValues], choices: Choices) -> None:
    """Raise UsageError where a chosen value occurs in no mask; 0 may always be named."""
    for option, chosen in (("background", choices.background), ("ignore", choices.ignore)):
        if chosen.isdecimal() and int(chosen) and not any(int(chosen) in mask.px for mask in masks):
            raise UsageError(f"no mask holds {chosen}.", argument=option)


def _labels(masks: Sequence[MaskValues], names: Names, choices: Choices, tally: Tally) -> dict[str, Record]:
    """Key of an image -> its labels, not yet with the image. Each class that a folder or name says has its values."""
    by_class, labels = defaultdict[str, list[MaskValues]](list), dict[str, Record]()
    for mask in masks:
        by_class[mask.picture.class_name].append(mask)
    for name, group in by_class.items():
        if name:  # both are usual, and different tools may have written the masks
            usual = (255,) if any(mask.px.keys() >= {1, 255} for mask in group) else (1, 255)
            names = Names(_PATH, dict.fromkeys(usual, name))
        meaning = meaning_of(group, names, choices, tally)
        for mask in group:
            record = labels.get(mask.picture.image) or Record("", str(mask.picture.path), (), mask.size_hw)
            if record.size_hw != mask.size_hw:
                raise LabelError(f"{mask.picture.path} and {record.where}, of one image, differ in size. Correct them.")
            labels[mask.picture.image] = replace(record, shapes=(*record.shapes, *mask.shapes(meaning)))
    return labels


def _records(
    images: Sequence[Picture], labels: dict[str, Record], parts: dict[str, Part], choices: Choices, *, is_mvtec: bool
) -> list[Record]:
    """A record for each image. One without a mask is not labelled, unless its folder is known to hold sound images."""
    if choices.sound and all(choices.sound not in image.folders for image in images):
        raise UsageError(f"no image lies in a folder called '{choices.sound}'.", argument="sound")
    sound = {choices.sound, _FREE, *([_GOOD] if is_mvtec else ())}
    with_masks, records = {image.folders for image in images if image.key in labels}, []
    for image in images:
        status: Status = "labelled" if image.key in labels or sound.intersection(image.folders) else "unlabelled"
        is_asked = is_mvtec and status == "unlabelled" and not (choices.sound or choices.unlabelled)
        if is_asked and image.folders not in with_masks:
            why = f"{image.path.parent}: its images have no masks. If they are not sound, have unlabelled ones skipped."
            raise DataError(why, go_on={"sound": image.path.parent.name})
        record = labels.get(image.key) or Record("", str(image.path), status=status)
        records.append(replace(record, image=image.path, part=parts.get(image.key, "")))
    return records


KIND = Kind(
    "masks",
    "CVAT: Segmentation mask 1.1; labelme2voc; nnU-Net, MMSegmentation, MVTec AD, KolektorSDD; any image editor",
    recognise,
    read,
)
