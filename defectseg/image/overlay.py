"""Pictures for people: red where the steel is defective; in a comparison also blue, magenta and yellow.

Fill and outline stay inside the mask, and the legend is a strip below the picture, so that exactly the masked pixels
are coloured. A grey pixel has R = G = B. Blending it with red by `FILL_ALPHA` gives R - G = 0.4 x 255 = 102 at any
brightness, so the fill is equally visible on dark and bright steel.
"""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

Bgr = tuple[int, int, int]

FILL_ALPHA = 0.4
JPEG_QUALITY = 95
JPEG_LONGEST_SIDE_PX = 65_500  # libjpeg's own limit

RED_BGR: Bgr = (0, 0, 255)
BLUE_BGR: Bgr = (255, 0, 0)
MAGENTA_BGR: Bgr = (255, 0, 255)
# Without red or green light, a pure magenta fill looks like the blue one.
MAGENTA_FILL_BGR: Bgr = (255, 90, 255)
YELLOW_BGR: Bgr = (0, 230, 255)  # of the colours tried, the easiest to tell from the others for the colour-blind
# A pure blue line is lost on dark steel, and a paler one looks like magenta to people who do not see red.
BLUE_OUTLINE_BGR: Bgr = (255, 150, 0)
# All are shades of red, so that a search for red pixels finds the outlines too. The ninth class has the first colour
# again; the numbers in the legend tell the classes apart.
OUTLINE_BGR: tuple[Bgr, ...] = (
    (0, 0, 255),
    (0, 150, 255),
    (150, 0, 255),
    (160, 160, 255),
    (0, 0, 140),
    (0, 75, 200),
    (95, 0, 190),
    (80, 90, 255),
)

_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
_FONT = cv2.FONT_HERSHEY_SIMPLEX
_STRIP_BGR: Bgr = (28, 28, 28)
_TEXT_BGR: Bgr = (235, 235, 235)
_SWATCH_GREY = 110
# Latin letters that Unicode does not decompose into a plain letter and an accent.
_PLAIN_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D"}
)


@dataclass(frozen=True)
class _Entry:
    text: str
    fill_bgr: Bgr
    outline_bgr: Bgr


_COMPARED = (
    _Entry("labelled", BLUE_BGR, BLUE_OUTLINE_BGR),
    _Entry("predicted", RED_BGR, RED_BGR),
    _Entry("both", MAGENTA_FILL_BGR, MAGENTA_BGR),
    _Entry("wrong class", YELLOW_BGR, YELLOW_BGR),
)


def paint_prediction(
    image: NDArray[np.uint8], masks: NDArray[np.bool_], class_names: Sequence[str]
) -> NDArray[np.uint8]:
    """Blend the defect pixels with red and draw a 1-px outline inside each region.

    With one class the outline is solid red. With several it has the class's colour of `OUTLINE_BGR`, and a legend of
    the classes found is added below the picture.

    Args:
        image: uint8 (H, W), grey.
        masks: bool (C, H, W); classes may overlap.
        class_names: C names.

    Returns:
        uint8 (H + legend, W, 3), BGR. In rows 0 to H - 1, pixels outside all masks are those of the image.
    """
    found = [index for index, mask in enumerate(masks) if mask.any()]
    colours = {index: OUTLINE_BGR[index % len(OUTLINE_BGR)] for index in found}
    entries = [_Entry(legend_text(class_names[index], index + 1), RED_BGR, colours[index]) for index in found]
    whole = _with_legend(image, entries if len(class_names) > 1 else ())
    picture = whole[: image.shape[0]]
    union = masks[found[0]] if len(found) == 1 else np.logical_or.reduce(masks[found], axis=0)
    for box in _boxes(union) if found else ():
        _blend(picture[box], union[box], RED_BGR)
        for index in found:
            picture[box][_outline(masks[index][box])] = colours[index]
    return whole


def paint_comparison(
    image: NDArray[np.uint8],
    predicted: NDArray[np.bool_],
    truth: NDArray[np.bool_],
    wrong_class: NDArray[np.bool_] | None = None,
) -> NDArray[np.uint8]:
    """Blend labelled pixels with blue, predicted pixels with red, and pixels that are both with magenta or yellow.

    The 1-px outlines of label and prediction are solid, in the same colours.

    Args:
        image: uint8 (H, W), grey.
        predicted: bool (H, W), the pixels found in any class.
        truth: bool (H, W), the pixels labelled in any class.
        wrong_class: bool (H, W), the pixels of both that have no class in common, which become yellow; None: none.

    Returns:
        uint8 (H + legend, W, 3), BGR. In rows 0 to H - 1, pixels outside both masks are those of the image.
    """
    whole = _with_legend(image, _COMPARED[:3] if wrong_class is None else _COMPARED)
    picture = whole[: image.shape[0]]
    for box in _boxes(predicted | truth):
        labelled, found = truth[box], predicted[box]
        wrong = np.zeros_like(found) if wrong_class is None else wrong_class[box]
        outline = _outline(labelled) | _outline(found) | _outline(wrong)
        parts = (labelled & ~found, found & ~labelled, labelled & found & ~wrong, wrong)
        for part, entry in zip(parts, _COMPARED, strict=True):
            if part.any():
                _blend(picture[box], part, entry.fill_bgr)
                picture[box][part & outline] = entry.outline_bgr
    return whole


def paint_truth(image: NDArray[np.uint8], truth: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Blend the labelled pixels with blue and draw a 1-px outline inside each region; no legend.

    Args:
        image: uint8 (H, W), grey.
        truth: bool (H, W), the pixels labelled in any class.

    Returns:
        uint8 (H, W, 3), BGR.
    """
    return paint_comparison(image, np.zeros_like(truth), truth)[: image.shape[0]]


def encode_jpeg(
    bgr: NDArray[np.uint8],
    quality: int = JPEG_QUALITY,
    longest_px: int = JPEG_LONGEST_SIDE_PX,
    *,
    is_grey: bool = False,
) -> bytes:
    """Encode uint8 (H, W, 3) BGR as a JPEG with 4:4:4 sampling; 4:2:0 would smear red over the border.

    A grey picture (R = G = B) gets 4:2:0, which is the same pixel by pixel and takes a quarter less time. A picture
    with a side above `longest_px` is shrunk to fit.
    """
    factor = longest_px / max(bgr.shape[:2])
    if factor < 1:
        size_wh = (max(1, int(bgr.shape[1] * factor)), max(1, int(bgr.shape[0] * factor)))
        bgr = np.asarray(cv2.resize(bgr, size_wh, interpolation=cv2.INTER_AREA), np.uint8)
    sampling = cv2.IMWRITE_JPEG_SAMPLING_FACTOR_420 if is_grey else cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444
    options = [cv2.IMWRITE_JPEG_QUALITY, quality, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, sampling]
    done, content = cv2.imencode(".jpg", bgr, options)
    assert done, "cv2 encodes every uint8 picture that fits"
    return content.tobytes()


def legend_text(class_name: str, class_id: int) -> str:
    """The text of a class in the legend: its ClassId and its name in ASCII, the only letters of cv2's fonts.

    Accents are dropped ("Öl" -> "Ol"). A name in another script becomes "class N", not a row of question marks.
    """
    decomposed = unicodedata.normalize("NFKD", class_name.translate(_PLAIN_LETTERS))
    plain = "".join(letter for letter in decomposed if not unicodedata.combining(letter)).strip()
    if not plain.isascii() or not plain.isprintable() or plain in ("", str(class_id), f"class {class_id}"):
        return f"class {class_id}"
    return f"{class_id} {plain}"


def _boxes(mask: NDArray[np.bool_]) -> Iterator[tuple[slice, slice]]:
    """A box (rows, columns) around each run of columns that contain a pixel; cheaper than connected components.

    No region is split, since 8-connected pixels are in neighbouring columns.
    """
    columns = np.flatnonzero(np.diff(mask.any(axis=0), prepend=False, append=False))
    for left, right in columns.reshape(-1, 2).tolist():
        rows = np.flatnonzero(mask[:, left:right].any(axis=1))
        yield slice(int(rows[0]), int(rows[-1]) + 1), slice(left, right)


def _outline(mask: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """The pixels of a mask that have a 4-neighbour outside the mask or outside the picture."""
    inner = cv2.erode(mask.view(np.uint8), _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=(0,))
    return np.asarray(mask & (inner == 0), dtype=np.bool_)


def _blend(picture: NDArray[np.uint8], mask: NDArray[np.bool_], bgr: Bgr) -> None:
    """Mix `bgr` into the masked pixels of a BGR picture, in place."""
    levels = np.arange(256)[:, None] * (1 - FILL_ALPHA) + FILL_ALPHA * np.array(bgr)
    blended = cv2.LUT(picture, np.rint(levels).astype(np.uint8)[None])
    cv2.copyTo(blended, mask.view(np.uint8), picture)  # 60 times as fast as numpy's masked copy


def _with_legend(image: NDArray[np.uint8], entries: Sequence[_Entry]) -> NDArray[np.uint8]:
    """Convert a grey image to BGR and add a legend, if there are entries: uint8 (H + legend, W, 3)."""
    bgr = np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), np.uint8)
    return np.concatenate([bgr, _legend(tuple(entries), image.shape[1])]) if entries else bgr


@lru_cache(maxsize=8)  # most images of a run have one size and the same few classes
def _legend(entries: tuple[_Entry, ...], width_px: int) -> NDArray[np.uint8]:
    """A strip, uint8 (h, width, 3), with a swatch and a text for each entry, as many in a row as fit.

    The text is small on an image of 1600 px and grows with the width, since wide images are shown smaller. The result
    is shared: callers must copy it.
    """
    scale = 0.42 * min(max(width_px / 1600, 1.0), 3.0)
    row_px = round(scale * 46)
    swatch_px, gap_px = round(scale * 26), round(scale * 14)
    lead_px = swatch_px + gap_px
    x, row = gap_px, 0
    placed: list[tuple[_Entry, str, int, int]] = []
    for entry in entries:
        text = shortened(entry.text, width_px - lead_px - 2 * gap_px, scale)
        needed_px = lead_px + _text_width_px(text, scale)
        if x > gap_px and x + needed_px + gap_px > width_px:
            x, row = gap_px, row + 1
        placed.append((entry, text, x, row))
        x += needed_px + 2 * gap_px
    strip = np.full(((row + 1) * row_px, width_px, 3), _STRIP_BGR, dtype=np.uint8)
    for entry, text, x, row in placed:
        top = row * row_px + (row_px - swatch_px) // 2
        strip[top : top + swatch_px, x : x + swatch_px] = entry.outline_bgr
        fill = [round((1 - FILL_ALPHA) * _SWATCH_GREY + FILL_ALPHA * level) for level in entry.fill_bgr]
        strip[top + 2 : top + swatch_px - 2, x + 2 : x + swatch_px - 2] = fill
        baseline = (x + lead_px - gap_px // 3, row * row_px + round(row_px * 0.68))
        cv2.putText(strip, text, baseline, _FONT, scale, _TEXT_BGR, max(1, round(scale * 1.6)), cv2.LINE_AA)
    return strip


def _text_width_px(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, 1)[0][0])


def shortened(text: str, width_px: int, scale: float, *, keep_end: bool = False) -> str:
    """The text if it fits, else its beginning (or its end) and two dots."""
    short = text
    while text and _text_width_px(short, scale) > width_px:
        text = text[1:] if keep_end else text[:-1].rstrip()
        short = f"..{text}" if keep_end else f"{text}.."
    return short if text else ""
