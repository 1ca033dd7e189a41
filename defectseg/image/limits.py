"""The limit of pixels per image, and what counts against it, so that no image takes more than 2.2 GB."""

import math

from defectseg.errors import DataError, ImageError

MAX_PIXELS = 2**28  # 16,384 x 16,384
# Of an image of 8 bits in colour, decoded and turned to grey. Segmenting takes less. Images that take more count as if
# they had more pixels.
_BYTES_PER_PIXEL = 6.4
_MOST_SHAPES = 64  # in an image of as many pixels as are allowed; more in a smaller one
_allowed_pixels = MAX_PIXELS


def allow_pixels(count: int) -> None:
    """Set the limit of pixels per image, by default `MAX_PIXELS`, for all threads and for processes forked later."""
    global _allowed_pixels
    _allowed_pixels = count


def allowed_pixels() -> int:
    """The limit that `allow_pixels` sets."""
    return _allowed_pixels


def check_image(size_hw: tuple[int, int], needed_bytes: float, *, name: str) -> None:
    """Refuse an image that has more pixels than allowed, or would take more memory than that many pixels.

    Args:
        size_hw: height and width of the image in px.
        needed_bytes: memory that decoding takes.
        name: the file, for the message.

    Raises:
        ImageError: names the limit of pixels with which it is decoded.
    """
    height, width = size_hw
    counted = max(height * width, math.ceil(needed_bytes / _BYTES_PER_PIXEL))
    if counted > _allowed_pixels:
        as_many = f" and take the memory of {counted:,}" if counted > height * width else ""
        raise ImageError(
            f"{name}: {width} x {height} px are {height * width:,}{as_many}; to save memory, up to "
            f"{_allowed_pixels:,} are decoded. Cut it into smaller images, or save it as grey PNG of 8 bits.",
            go_on={"max_pixels": counted},
        )


def check_masks(size_hw: tuple[int, int], *, shapes: int, classes: int, where: str) -> None:
    """Refuse labels of one image that take more than 2.2 GB or about a minute, as each is painted over all pixels.

    Args:
        size_hw: height and width of the image in px.
        shapes: how many there are.
        classes: how many of their masks are in memory at once.
        where: names the image or its labels in messages.

    Raises:
        DataError: names the limit of pixels with which they are painted.
    """
    px = size_hw[0] * size_hw[1]
    counted = max(px * shapes // _MOST_SHAPES, px * (classes + 6) // 8)
    if counted > _allowed_pixels:
        what = f"{shapes:,} shapes of {classes} classes in one image of {size_hw[1]} x {size_hw[0]} px"
        raise DataError(
            f"{where}: {what}. They would take much memory or time. Cut it into smaller images, or unite its shapes.",
            go_on={"max_pixels": counted},
        )
