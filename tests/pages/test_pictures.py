import base64

import cv2
import numpy as np
import pytest

from defectseg.pages.pictures import data_uri

NOISE = np.random.default_rng(0).integers(0, 256, (300, 600, 3), np.uint8)


def _decoded(uri: str) -> tuple[int, tuple[int, ...]]:
    """Bytes and shape of the picture."""
    jpeg = np.frombuffer(base64.b64decode(uri.removeprefix("data:image/jpeg;base64,")), np.uint8)
    return len(jpeg), np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)).shape


@pytest.mark.parametrize(("largest_px", "shape"), [(900, (300, 600, 3)), (600, (300, 600, 3)), (200, (100, 200, 3))])
def test_a_picture_is_shrunk_to_fit(largest_px: int, shape: tuple[int, ...]) -> None:
    assert _decoded(data_uri(NOISE, largest_px=largest_px))[1] == shape


def test_a_picture_is_shrunk_until_it_has_few_enough_bytes() -> None:
    plain, _ = _decoded(data_uri(NOISE, largest_px=600))
    size, shape = _decoded(data_uri(NOISE, largest_px=600, most_bytes=plain // 4))
    assert plain // 10 < size <= plain // 4
    assert shape[1] == pytest.approx(2 * shape[0], abs=2)
    assert data_uri(NOISE, largest_px=600, most_bytes=plain) == data_uri(NOISE, largest_px=600)
    assert _decoded(data_uri(NOISE, largest_px=600, most_bytes=1))[1] == (32, 64, 3), "not below 64 px"
