"""Read -> infer -> post-process -> write, overlapped, in bounded memory."""

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import cv2
import numpy as np
from numpy.typing import NDArray

from defectseg.config import Thresholds
from defectseg.data import images as image_files
from defectseg.data import rle
from defectseg.data.images import DecodedImage, FoundImage
from defectseg.data.overlay import JPEG_LONGEST_SIDE_PX, encode_jpeg, paint_prediction
from defectseg.errors import ImageError
from defectseg.inference.outputs import (
    STATUS_CLEAN,
    STATUS_DEFECT,
    STATUS_FAILED,
    OutputFolder,
    Record,
)
from defectseg.inference.postprocess import Segmentation, segment
from defectseg.inference.runtimes.base import Runtime
from defectseg.inference.tiling import Prediction, predict_image

log = logging.getLogger(__name__)

_LOOK_AHEAD = 4  # images decoded before, or rendered after, the one in the network

_In = TypeVar("_In")
_Out = TypeVar("_Out")


@dataclass(frozen=True)
class BatchCounts:
    """What a batch did: images processed, among them with a defect, and failed."""

    processed: int
    with_defect: int
    failed: int


def run_batch(
    images: Sequence[FoundImage],
    runtime: Runtime,
    output: OutputFolder,
    *,
    thresholds: Thresholds,
    only_classes: Collection[int] | None = None,
    advance: Callable[[], None] = lambda: None,
) -> BatchCounts:
    """Segment images and write what is found; an image that cannot be read is recorded and the batch goes on.

    Args:
        images: what to process; see OutputFolder.pending.
        runtime: the model.
        output: where results go.
        thresholds: gate, pixel threshold and minimum area for each class.
        only_classes: ClassIds to report; None reports all.
        advance: called after each image, in the order of `images`.

    Raises:
        ResourceError: memory or disk space ran out; what is done is kept.
    """
    class_names = runtime.info.class_names

    def render(item: tuple[FoundImage, DecodedImage, Prediction]) -> _Rendered:
        found, decoded, prediction = item
        segmentation = segment(prediction, thresholds, only_classes=only_classes)
        return _render(found, decoded, segmentation, class_names)

    def answered() -> Iterator[tuple[FoundImage, DecodedImage, Prediction] | Failure]:
        for item in decode_ahead(images):
            if isinstance(item, Failure):
                yield item
            else:
                yield item.found, item.decoded, predict_image(runtime, item.decoded.pixels)

    processed = with_defect = failed = 0
    for outcome in _ordered_map(lambda item: item if isinstance(item, Failure) else render(item), answered()):
        if isinstance(outcome, Failure):
            failed += 1
            log.warning("%s", outcome.message)
            output.write_failure(_failure_record(outcome))
        else:
            processed += 1
            with_defect += outcome.record.status == STATUS_DEFECT
            output.write(outcome.record, overlay_jpeg=outcome.overlay_jpeg, class_map_png=outcome.class_map_png)
        advance()
    return BatchCounts(processed, with_defect, failed)


@dataclass(frozen=True)
class Decoded:
    """An image that was read whole."""

    found: FoundImage
    decoded: DecodedImage


@dataclass(frozen=True)
class Failure:
    """An image that could not be read, and why."""

    found: FoundImage
    message: str


def decode_ahead(images: Iterable[FoundImage]) -> Iterator[Decoded | Failure]:
    """Decode images in their order, a few ahead of the caller, in a thread."""

    def decode(found: FoundImage) -> Decoded | Failure:
        try:
            return Decoded(found, image_files.decode(found.path))
        except ImageError as error:
            return Failure(found, str(error))

    yield from _ordered_map(decode, images)


def _ordered_map(function: Callable[[_In], _Out], items: Iterable[_In]) -> Iterator[_Out]:
    """Like `map`, with a thread that works ahead on a bounded number of items."""
    with ThreadPoolExecutor(max_workers=1) as pool:
        waiting: deque[Future[_Out]] = deque()
        try:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _LOOK_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


@dataclass(frozen=True)
class _Rendered:
    record: Record
    overlay_jpeg: bytes
    class_map_png: bytes


def _render(
    found: FoundImage, decoded: DecodedImage, segmentation: Segmentation, class_names: Sequence[str]
) -> _Rendered:
    picture, notes = fit_jpeg(paint_prediction(decoded.pixels, segmentation.masks, class_names))
    record = _record(found, segmentation, class_names, (*decoded.notes, *notes))
    return _Rendered(record, encode_jpeg(picture), _encode_png(segmentation.class_map))


def _record(found: FoundImage, segmentation: Segmentation, class_names: Sequence[str], notes: Sequence[str]) -> Record:
    height, width = segmentation.class_map.shape
    area_px = int(np.count_nonzero(segmentation.class_map))
    class_ids = sorted({region.class_id for region in segmentation.regions})
    top_score = max((region.score for region in segmentation.regions), default=None)
    image = {
        **_identity(found, STATUS_DEFECT if class_ids else STATUS_CLEAN, "; ".join(notes)),
        "height": height,
        "width": width,
        "classes": "; ".join(class_names[class_id - 1] for class_id in class_ids),
        "regions": len(segmentation.regions),
        "defect_area_px": area_px,
        "defect_area_percent": f"{100.0 * area_px / (height * width):.4f}",
        "top_score": "" if top_score is None else f"{top_score:.4f}",
    }
    predictions = [
        [found.image_id, index + 1, rle.encode(mask) if index + 1 in class_ids else ""]
        for index, mask in enumerate(segmentation.masks)
    ]
    regions = [
        [
            *(found.image_id, region.class_id, class_names[region.class_id - 1], region.area_px, *region.box_xywh),
            *(f"{region.centroid_xy[0]:.1f}", f"{region.centroid_xy[1]:.1f}", f"{region.score:.4f}"),
        ]
        for region in segmentation.regions
    ]
    return Record(image, predictions, regions, [])


def _failure_record(failure: Failure) -> Record:
    blank = dict.fromkeys(
        ("height", "width", "classes", "regions", "defect_area_px", "defect_area_percent", "top_score"), ""
    )
    image = {**_identity(failure.found, STATUS_FAILED, failure.message), **blank}
    return Record(image, [], [], [[failure.found.image_id, str(failure.found.path), failure.message]])


def _identity(found: FoundImage, status: str, notes: str) -> dict[str, object]:
    """The columns that every image has. A file that vanished since it was found has no size or time."""
    try:
        stat = found.path.stat()
        size_bytes, modified_ns = stat.st_size, stat.st_mtime_ns
    except OSError:
        size_bytes = modified_ns = 0
    return {
        "ImageId": found.image_id,
        "status": status,
        "notes": notes,
        "size_bytes": size_bytes,
        "modified_ns": modified_ns,
    }


def fit_jpeg(picture: NDArray[np.uint8]) -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """Shrink a picture that is too long for a JPEG, and say so."""
    longest = max(picture.shape[:2])
    if longest <= JPEG_LONGEST_SIDE_PX:
        return picture, ()
    factor = JPEG_LONGEST_SIDE_PX / longest
    size_wh = (max(1, int(picture.shape[1] * factor)), max(1, int(picture.shape[0] * factor)))
    shrunk = np.asarray(cv2.resize(picture, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    return shrunk, (f"overlay shrunk to {size_wh[0]} x {size_wh[1]} px to fit a JPEG",)


def _encode_png(class_map: NDArray[np.uint8]) -> bytes:
    done, content = cv2.imencode(".png", class_map, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    assert done, "cv2 encodes every uint8 picture as PNG"
    return content.tobytes()
