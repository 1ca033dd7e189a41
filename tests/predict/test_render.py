"""The pictures of one image."""

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.image.find import FoundImage
from defectseg.image.overlay import encode_jpeg, paint_prediction
from defectseg.image.read import DecodedImage
from defectseg.inference.segment import segment
from defectseg.inference.stream import Segmented
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds
from defectseg.predict.render import render
from defectseg.predict.tables import OutputChoice

CLASSES = ("pits", "scratch")


def _decoded(content: bytes, flags: int) -> NDArray[np.uint8]:
    return np.asarray(cv2.imdecode(np.frombuffer(content, np.uint8), flags), np.uint8)


@pytest.mark.parametrize("defects", [False, True])
def test_pictures_show_the_steel_and_the_classes_pixel_by_pixel(defects: bool) -> None:
    random = np.random.default_rng(4)
    steel = random.integers(0, 256, (41, 73), dtype=np.uint8)
    probabilities = random.random((2, 41, 73), dtype=np.float32) * (1.0 if defects else 0.4)
    segmentation = segment(ImageAnswer(probabilities, np.ones(2, np.float32)), Thresholds.default(2))
    one = Segmented(FoundImage("a.png", "a.png"), (0, 0), DecodedImage(steel, ()), segmentation)

    pictures = render(one, CLASSES, OutputChoice()).pictures or {}

    class_map = np.where(probabilities.max(axis=0) >= 0.5, probabilities.argmax(axis=0) + 1, 0)
    np.testing.assert_array_equal(_decoded(pictures["masks"], cv2.IMREAD_UNCHANGED), class_map)
    jpeg, plain = pictures["overlays"], encode_jpeg(paint_prediction(steel, segmentation.masks, CLASSES))
    np.testing.assert_array_equal(_decoded(jpeg, cv2.IMREAD_UNCHANGED), _decoded(plain, cv2.IMREAD_UNCHANGED))
    assert _decoded(jpeg, cv2.IMREAD_UNCHANGED).shape[2] == 3
