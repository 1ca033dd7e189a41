"""Masks as a kind of labels."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace

from defectseg.errors import DataError, LabelError, UsageError
from defectseg.formats.labels import Choices, Kind, LabelSet, Part, Record, Status, part_among
from defectseg.formats.losses import Tally
from defectseg.formats.masks.layouts import Picture, find_pictures, listed_parts, pair
from defectseg.formats.masks.meaning import LABELMAP, VOC_NAMES, Names, meaning_of, read_names
from defectseg.formats.masks.values import MaskValues, read_values
from defectseg.formats.source import LabelSource

_MENU = "CVAT: Segmentation mask 1.1; labelme2voc; nnU-Net, MMSegmentation, MVTec AD, KolektorSDD; any image editor"
_EXPECTED = "expected masks in a folder called masks, SegmentationClass or so, or beside the images, as a_mask.png."
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
        raise LabelError(f"{source.given}: {'no masks' if images else 'neither masks nor images'}; {_EXPECTED}")
    paired, is_mvtec = pair(images, masks)
    names = read_names(source)
    given = [entry.partition("=")[0].strip() for entry in choices.classes or () if "=" in entry]
    are_values = all(map(str.isdecimal, given)) and not set(given) & set(names.classes)
    if given and are_values and ("0" not in given or choices.background):
        names = Names("the given list", {int(value): value for value in given})
    values = read_values(paired, by_colour=names.by_colour)
    if not names.where and all(mask.path.parent.name == _VOC_FOLDER for mask in paired):
        coloured = read_values(paired, by_colour=True)
        used = {colour for one in coloured for colour in one.px}
        if used <= VOC_NAMES.keys():
            of_colour = {colour: name for colour, name in VOC_NAMES.items() if colour in used}
            values, names = coloured, Names("the table of Pascal VOC", of_colour, by_colour=True)
    if not _are_regions([one for one in values if one.picture.tail and not one.picture.class_name]):
        values = [replace(one, picture=replace(one.picture, class_name=one.picture.tail)) for one in values]
    labels = _labels(values, names, choices, tally)
    parts = {mask.image: part_among(mask.folders) for mask in paired}
    parts |= {image.key: part for image in images if (part := part_among(image.folders))}
    parts |= listed_parts(source, {image.key for image in images}, tally)
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


def _are_regions(masks: Sequence[MaskValues]) -> bool:
    """Whether the tails are numbers of regions, which count from 0 or 1 in each image, and are not empty beside others.

    Else, they are classes.
    """
    numbers = defaultdict[str, set[int]](set)
    for mask in masks:
        numbers[mask.picture.image].add(int(mask.picture.tail) if mask.picture.tail.isdecimal() else -1)
    if any(len(numbers[mask.picture.image]) > 1 and mask.px.keys() <= {0} for mask in masks):
        return False
    return any(all(found == set(range(first, first + len(found))) for found in numbers.values()) for first in (0, 1))


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
    ask = is_mvtec and not choices.sound and not choices.unlabelled
    sound = {choices.sound, _FREE, *([_GOOD] if is_mvtec else ())}
    with_masks, records = {image.folders for image in images if image.key in labels}, []
    for image in images:
        status: Status = "labelled" if image.key in labels or sound.intersection(image.folders) else "unlabelled"
        if ask and status == "unlabelled" and image.folders not in with_masks:
            why = f"{image.path.parent}: its images have no masks. If they are not sound, have unlabelled ones skipped."
            raise DataError(why, go_on={"sound": image.path.parent.name})
        record = labels.get(image.key) or Record("", str(image.path), status=status)
        records.append(replace(record, image=image.path, part=parts.get(image.key, "")))
    return records


KIND = Kind("masks", _MENU, recognise, read)
