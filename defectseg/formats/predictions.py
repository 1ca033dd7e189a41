"""What a model found, as COCO for correction in a labelling tool: so labels grow from a first model."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectseg.errors import DataError, OutputExistsError
from defectseg.files import write_text
from defectseg.formats.coco.exporting import CocoDocument
from defectseg.formats.common import Loss, Tally
from defectseg.formats.polygons import Piece, count_hole_px, cut_pieces
from defectseg.image import rle
from defectseg.predict.tables import RLE, STATUS_FAILED, OutputChoice, Record, read_records, tables_of

TOLERANCE_PX = 1.0  # what an outline may deviate, so that people get a few dozen points to move, not hundreds

LOSSES = {
    "failed_images": "{count} images could not be predicted and are not in the file (see errors.csv; for example "
    "{examples}).",
    "hole_px": "{count} px of holes are filled, since an outline cannot have holes (for example {examples}).",
    "simplified": "Outlines are simplified; they deviate by up to {count} px.",
}

_UNFINISHED = ("running", "interrupted", "failed")
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
    root: Path, file: Path, *, run_lengths: bool = False, report: Callable[[int, int], None] | None = None
) -> CorrectionReport:
    """Write the results in an output folder of `predict` as one COCO file.

    Each connected region becomes an annotation with its score; every image is listed, so that people see what was
    missed. `file_name` is the ImageId. Once corrected, `import_coco` reads the file.

    Args:
        root: the output folder of a finished run.
        file: the JSON file to write; it must not be there.
        run_lengths: exact run-lengths, not outlines that people can correct.
        report: called with the number of images done; the number of all is not known ahead (0).

    Raises:
        DataError: the folder is not the output of a finished run, or its tables do not fit together.
        OutputExistsError: `file` is there.
        ResourceError: it cannot be written.
    """
    if file.exists():
        raise OutputExistsError(f"{file}: exists. Choose another --out.")
    class_names, choice = _run_of(root)
    document = CocoDocument(class_names, polygons=not run_lengths, tolerance_px=TOLERANCE_PX)
    tally = Tally()
    count = 0
    for record in read_records(root, choice):
        if record.status == STATUS_FAILED:
            tally.add("failed_images", example=record.image_id)
            continue
        try:
            _add(document, record, root, tally, polygons=not run_lengths)
        except ValueError as error:  # a number that is none
            raise DataError(f"{root}: the rows of {record.image_id} were changed ({error}). Predict again.") from error
        count += 1
        if report:
            report(count, 0)
    if not run_lengths and document.num_annotations:
        tally.add("simplified", round(TOLERANCE_PX))
    write_text(file, document.as_json())
    return CorrectionReport(count, document.num_annotations, class_names, tally.losses(LOSSES))


def _run_of(root: Path) -> tuple[tuple[str, ...], OutputChoice]:
    """The model's classes and what was written, once it is clear that the run has ended."""
    again = "Where it was interrupted, run the same `defectseg predict` again first."
    unfinished = "{}: has no {}; expected the output folder of a finished run. {}"
    if not (root / "run.json").is_file():
        raise DataError(unfinished.format(root, "run.json", again))
    try:
        run = json.loads((root / "run.json").read_text(encoding="utf-8"))
        names, status, choice = tuple(map(str, run["class_names"])), run["status"], OutputChoice.from_run(run)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{root / 'run.json'}: cannot be understood ({error!r}). Predict again, with another --out."
        ) from error
    if RLE not in choice.names:
        raise DataError(f"{root}: was written without predictions.csv. Predict with rle among --outputs.")
    if missing := [name for name in tables_of(choice) if not (root / name).is_file()]:
        raise DataError(unfinished.format(root, missing[0], again))
    if status in _UNFINISHED:
        raise DataError(f"{root}: the run is {status}. {again}")
    return names, choice


def _add(document: CocoDocument, record: Record, root: Path, tally: Tally, *, polygons: bool) -> None:
    size_hw = int(record.image["height"]), int(record.image["width"])
    scores = _scores(record.regions)
    document.add_image(record.image_id, size_hw)
    for image_id, class_id, encoded in record.predictions:
        if not encoded:
            continue
        mask = rle.decode(encoded, size_hw, where=f"{root / 'predictions.csv'}: {image_id}, ClassId {class_id}")
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
