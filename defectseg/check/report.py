"""What a check found: its figures, and what `data check --out` leaves on disk."""

import json
from collections import Counter, defaultdict
from collections.abc import Hashable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectseg import files
from defectseg.check.image import MOSTLY_DARK, Inspection, MaskFigures
from defectseg.check.pairs import CopyPair, find_labels
from defectseg.copies.descriptors import turned
from defectseg.data.table import IGNORE_CLASS_ID, Fault, LabelScan
from defectseg.errors import ImageError, LabelError
from defectseg.image import read, rle
from defectseg.image.overlay import encode_jpeg, paint_truth
from defectseg.pages.contact_sheet import choose_evenly, make_contact_sheet
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri

Key = TypeVar("Key", bound=Hashable)

AREA_BINS_PX = (1, 64, 256, 1024, 4096, 16384, 65536)
REGION_BINS = (1, 2, 3, 5, 9, 17)
JSON_NAME, SHEET_NAME, PAGE_NAME = "check.json", "contact_sheet.jpg", "report.html"
SHEET_IMAGES = 60
PAGE_PAIRS = 40
PAGE_FAULTS = 300
PAGE_CLASSES = 30  # with charts
_PAIR_PX = 800


@dataclass(frozen=True)
class ClassSummary:
    """The sound masks of one class.

    Attributes:
        class_id, name: the class.
        images: number of images that show it.
        image_share: the same as a share of all images, 0 to 1.
        px_share: share of the pixels of all images that it covers, 0 to 1.
        smallest_px, median_px, largest_px: areas of its masks; 0 without masks.
        regions: number of 8-connected regions in all its masks.
        area_histogram_px: "from-to" in px -> number of masks.
        region_histogram: "from-to" regions -> number of masks.
    """

    class_id: int
    name: str
    images: int
    image_share: float
    px_share: float
    smallest_px: int
    median_px: float
    largest_px: int
    regions: int
    area_histogram_px: Mapping[str, int]
    region_histogram: Mapping[str, int]


@dataclass(frozen=True)
class CheckReport:
    """The outcome of `check_data_folder`.

    Attributes:
        image_ids: of all files below train_images/, readable or not, sorted.
        counts: name -> number. The names and what they count:
            `images`: all of `image_ids`;
            `clean`: images without a mask, without pixels to ignore, and without a faulty row that may be a mask;
            `without_rows`: images that no row names; they are taken as clean;
            `unreadable`: images that cannot be read whole;
            `missing`: ImageIds with a row and no file;
            `not_labelled`: images that not_labelled.csv lists; all other numbers are without them;
            `mostly_black`: images that are mostly black;
            `sheet_end`: images that show an end of the sheet;
            `ignored_px`: pixels marked to be ignored, over all images;
            `errors`, `warnings`, `duplicates`, `leaks`: what was found.
        sizes: "HxW" in pixels -> number of images, the most frequent first.
        class_sets: names of the classes in an image, joined by " + ", or "clean" -> number of images, the most
            frequent first.
        classes: one summary for each class.
        grey_mean, grey_std: of all pixels, as shares of the full range; models normalise by them.
        faults: errors first; then by image and row.
        duplicates: pairs of copies within the folder.
        leaks: pairs of copies across the two folders, or, without a second folder, across the folds of split.csv.
    """

    image_ids: tuple[str, ...]
    counts: Mapping[str, int]
    sizes: Mapping[str, int]
    class_sets: Mapping[str, int]
    classes: tuple[ClassSummary, ...]
    grey_mean: float
    grey_std: float
    faults: tuple[Fault, ...]
    duplicates: tuple[CopyPair, ...]
    leaks: tuple[CopyPair, ...]

    @property
    def has_problems(self) -> bool:
        """Whether there is an error, a duplicate or a leak. Warnings may be intended, and do not count."""
        return any(self.counts[kind] for kind in ("errors", "duplicates", "leaks"))

    def to_dict(self) -> dict[str, Any]:
        """The report as plain values, for JSON."""
        return {
            "counts": dict(self.counts),
            "sizes": dict(self.sizes),
            "normalisation": {"mean": self.grey_mean, "std": self.grey_std},
            "class_balance": dict(self.class_sets),
            "classes": [asdict(one) for one in self.classes],
            "faults": [asdict(fault) for fault in self.faults],
            "duplicates": [asdict(pair) for pair in self.duplicates],
            "leaks": [asdict(pair) for pair in self.leaks],
        }


def summarise(
    inspections: Sequence[Inspection],
    class_names: Sequence[str],
    scan: LabelScan,
    *,
    not_labelled_images: int,
    faults: Sequence[Fault],
    duplicates: Sequence[CopyPair],
    leaks: Sequence[CopyPair],
) -> CheckReport:
    """Put together what a check found.

    Args:
        inspections: of all images.
        class_names: of ClassId 1 and so on.
        scan: the rows of the label table, sound and faulty.
        not_labelled_images: number of images that nobody has labelled.
        faults, duplicates, leaks: what is wrong.
    """
    ids = {one.image_id for one in inspections}
    faulty = {fault.image for fault in scan.faults}
    perhaps_defective = faulty | {row.image_id for row in scan.rows if row.encoded}
    masks = [mask for one in inspections for mask in one.masks]
    levels = sum((one.levels for one in inspections if one.levels is not None), start=np.zeros(256, np.int64))
    shares, total_px = np.arange(256) / 255, max(int(levels.sum()), 1)
    mean = float(levels @ shares) / total_px
    class_sets: Counter[str] = Counter()
    for one in inspections:
        classes = sorted({mask.class_id for mask in one.masks} - {IGNORE_CLASS_ID})
        if classes:
            class_sets[" + ".join(class_names[class_id - 1] for class_id in classes)] += 1
        elif one.image_id not in perhaps_defective:
            class_sets["clean"] += 1
    errors = sum(fault.severity == "error" for fault in faults)
    return CheckReport(
        image_ids=tuple(sorted(ids)),
        counts={
            "images": len(inspections),
            "clean": len(ids - perhaps_defective),
            "without_rows": len(ids - faulty - {row.image_id for row in scan.rows}),
            "unreadable": sum(one.size_hw is None for one in inspections),
            "missing": sum(fault.kind == "missing-image" for fault in faults),
            "not_labelled": not_labelled_images,
            "mostly_black": sum(one.dark_share > MOSTLY_DARK for one in inspections),
            "sheet_end": sum(one.sheet_end for one in inspections),
            "ignored_px": sum(mask.area_px for mask in masks if mask.class_id == IGNORE_CLASS_ID),
            "errors": errors,
            "warnings": len(faults) - errors,
            "duplicates": len(duplicates),
            "leaks": len(leaks),
        },
        sizes=dict(by_count(Counter(one.size_text for one in inspections if one.size_hw is not None))),
        class_sets=dict(by_count(class_sets)),
        classes=tuple(
            _class_summary(number, name, [one for one in masks if one.class_id == number], len(inspections), total_px)
            for number, name in enumerate(class_names, start=1)
        ),
        grey_mean=mean,
        grey_std=float(np.sqrt(max(float(levels @ shares**2) / total_px - mean**2, 0.0))),
        faults=tuple(sorted(faults, key=lambda fault: (fault.severity, fault.image, fault.row or 0, fault.kind))),
        duplicates=tuple(duplicates),
        leaks=tuple(leaks),
    )


def by_count(counts: Mapping[Key, int]) -> list[tuple[Key, int]]:
    """Sort by count, the largest first, and by key."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _class_summary(class_id: int, name: str, masks: Sequence[MaskFigures], images: int, total_px: int) -> ClassSummary:
    areas_px, regions = [mask.area_px for mask in masks], [mask.regions for mask in masks]
    return ClassSummary(
        class_id=class_id,
        name=name,
        images=len(masks),
        image_share=len(masks) / max(images, 1),
        px_share=sum(areas_px) / total_px,
        smallest_px=min(areas_px, default=0),
        median_px=float(median(areas_px or [0])),
        largest_px=max(areas_px, default=0),
        regions=sum(regions),
        area_histogram_px=_histogram(areas_px, AREA_BINS_PX),
        region_histogram=_histogram(regions, REGION_BINS),
    )


def _histogram(values: Sequence[int], starts: Sequence[int]) -> dict[str, int]:
    """How many values lie in each bin; a bin ends where the next starts, the last has no end."""
    ends = [start - 1 for start in starts[1:]]
    names = [str(start) if start == end else f"{start}-{end}" for start, end in zip(starts, ends, strict=False)]
    found = np.bincount(np.searchsorted(starts, values, side="right"), minlength=len(starts) + 1)
    return dict(zip([*names, f"{starts[-1]}+"], found[1:].tolist(), strict=True))


def output_folder(out: Path, *, overwrite: bool = False) -> AbstractContextManager[None]:
    """Hold the folder for the results of a check. Raises as `files.result_folder` does."""
    own = (JSON_NAME, SHEET_NAME, PAGE_NAME)
    return files.result_folder(out, own, writer="data check", overwrite=overwrite)


def write_check(
    out: Path, root: Path, report: CheckReport, *, against: Path | None = None, bit_depth: int | None = None
) -> None:
    """Write check.json, contact_sheet.jpg and report.html, each whole or not at all.

    Args:
        out: the folder, held by `output_folder`.
        root: the data folder that was checked.
        report: what was found.
        against: the folder that it was compared with, if any.
        bit_depth: that it was checked with.

    Raises:
        ResourceError: the disk is full or the folder cannot be written.
    """
    names = {one.class_id: one.name for one in report.classes}
    own = _Pictures(root, bit_depth, names)
    other = own if against is None else _Pictures(against, bit_depth, {})
    files.write_text(out / JSON_NAME, json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n")
    shown = choose_evenly(own.strata(report.image_ids), SHEET_IMAGES)
    files.write_bytes(out / SHEET_NAME, encode_jpeg(make_contact_sheet(list(filter(None, map(own.paint, shown))))))
    pairs = _worst(report)
    charted = sorted((one for one in report.classes if one.images), key=lambda one: (-one.images, one.class_id))
    page = render_page(
        "defectseg.check",
        {},
        title=f"Check of {root.name or root.resolve().name}",
        report=report,
        charted=charted[:PAGE_CLASSES],
        with_masks=len(charted),
        against=None if against is None else str(against),
        faults=report.faults[:PAGE_FAULTS],
        pairs=[_show(pair, leak, own, other if leak else own) for pair, leak in pairs[:PAGE_PAIRS]],
        all_pairs=len(pairs),
    )
    files.write_text(out / PAGE_NAME, page)


class _Pictures:
    """The images of a data folder, or of a plain folder, with their labelled pixels."""

    def __init__(self, root: Path, bit_depth: int | None, class_names: Mapping[int, str]) -> None:
        self.bit_depth, self.class_names = bit_depth, class_names
        self.folder, rows_of = find_labels(root)
        self.rows_of = {one: [row for row in rows if row.has_mask] for one, rows in (rows_of or {}).items()}

    def strata(self, image_ids: Sequence[str]) -> list[list[str]]:
        """ImageIds by set of classes, the largest sets first."""
        ids_of: dict[frozenset[int], list[str]] = defaultdict(list)
        for image_id in image_ids:
            ids_of[frozenset(row.class_id for row in self.rows_of.get(image_id, ()))].append(image_id)
        return sorted(ids_of.values(), key=lambda ids: (-len(ids), ids))

    def paint(self, image_id: str, turn: str = "0") -> tuple[NDArray[np.uint8], str] | None:
        """An image with its labelled pixels blue, turned, BGR uint8 (H, W, 3), and a line with its name and classes.

        None where it cannot be read.
        """
        try:
            pixels = read.decode(self.folder / image_id, bit_depth=self.bit_depth).pixels
        except ImageError:
            return None
        truth = np.zeros(pixels.shape, np.bool_)
        found = []
        for row in self.rows_of.get(image_id, ()):
            try:
                truth |= rle.decode(row.encoded, pixels.shape)
            except LabelError:
                continue
            found.append(row.class_id)
        classes = ", ".join(self.class_names.get(one, f"class {one}") for one in sorted(found)) or "clean"
        return paint_truth(turned(pixels, turn), turned(truth, turn)), f"{image_id}  {classes}"


def _worst(report: CheckReport) -> list[tuple[CopyPair, bool]]:
    """Pairs, each once, and whether they are leaks: leaks first, then pairs whose masks differ, then the most alike."""
    leaks = {(pair.image, pair.other) for pair in report.leaks}
    within = [pair for pair in report.duplicates if (pair.image, pair.other) not in leaks]
    pairs = [(pair, True) for pair in report.leaks] + [(pair, False) for pair in within]
    return sorted(
        pairs, key=lambda one: (not one[1], one[0].masks_agree is not False, -one[0].score, one[0].image, one[0].other)
    )


def _show(pair: CopyPair, leak: bool, own: _Pictures, other: _Pictures) -> dict[str, Any]:
    """Both pictures with their labels, the other one turned as the image is."""
    pictures = [own.paint(pair.image), other.paint(pair.other, pair.turn)]
    uris = [None if one is None else data_uri(one[0], largest_px=_PAIR_PX) for one in pictures]
    first = pictures[0]
    wide = first is not None and first[0].shape[1] > 2 * first[0].shape[0]
    return {"pair": pair, "leak": leak, "uris": uris, "wide": wide}
