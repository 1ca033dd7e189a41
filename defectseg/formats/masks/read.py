"""Masks as a kind of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from defectseg.errors import DataError, LabelError, UsageError
from defectseg.formats.labels import Choices, Kind, LabelSet, Part, Record, part_among
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
    images, masks = find_pictures(source, choices.images)
    if not masks:
        raise LabelError(
            f"{source.given}: {'no masks' if images else 'neither masks nor images'}; expected masks in a folder "
            "called masks, SegmentationClass or so, or beside the images, called a_mask.png for a.png."
        )
    paired, is_mvtec = pair(images, masks)
    names = read_names(source)
    paths = [mask.path for mask in paired]
    values = read_values(paths, by_colour=names.by_colour)
    if not names.where and all(path.parent.name == _VOC_FOLDER for path in paths):
        coloured = read_values(paths, by_colour=True)
        used = {colour for one in coloured for colour in one.px}
        if used <= VOC_NAMES.keys():
            of_colour = {colour: name for colour, name in VOC_NAMES.items() if colour in used}
            values, names = coloured, Names("the table of Pascal VOC", of_colour, by_colour=True)
    labels = _labels(paired, values, names, choices, tally)
    parts = {image.key: part_among(image.folders) for image in images} | listed_parts(source)
    if is_mvtec:
        tally.add("mvtec_parts", sum(part != "" for part in parts.values()))
        parts = {}
    are_paired, root = {mask.path for mask in paired}, source.root / "images"
    return LabelSet(
        _records(images, labels, parts, choices, is_mvtec=is_mvtec),
        names.classes,
        numbered=not names.where and not any(mask.class_name for mask in paired),
        roots=[root] if all(image.path.is_relative_to(root) for image in images) else (),
        own=bool(values) and all(one.own for one in values),
        lonely=[str(mask.path.relative_to(source.root)) for mask in masks if mask.path not in are_paired],
    )


def _labels(
    masks: Sequence[Picture], values: Sequence[MaskValues], names: Names, choices: Choices, tally: Tally
) -> dict[str, Record]:
    """Key of an image -> its labels, not yet with the image. Each class that a folder or name says has its values."""
    meanings, labels = {}, dict[str, Record]()
    for name in {mask.class_name: None for mask in masks}:
        found = [one for mask, one in zip(masks, values, strict=True) if mask.class_name == name]
        meanings[name] = meaning_of(found, Names(_PATH, {255: name}) if name else names, choices, tally)
    for mask, one in zip(masks, values, strict=True):
        record = labels.get(mask.image) or Record("", str(mask.path), (), one.size_hw)
        if record.size_hw != one.size_hw:
            raise LabelError(f"{one.path}: has another size than {record.where}, of the same image. Save both alike.")
        labels[mask.image] = replace(record, shapes=(*record.shapes, *one.shapes(meanings[mask.class_name])))
    return labels


def _records(
    images: Sequence[Picture],
    labels: Mapping[str, Record],
    parts: Mapping[str, Part],
    choices: Choices,
    *,
    is_mvtec: bool,
) -> list[Record]:
    """A record for each image. One without a mask is not labelled, unless its folder is known to hold sound images."""
    if choices.sound and all(choices.sound not in image.folders for image in images):
        raise UsageError(f"no image lies in a folder called '{choices.sound}'.", argument="sound")
    sound = {choices.sound, _FREE, *([_GOOD] if is_mvtec else ())}
    with_masks, records = {image.folders for image in images if image.key in labels}, []
    for image in images:
        is_labelled = image.key in labels or not sound.isdisjoint(image.folders)
        if is_mvtec and not (is_labelled or image.folders in with_masks or choices.sound or choices.unlabelled):
            raise DataError(
                f"{image.path.parent}: its images have no masks. If they are not sound, have unlabelled ones skipped.",
                go_on={"sound": image.path.parent.name},
            )
        record = labels.get(image.key) or Record(
            "", str(image.path), status="labelled" if is_labelled else "unlabelled"
        )
        records.append(replace(record, image=image.path, part=parts.get(image.key, "")))
    return records


KIND = Kind(
    "masks",
    "CVAT: Segmentation mask 1.1; labelme2voc; nnU-Net, MMSegmentation, MVTec AD, KolektorSDD; any image editor",
    recognise,
    read,
)
