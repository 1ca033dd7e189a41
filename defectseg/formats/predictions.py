"""What a model found, as COCO for correction in a labelling tool: so labels grow from a first model."""

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectseg.errors import DataError, OutputExistsError
from defectseg.files import write_text
from defectseg.formats.coco.exporting import CocoDocument
from defectseg.formats.common import Loss, Tally
from defectseg.formats.polygons import Piece, count_hole_px, cut_pieces
from defectseg.image import rle
from defectseg.predict.output import read_results
from defectseg.predict.tables import RLE, STATUS_UNREADABLE, Record
from defectseg.progress import Progress, silent

TOLERANCE_PX = 1.0  # what an outline may deviate, so that people get a few dozen points to move, not hundreds

LOSSES = {
    "unreadable_images": "{count} images are unreadable and not in the file (for example {examples}).",
    "hole_px": "{count} px of holes are filled, since an outline cannot have holes (for example {examples}).",
    "simplified": "Outlines are simplified; they deviate by up to {count} px.",
}

_RegionKey = tuple[int, int, int, int, int, int]  # ClassId, area, left, top, width, height


@dataclass(frozen=True)
class CorrectionReport:
    """What was written.

    Attributes:
        images: number of images in the file, clean ones too.
        annotations: number of regions.
        class_names: name n-1 belongs to category n.
        lost: what the file does not hold.
    """

    images: int
    annotations: int
    class_names: tuple[str, ...]
    lost: tuple[Loss, ...]


def predictions_to_coco(
    root: Path, file: Path, *, run_lengths: bool = False, progress: Progress = silent
) -> CorrectionReport:
    """Write the results in an output folder of `predict` as one COCO file.

    Each connected region becomes an annotation with its score; every image is listed, so that people see what was
    missed. `file_name` is the ImageId. Once corrected, `import_coco` reads the file.

    Args:
        root: the output folder of a finished run.
        file: the JSON file to write; it must not be there.
        run_lengths: exact run-lengths, not outlines that people can correct.
        progress: counts the images; the number of all is not known ahead.

    Raises:
        DataError: the folder is not the output of a finished run, or was written without run-lengths.
        OutputExistsError: `file` is there.
        ResourceError: it cannot be written.
    """
    if file.exists():
        raise OutputExistsError(f"{file}: exists. Choose another output file.")
    run, outputs, records = read_results(root)
    if RLE not in outputs.names:
        raise DataError(f"{root}: was written without predictions.csv. Predict again, with rle among the outputs.")
    class_names = tuple(map(str, run["class_names"]))
    document = CocoDocument(class_names, polygons=not run_lengths, tolerance_px=TOLERANCE_PX)
    tally = Tally()
    count = 0
    for record in records:
        if record.status == STATUS_UNREADABLE:
            tally.add("unreadable_images", example=record.image_id)
            continue
        _add(document, record, tally, polygons=not run_lengths)
        count += 1
        progress(count, 0)
    if not run_lengths and document.num_annotations:
        tally.add("simplified", round(TOLERANCE_PX))
    write_text(file, document.as_json())
    return CorrectionReport(count, document.num_annotations, class_names, tally.losses(LOSSES))


def _add(document: CocoDocument, record: Record, tally: Tally, *, polygons: bool) -> None:
    size_hw = int(record.image["height"]), int(record.image["width"])
    scores = _scores(record.regions)
    document.add_image(record.image_id, size_hw)
    for image_id, class_id, encoded in record.predictions:
        if not encoded:
            continue
        mask = rle.decode(encoded, size_hw, where=f"{image_id}, ClassId {class_id}")
        for piece in cut_pieces(mask):
            document.add_region(int(class_id), piece, score=_score_of(piece, int(class_id), scores))
        if polygons:
            tally.add("hole_px", count_hole_px(mask), example=image_id)


def _scores(regions: Iterable[list[Any]]) -> dict[_RegionKey, list[float]]:
    """The scores of an image's rows in regions.csv, by what tells regions apart."""
    scores: dict[_RegionKey, list[float]] = defaultdict(list)
    for _, class_id, _, area_px, left, top, width, height, _, _, score in regions:
        key = (int(class_id), int(area_px), int(left), int(top), int(width), int(height))
        scores[key].append(float(score))
    return scores


def _score_of(piece: Piece, class_id: int, scores: dict[_RegionKey, list[float]]) -> float | None:
    found = scores.get((class_id, piece.area_px, *piece.box_xywh))
    return found.pop(0) if found else None
