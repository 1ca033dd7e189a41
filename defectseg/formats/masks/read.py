"""Masks as a kind of labels."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from defectseg.errors import DataError, LabelError, UsageError
from defectseg.formats.labels import Choices, Kind, LabelSet, Record
from defectseg.formats.losses import Tally
from defectseg.formats.masks.layouts import Picture, find_pictures, listed_parts, pair
from defectseg.formats.masks.meaning import meaning_in_one_class, meaning_of_all
from defectseg.formats.masks.names import LABELMAP, VOC_NAMES, Names, read_names
from defectseg.formats.masks.values import MaskValues, read_values
from defectseg.formats.source import LabelSource

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
    values = read_values([mask.path for mask in paired], by_colour=names.by_colour)
    if not names.where and all(one.is_voc and one.path.parent.name == _VOC_FOLDER for one in values):
        used = {value for one in values for value in one.px}
        of_value = {value: name for value, name in enumerate(VOC_NAMES.split(",")) if value in used}
        names = Names("the table of Pascal VOC", of_value)
    labels = _labels(paired, values, names, choices, tally)
    are_paired, root = {mask.path for mask in paired}, source.root / "images"
    return LabelSet(
        _records(images, labels, source, choices, tally, is_mvtec=is_mvtec),
        names.classes,
        numbered=not names.where and not any(mask.class_name for mask in paired),
        roots=[root] if all(image.path.is_relative_to(root) for image in images) else (),
        own=bool(values) and all(one.own for one in values),
        lonely=[str(mask.path.relative_to(source.root)) for mask in masks if mask.path not in are_paired],
    )


def _labels(
    masks: Sequence[Picture], values: Sequence[MaskValues], names: Names, choices: Choices, tally: Tally
) -> dict[str, Record]:
    """Key of an image -> its labels, not yet with the image."""
    are_by_class = any(mask.class_name for mask in masks)
    meaning = {} if are_by_class else meaning_of_all(values, names, choices, tally)
    labels: dict[str, Record] = {}
    for mask, found in zip(masks, values, strict=True):
        if are_by_class:
            meaning = meaning_in_one_class(found, mask.class_name, choices, tally)
        record = labels.get(mask.image) or Record("", str(mask.path), (), found.size_hw)
        if record.size_hw != found.size_hw:
            raise LabelError(f"{found.path}: has another size than {record.where}, of the same image. Save both alike.")
        labels[mask.image] = replace(record, shapes=(*record.shapes, *found.shapes(meaning)))
    return labels


def _records(
    images: Sequence[Picture],
    labels: Mapping[str, Record],
    source: LabelSource,
    choices: Choices,
    tally: Tally,
    *,
    is_mvtec: bool,
) -> list[Record]:
    """A record for each image. One without a mask is not labelled, unless its folder is known to hold sound images."""
    if choices.sound and all(choices.sound not in image.folders for image in images):
        raise UsageError(f"no image lies in a folder called '{choices.sound}'.", argument="sound")
    sound = {_FREE, choices.sound, *([_GOOD] if is_mvtec else ())}
    with_masks = {image.folders for image in images if image.key in labels}
    listed, records = listed_parts(source), []
    for image in images:
        record = labels.get(image.key, Record("", str(image.path), status="unlabelled"))
        if image.key not in labels and not sound.isdisjoint(image.folders):
            record = replace(record, status="labelled")
        elif is_mvtec and image.folders not in with_masks and not choices.sound and choices.unlabelled is None:
            raise DataError(
                f"{image.path.parent}: its images have no masks. If they are not sound, have unlabelled ones skipped.",
                go_on={"sound": image.path.parent.name},
            )
        part = listed.get(image.key, image.part)
        if is_mvtec and part:
            tally.add("mvtec_parts")
            part = ""
        records.append(replace(record, image=image.path, part=part))
    return records


KIND = Kind(
    "masks",
    "CVAT: Segmentation mask 1.1; labelme2voc; nnU-Net, MMSegmentation, MVTec AD, KolektorSDD; any image editor",
    recognise,
    read,
)
