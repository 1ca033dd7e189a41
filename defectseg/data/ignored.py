"""Pixels to ignore, and the classes that they may hide."""

import cv2
import numpy as np
from numpy.typing import NDArray

BORDER_PX = 8
"""Ignored pixels this close to a defect are its border, such as VOC draws around each object."""


def hiding_pixels(masks: NDArray[np.bool_], ignore: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The ignored pixels that may hide a defect, bool (H, W).

    An 8-connected part of the ignored area hides nothing if it is a border, that is, if all its pixels lie within 8 px
    (along rows and columns) of visible defects.

    Args:
        masks: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels to ignore.
    """
    seen = masks.any(axis=0) & ~ignore
    if not seen.any():
        return ignore
    near = cv2.dilate(seen.view(np.uint8), np.ones((2 * BORDER_PX + 1,) * 2, np.uint8)).view(np.bool_)
    count, parts = cv2.connectedComponents(np.ascontiguousarray(ignore).view(np.uint8), connectivity=8)
    hides = np.zeros(count, np.bool_)
    hides[parts[ignore & ~near]] = True
    return np.asarray(hides[parts])


def unknown_classes(
    masks: NDArray[np.bool_], ignore: NDArray[np.bool_], hiding: NDArray[np.bool_] | None = None
) -> NDArray[np.bool_]:
    """The classes that an image may or may not show, bool (C,): not visible, but ignored pixels may hide a defect.

    A class whose labelled pixels are all ignored is always unknown.

    Args:
        masks: bool (C, H, W), labelled masks.
        ignore: bool (H, W), pixels to ignore.
        hiding: for a crop, its part of the `hiding_pixels` of the image; None for a whole image.
    """
    if not ignore.any():
        return np.zeros(len(masks), np.bool_)
    if hiding is None:
        hiding = hiding_pixels(masks, ignore)
    seen, labelled = (masks & ~ignore).any(axis=(1, 2)), masks.any(axis=(1, 2))
    return np.asarray(~seen & (labelled | hiding.any()))
