"""What a check found, as figures: images, classes, areas, grey levels, faults, copies."""

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from defectseg.check.image import MOSTLY_DARK, Inspection
from defectseg.check.pairs import CopyPair
from defectseg.data.table import IGNORE_CLASS_ID, Fault, LabelScan
from defectseg.image.read import LowBitDepth

Key = TypeVar("Key", bound=Hashable)

AREA_BINS_PX = (1, 64, 256, 1024, 4096, 16384, 65536)
REGION_BINS = (1, 2, 3, 5, 9, 17)


@dataclass(frozen=True)
class ClassSummary:
    """The sound masks of one class.

    Attributes:
        class_id, name: the class.
        images: in how many images it occurs.
        image_share: the same as a share of all images, 0 to 1.
        px_share: share of the pixels of all images that it covers, 0 to 1.
        smallest_px, median_px, largest_px: areas of its masks; 0 where there is none.
        regions: number of 8-connected regions in all its masks.
        area_histogram_px: "from-to" in px -> number of masks.
        region_histogram: "from-to" -> number of masks that consist of so many regions.
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
        image_ids: of all files below train_images/, whether they can be read or not, sorted.
        images: their number.
        clean_images: those that have no mask, no pixels to ignore, and no faulty row that may have been one.
        images_without_rows: those that no row names; they are taken as clean.
        unreadable_images: those that are no whole images.
        missing_images: ImageIds with a row and no file.
        dark_images: those that are mostly black.
        sheet_end_images: those in which an end of the sheet can be seen.
        ignored_px: pixels marked to be ignored, over all images.
        sizes: "HxW" in pixels -> number of images, the commonest first.
        class_sets: names of the classes in an image, joined by " + ", or "clean" -> number of images, the commonest
            first.
        classes: one summary for each class.
        grey_mean, grey_std: of all pixels, as shares of the full range; a model normalises by them.
        faults: errors first; then by image and row.
        duplicates: pairs of copies within the folder.
        leaks: pairs of copies across the two folders, or, where none was compared with, across the folds of split.csv.
        low_bit_depth: set where most 16-bit images seem to come from a camera of fewer bits; a fault says so, too.
    """

    image_ids: tuple[str, ...]
    images: int
    clean_images: int
    images_without_rows: int
    unreadable_images: int
    missing_images: int
    dark_images: int
    sheet_end_images: int
    ignored_px: int
    sizes: Mapping[str, int]
    class_sets: Mapping[str, int]
    classes: tuple[ClassSummary, ...]
    grey_mean: float
    grey_std: float
    faults: tuple[Fault, ...]
    duplicates: tuple[CopyPair, ...]
    leaks: tuple[CopyPair, ...]
    low_bit_depth: LowBitDepth | None = None

    @property
    def errors(self) -> int:
        """Number of faults that are errors."""
        return sum(fault.severity == "error" for fault in self.faults)

    @property
    def warnings(self) -> int:
        """Number of faults that are warnings."""
        return len(self.faults) - self.errors

    @property
    def has_problems(self) -> bool:
        """Whether there is an error, a duplicate or a leak. Warnings may be meant so, and do not count."""
        return bool(self.errors or self.duplicates or self.leaks)

    def to_dict(self) -> dict[str, Any]:
        """All of it as plain values, for JSON."""
        return {
            "counts": {
                "images": self.images,
                "clean": self.clean_images,
                "without_rows": self.images_without_rows,
                "unreadable": self.unreadable_images,
                "missing": self.missing_images,
                "mostly_black": self.dark_images,
                "sheet_end": self.sheet_end_images,
                "ignored_px": self.ignored_px,
                "errors": self.errors,
                "warnings": self.warnings,
                "duplicates": len(self.duplicates),
                "leaks": len(self.leaks),
            },
            "sizes": dict(self.sizes),
            "normalisation": {"mean": self.grey_mean, "std": self.grey_std},
            "class_balance": dict(self.class_sets),
            "classes": [asdict(one) for one in self.classes],
            "faults": [asdict(fault) for fault in self.faults],
            "duplicates": [{**pair.to_dict(), "masks_agree": pair.masks_agree} for pair in self.duplicates],
            "leaks": [pair.to_dict() for pair in self.leaks],
        }


def summarise(
    inspections: Sequence[Inspection],
    class_names: Sequence[str],
    scan: LabelScan,
    levels: NDArray[np.int64],
    *,
    missing_images: int,
    faults: Sequence[Fault],
    duplicates: Sequence[CopyPair],
    leaks: Sequence[CopyPair],
    low_bit_depth: LowBitDepth | None = None,
) -> CheckReport:
    """Put together what a check found.

    Args:
        inspections: of all images.
        class_names: of ClassId 1 and so on.
        scan: the rows of the label table, sound and faulty.
        levels: how many pixels of all images have each grey level, int64 (256,).
        missing_images: how many images have a row and no file.
        faults, duplicates, leaks, low_bit_depth: what was found wrong.
    """
    ids = {one.image_id for one in inspections}
    perhaps_defective = {row.image_id for row in scan.rows if row.encoded}
    perhaps_defective |= {fault.image for fault in scan.faults}
    listed = {row.image_id for row in scan.rows} | {fault.image for fault in scan.faults}
    masks = [mask for one in inspections for mask in one.masks]
    sizes = Counter(f"{one.size_hw[0]}x{one.size_hw[1]}" for one in inspections if one.size_hw is not None)
    mean, std = _mean_std(levels)
    return CheckReport(
        image_ids=tuple(sorted(ids)),
        images=len(inspections),
        clean_images=len(ids - perhaps_defective),
        images_without_rows=len(ids - listed),
        unreadable_images=sum(one.size_hw is None for one in inspections),
        missing_images=missing_images,
        dark_images=sum(one.dark_share > MOSTLY_DARK for one in inspections),
        sheet_end_images=sum(one.sheet_end for one in inspections),
        ignored_px=sum(mask.area_px for mask in masks if mask.class_id == IGNORE_CLASS_ID),
        sizes=dict(by_count(sizes)),
        class_sets=_class_sets(inspections, class_names, perhaps_defective),
        classes=tuple(
            _class_summary(
                class_id,
                name,
                [mask.area_px for mask in masks if mask.class_id == class_id],
                [mask.regions for mask in masks if mask.class_id == class_id],
                len(inspections),
                int(levels.sum()),
            )
            for class_id, name in enumerate(class_names, start=1)
        ),
        grey_mean=mean,
        grey_std=std,
        faults=tuple(sorted(faults, key=lambda fault: (fault.severity, fault.image, fault.row or 0, fault.kind))),
        duplicates=tuple(duplicates),
        leaks=tuple(leaks),
        low_bit_depth=low_bit_depth,
    )


def by_count(counts: Mapping[Key, int]) -> list[tuple[Key, int]]:
    """Sort by count, the largest first, and by key."""
    return sorted(counts.items(), key=lambda item: (-item[1], item[0]))


def _class_sets(
    inspections: Sequence[Inspection], class_names: Sequence[str], perhaps_defective: set[str]
) -> dict[str, int]:
    """Images per set of classes; an image that has no mask, but pixels to ignore or a faulty row, is in none."""
    counts: Counter[str] = Counter()
    for one in inspections:
        found = sorted({mask.class_id for mask in one.masks} - {IGNORE_CLASS_ID})
        if found:
            counts[" + ".join(class_names[class_id - 1] for class_id in found)] += 1
        elif one.image_id not in perhaps_defective:
            counts["clean"] += 1
    return dict(by_count(counts))


def _class_summary(
    class_id: int, name: str, areas_px: Sequence[int], regions: Sequence[int], images: int, all_px: int
) -> ClassSummary:
    areas = areas_px or [0]
    return ClassSummary(
        class_id=class_id,
        name=name,
        images=len(areas_px),
        image_share=len(areas_px) / max(images, 1),
        px_share=sum(areas_px) / max(all_px, 1),
        smallest_px=min(areas),
        median_px=float(median(areas)),
        largest_px=max(areas),
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


def _mean_std(levels: NDArray[np.int64]) -> tuple[float, float]:
    """Mean and standard deviation of the grey levels, as shares of the full range; 0 where there is no pixel."""
    total = max(int(levels.sum()), 1)
    shares = np.arange(256) / 255
    mean = float(levels @ shares) / total
    return mean, float(np.sqrt(max(float(levels @ shares**2) / total - mean**2, 0.0)))
