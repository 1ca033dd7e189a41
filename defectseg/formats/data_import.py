"""The entry of `defectseg data import`: labels of any known kind become a data folder, whole or not at all."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from defectseg.data.classes import write_class_names
from defectseg.data.folder import IMAGES_NAME, write_not_labelled
from defectseg.data.split import SPLIT_NAME, Fold, write_split
from defectseg.data.table import IGNORE_CLASS_ID, write_label_table
from defectseg.errors import DataError, ImageError, UsageError
from defectseg.files import new_folder
from defectseg.formats.classes import Classes, choose_classes
from defectseg.formats.common import place_image
from defectseg.formats.kinds import recognise
from defectseg.formats.labels import Box, Choices, LabelSet, Shape
from defectseg.formats.locate import Placed, place
from defectseg.formats.losses import Loss, Tally
from defectseg.formats.paint import Painted, paint
from defectseg.formats.source import open_source
from defectseg.inference.tiles import in_order
from defectseg.machine import cores
from defectseg.progress import Progress, silent, some

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ClassReport:
    """One class: its ClassId and name, the names that the labels call it, its images, regions and pixels."""

    class_id: int
    name: str
    source_names: tuple[str, ...]
    images: int
    regions: int
    px: int


@dataclass(frozen=True)
class ImportReport:
    """What an import made.

    Attributes:
        kind, evidence: what the source was taken for, and why.
        images: labelled images, in the data folder's train_images/.
        defect_images, sound_images: how many of them show a class, and how many neither that nor ignored pixels.
        not_labelled: number of images in not_labelled.csv.
        classes: one entry for each ClassId.
        ignored_px: pixels marked to be ignored, over all images.
        parts: "train", "val" or "test" -> number of images; empty without a split.
        missing_images: images that the labels name, or labels without an image; left out.
        lost: what was changed, clipped or dropped.
    """

    kind: str
    evidence: str
    images: int
    defect_images: int
    sound_images: int
    not_labelled: int
    classes: tuple[ClassReport, ...]
    ignored_px: int
    parts: dict[str, int]
    missing_images: tuple[str, ...]
    lost: tuple[Loss, ...]


def import_labels(
    src: Path,
    out: Path,
    choices: Choices | None = None,
    *,
    kind: str | None = None,
    link: bool = False,
    progress: Progress = silent,
) -> ImportReport:
    """Make a data folder from labels of any known kind (see `kinds.KINDS`).

    Args:
        src: a label file, a folder, or a ZIP archive of one.
        out: the data folder to make; it must be absent or empty.
        choices: what the labels leave open.
        kind: the name of the kind; None recognises it by the content.
        link: make links to the images instead of copies.
        progress: counts the images.

    Raises:
        LabelError: a label file is damaged, or an entry is not valid; names it.
        DataError: the labels cannot be meant as they are; names the choice to go on with.
        UsageError: a choice does not fit the labels.
        OutputExistsError: `out` exists and is not empty.
        ResourceError: `out` cannot be written.
    """
    choices = choices or Choices()
    tally = Tally()
    with (
        new_folder(out, last="train.csv") as building,
        open_source(src, building.with_name("files"), choices.follow_links, progress) as source,
    ):
        if source.files and source.left_out:
            log.warning(
                "%s: links that lead out of it, which are left out (--follow-links): %s", src, some(source.left_out)
            )
        if link and choices.images is None and src not in (source.root, source.file):
            raise UsageError("links into an archive would break. Unpack it, and give the folder.", argument="link")
        recognised, evidence = recognise(source, kind)
        log.info("%s: recognised as %s: %s", src, recognised.name, evidence)
        for option, only in (("sound", "masks"), ("unite", "severstal")):
            if getattr(choices, option) and recognised.name != only:
                raise UsageError(f"these labels are {recognised.name}; it is for {only}.", argument=option)
        labels = recognised.read(source, choices, tally)
        placed, missing = place(labels, source, choices, tally)
        labelled, not_labelled = _sort_out(labels, placed, choices, where=str(src))
        used = {shape.name for one in labelled for shape in one.record.shapes if isinstance(shape, Shape)}
        classes = choose_classes(labels, used, choices, where=str(src))
        folder = building / IMAGES_NAME
        paint_one = partial(paint, classes=classes, choices=choices, tally=tally, folder=folder, link=link)
        painted = _paint_all(labelled, paint_one, tally, skip=choices.absent is not None, progress=progress)
        _check_meant(painted, labels, choices, where=str(src))
        for one in not_labelled:
            place_image(one.path, folder / one.image_id, link=link)
        folds = _write_tables(building, labels, classes, painted, not_labelled)
    inside = str(source.root / "x")[:-1]  # paths are told as seen from the source, which may be an unpacked archive
    return ImportReport(
        recognised.name,
        evidence,
        images=len(painted),
        defect_images=sum(any(class_id != IGNORE_CLASS_ID for class_id in image.labels) for image in painted),
        sound_images=sum(not image.labels for image in painted),
        not_labelled=len(not_labelled),
        classes=_report_classes(classes, painted),
        ignored_px=sum(image.px[IGNORE_CLASS_ID] for image in painted),
        parts=dict(Counter(map(str, folds.values()))),
        missing_images=tuple(missing),
        lost=tuple(replace(loss, message=loss.message.replace(inside, "")) for loss in tally.losses()),
    )


def _sort_out(
    labels: LabelSet, placed: Sequence[Placed], choices: Choices, *, where: str
) -> tuple[list[Placed], list[Placed]]:
    """The labelled images, and the unlabelled ones. Raises DataError where that is not clear."""
    shapes = [shape for one in placed for shape in one.record.shapes]
    taken = {"labelled"}
    if labels.own or choices.unlabelled == "clean":
        taken.add("unclear")
    if choices.unlabelled == "clean":
        taken.add("unlabelled")
    labelled = [one for one in placed if one.record.status in taken]
    if not labelled or not (shapes or "unclear" in taken):
        raise DataError(
            f"{where}: nothing is labelled in {len(placed)} images. {labels.hint}".strip(),
            go_on={"unlabelled": "clean"},
        )
    vague = [shape for shape in shapes if isinstance(shape, Box) or not shape.name]
    if vague and choices.boxes is None:
        raise DataError(
            f"{where}: {len(vague)} of {len(shapes)} labels are boxes without an outline, or have no class (the first: "
            f"{vague[0].where}). Nobody knows which of their pixels show which defect. Complete them, or have their "
            "pixels ignored: they then count neither as defect nor as sound steel.",
            go_on={"boxes": "ignore"},
        )
    unclear = [one.image_id for one in placed if one.record.status == "unclear"]
    if unclear and "unclear" not in taken and choices.unlabelled is None:
        raise DataError(
            f"{where}: {len(unclear)} of {len(placed)} images have no label of an area: {some(unclear)}. They may be "
            "sound (clean), or not be labelled yet (skip).",
            go_on={"unlabelled": "clean|skip"},
        )
    return labelled, [one for one in placed if one.record.status not in taken]


def _paint_all(
    labelled: Sequence[Placed], paint_one: Callable[[Placed], Painted], tally: Tally, *, skip: bool, progress: Progress
) -> list[Painted]:
    """Paint and place every labelled image. Raises DataError at the first unreadable one, or skips all of them."""

    def attempt(placed: Placed) -> list[Painted]:
        try:
            return [paint_one(placed)]
        except ImageError as error:
            if not skip:
                raise DataError(str(error), go_on={"absent": "skip"}) from error
            tally.add("unreadable_images", example=str(placed.path))
            return []

    painted = []
    threads = min(8, cores())
    with ThreadPoolExecutor(threads) as pool:
        for done, one in enumerate(in_order(pool, attempt, labelled, most=4 * threads), start=1):
            painted += one
            progress(done, len(labelled))
    if not painted:
        raise DataError(f"{labelled[0].path} and all other labelled images are unreadable.")
    return painted


def _check_meant(painted: Sequence[Painted], labels: LabelSet, choices: Choices, *, where: str) -> None:
    """Refuse results that nobody wants."""
    if labels.own:
        return
    class_px = sum(image.px.total() - image.px[IGNORE_CLASS_ID] for image in painted)
    doubtful_px = sum(image.doubtful_px for image in painted)
    if doubtful_px > class_px and not choices.ignore:
        raise DataError(
            f"{where}: {doubtful_px} px are marked to be ignored, but only {class_px} px are of a class, which can "
            "hardly be meant. If the mark means sound steel, name it as background; if it is a class, name the class.",
            go_on={"ignore": "255" if labels.numbered else "ignore"},
        )
    if not any(image.px for image in painted) and choices.unlabelled != "clean":
        raise DataError(
            f"{where}: the labels cover no pixel of any image, so that all would count as sound.",
            go_on={"unlabelled": "clean"},
        )


def _write_tables(
    building: Path, labels: LabelSet, classes: Classes, painted: Sequence[Painted], not_labelled: Sequence[Placed]
) -> dict[str, Fold]:
    """Write all tables. Returns ImageId -> part, where the source has parts other than train."""
    for path in labels.keep:
        place_image(path, building / path.name, link=False)
    write_class_names(building, classes.names)
    write_label_table(building, {image.image_id: image.labels for image in painted})
    if not_labelled:
        write_not_labelled(building, (one.image_id for one in not_labelled))
    folds: dict[str, Fold] = {image.image_id: image.part or "train" for image in painted}
    if set(folds.values()) == {"train"}:
        return {}
    write_split(building / SPLIT_NAME, folds)
    return folds


def _report_classes(classes: Classes, painted: Sequence[Painted]) -> tuple[ClassReport, ...]:
    reports = []
    for number, name in enumerate(classes.names, start=1):
        source_names = tuple(old for old, class_id in classes.ids.items() if class_id == number)
        images = [image for image in painted if number in image.labels]
        regions = sum(image.regions[number] for image in images)
        px = sum(image.px[number] for image in images)
        reports.append(ClassReport(number, name, source_names, len(images), regions, px))
    return tuple(reports)
