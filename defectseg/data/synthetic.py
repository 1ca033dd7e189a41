"""Seeded steel sheets with four kinds of defect, for the demo and the tests.

They imitate Severstal's pictures: steel that moves downwards under a line-scan camera, so that its texture runs in
vertical streaks; uneven light; black beyond the end of the sheet; and stains, shadows, roller marks and chalk, which
are not defects. A defect is a small window of relative brightness with a mask, placed on the steel where it fits.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

from defectseg import files
from defectseg.data.classes import write_class_names
from defectseg.data.folder import IMAGES_NAME
from defectseg.data.table import TABLE_NAMES, Labels, write_label_table
from defectseg.errors import UsageError
from defectseg.image import rle
from defectseg.progress import Progress, silent

Floats = NDArray[np.float32]
Bools = NDArray[np.bool_]

CLASS_NAMES = ("pits", "cracks", "scratches", "patches")
SMALLEST_SIDE_PX = 64
JPEG_QUALITY = 95

# Severstal has 47 % clean images, and classes 1 to 4 in the ratio 13/3/73/11 (897/247/5,150/801 masks). Rare classes
# are more frequent here, because a demo of a hundred sheets could not learn them otherwise.
CLEAN_SHARE = 0.45
CLASS_SHARES = (0.22, 0.16, 0.42, 0.20)
TWO_CLASSES_SHARE = 0.12
SHEET_END_SHARE = 0.3
CONFUSING_SHARE = 0.5

_TEXT = b"synthetic sheet of defectseg, not a photograph"
_COMMENT = b"\xff\xfe" + (2 + len(_TEXT)).to_bytes(2, "big") + _TEXT  # a comment segment of a JPEG

_REFERENCE_HEIGHT_PX = 256
_GAP_PX = 8  # between defects, so that two masks never touch
_PLACING_ATTEMPTS = 20


@dataclass(frozen=True)
class Sheet:
    """A synthetic sheet.

    Attributes:
        image: uint8 (H, W).
        masks: bool (4, H, W), in the order of `CLASS_NAMES`; no pixel is in two.
    """

    image: NDArray[np.uint8]
    masks: Bools


_Mark = tuple[Floats, Bools]
"""A defect before it is placed: relative change of brightness, float32 (h, w), and its mask, bool (h, w)."""


def make_sheet(seed: int, index: int, size_hw: tuple[int, int] = (256, 1600)) -> Sheet:
    """Sheet number `index` of the series `seed`. Its pixels depend on nothing else.

    Raises:
        UsageError: a side is shorter than 64 px.
    """
    if min(size_hw) < SMALLEST_SIDE_PX:
        raise UsageError(f"sheets of {size_hw[0]}x{size_hw[1]} are too small. Each side takes {SMALLEST_SIDE_PX} px.")
    rng = np.random.default_rng([seed, index])
    brightness = _rolled_steel(rng, size_hw)
    steel = _sheet_end(rng, brightness) if rng.random() < SHEET_END_SHARE else np.ones(size_hw, dtype=np.bool_)
    if rng.random() < CONFUSING_SHARE:
        confuse = (_stains, _shadow, _roller_marks, _chalk)[rng.integers(4)]
        brightness *= np.where(steel, 1 + confuse(rng, size_hw), 1)
    masks = np.zeros((len(CLASS_NAMES), *size_hw), dtype=np.bool_)
    if rng.random() >= CLEAN_SHARE:
        free = steel.copy()
        kinds = 2 if rng.random() < TWO_CLASSES_SHARE else 1
        for kind in rng.choice(len(CLASS_NAMES), size=kinds, replace=False, p=CLASS_SHARES):
            make, most = _MAKERS[kind]
            for _ in range(rng.integers(1, most + 1)):
                _stamp(rng, make(rng, size_hw), brightness, masks[kind], free)
    return Sheet(np.clip(brightness, 0, 255).astype(np.uint8), masks)


def write_data_folder(
    out: Path, *, images: int, seed: int, size_hw: tuple[int, int] = (256, 1600), progress: Progress = silent
) -> None:
    """Write sheets 0 to `images` - 1 as a data folder: `train_images/*.jpg`, `train.csv`, `classes.txt`.

    Each picture says in a comment that it is synthetic. The folder is written completely or not at all, see
    `files.new_folder`.

    Args:
        out: the folder to make; it may exist if it is empty.
        images: how many sheets, at least 1.
        seed: of the series, see `make_sheet`.
        size_hw: height and width of each sheet in px.
        progress: counts the sheets.

    Raises:
        OutputExistsError: `out` is not empty.
        UsageError: a side is shorter than 64 px.
        ResourceError: the disk is full or the folder cannot be written.
    """
    with files.new_folder(out, last=TABLE_NAMES[0]) as building:
        (building / IMAGES_NAME).mkdir()
        labels: Labels = {}
        for index in range(images):
            sheet = make_sheet(seed, index, size_hw)
            image_id = f"sheet_{index:05d}.jpg"
            _, content = cv2.imencode(".jpg", sheet.image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
            start, rest = content[:2].tobytes(), content[2:].tobytes()
            files.write_result(building / IMAGES_NAME / image_id, start + _COMMENT + rest)
            labels[image_id] = {n: rle.encode(mask) for n, mask in enumerate(sheet.masks, start=1) if mask.any()}
            progress(index + 1, images)
        write_class_names(building, CLASS_NAMES)
        write_label_table(building, labels)


def is_synthetic(path: Path) -> bool:
    """Whether an image says of itself that `write_data_folder` has made it. Raises OSError."""
    with files.open_regular(path) as handle:
        return bool(handle.read(2 + len(_COMMENT))[2:] == _COMMENT)


def _unit(size_hw: tuple[int, int]) -> float:
    """The scale of the features, 1 for a sheet 256 px high."""
    return float(np.clip(min(size_hw) / _REFERENCE_HEIGHT_PX, 0.35, 1.5))


def _noise(rng: Generator, size_hw: tuple[int, int], cell_hw: tuple[float, float]) -> Floats:
    """Smooth noise, float32 (H, W), standard deviation about 1; `cell_hw` is the size of its features in px."""
    grid = [max(2, round(side / cell)) for side, cell in zip(size_hw, cell_hw, strict=True)]
    coarse = rng.standard_normal(grid, dtype=np.float32)
    return np.asarray(cv2.resize(coarse, size_hw[::-1], interpolation=cv2.INTER_CUBIC), dtype=np.float32)


def _soften(relief: NDArray[Any], sigma_px: float) -> Floats:
    return np.asarray(cv2.GaussianBlur(relief, (0, 0), sigma_px), dtype=np.float32)


def _rolled_steel(rng: Generator, size_hw: tuple[int, int]) -> Floats:
    """Brightness 0 to 255 of sound steel: uneven light, vertical streaks, ripples, grain and glints."""
    height, width = size_hw
    drift = 0.2 * _noise(rng, size_hw, (height, width / 3)) + 0.07 * _noise(rng, size_hw, (height / 2, width / 8))
    zones = np.clip(0.5 + 0.5 * _noise(rng, size_hw, (height, width / 12)), 0.1, 1.5)
    streaks = rng.uniform(0.02, 0.06) * _noise(rng, size_hw, (60, 4)) + 0.03 * _noise(rng, size_hw, (height, 25))
    mottle = rng.uniform(0.02, 0.06) * _noise(rng, size_hw, (14, 6))
    ripples = rng.uniform(0.0, 0.04) * _noise(rng, size_hw, (4, 22))
    grain = rng.standard_normal(size_hw, dtype=np.float32)
    texture = zones * (streaks + mottle) + np.roll(zones, width // 3, axis=1) * ripples + 0.075 * grain
    brightness = rng.uniform(60, 135) * np.maximum(1 + drift, 0.45) * (1 + texture)
    if rng.random() < 0.4:
        glinting = (grain > 2.2) & (_noise(rng, size_hw, (height, width / 10)) > 0.6)
        brightness[glinting] *= rng.uniform(1.3, 1.8)
    return np.asarray(brightness, dtype=np.float32)


def _sheet_end(rng: Generator, brightness: Floats) -> Bools:
    """Blacken one side of a nearly vertical end of the sheet, in place. Returns True where there is steel."""
    height, width = brightness.shape
    end = rng.uniform(0.05, 0.5) * width + rng.uniform(-0.06, 0.06) * np.arange(height)[:, None]
    inwards = (np.arange(width)[None, :] - end).astype(np.float32)
    if rng.random() < 0.5:
        inwards = inwards[:, ::-1]
    rim_px = rng.uniform(3, 14)
    brightness *= 1 - 0.5 * np.exp(-np.maximum(inwards, 0) / rim_px)
    if rng.random() < 0.5:
        speckled = (rng.standard_normal(inwards.shape, dtype=np.float32) > 1.7) & (np.abs(inwards - 25) < 20)
        brightness[speckled] *= 1.6
    outside = inwards < 0
    brightness[outside] = brightness[outside] * 0.01 + rng.uniform(1, 6)
    return np.asarray(~outside)


def _stains(rng: Generator, size_hw: tuple[int, int]) -> Floats:
    """Water stains: dark drops and runs with sharp edges, in one part of the sheet."""
    height, width = size_hw
    gathered = _noise(rng, size_hw, (height, width / 6))
    wetness = _noise(rng, size_hw, (rng.uniform(25, 80), rng.uniform(7, 16))) + 0.4 * _noise(rng, size_hw, (9, 4))
    stained = (wetness + gathered > 1.9).astype(np.float32)
    return _soften(stained * rng.uniform(-0.3, -0.15), 0.6)


def _shadow(rng: Generator, size_hw: tuple[int, int]) -> Floats:
    """A soft, broad, slanted shadow."""
    height, width = size_hw
    across = np.arange(width)[None, :] - rng.uniform(0, width) + rng.uniform(-1, 1) * np.arange(height)[:, None]
    depth, spread_px = rng.uniform(-0.4, -0.2), max(10.0, rng.uniform(0.02, 0.06) * width)
    return np.asarray(depth * np.exp(-((across / spread_px) ** 2)), dtype=np.float32)


def _roller_marks(rng: Generator, size_hw: tuple[int, int]) -> Floats:
    """Equal faint ovals at the regular pitch of a roller."""
    unit = _unit(size_hw)
    relief = np.zeros(size_hw, dtype=np.float32)
    pitch_px, y = rng.uniform(70, 160) * unit, int(rng.integers(size_hw[0]))
    axes = (round(rng.uniform(10, 22) * unit), round(rng.uniform(5, 9) * unit))
    for x in np.arange(rng.uniform(0, pitch_px), size_hw[1], pitch_px):
        cv2.ellipse(relief, (int(x), y), axes, 30, 0, 360, (rng.uniform(0.15, 0.25),), -1)
    return _soften(relief, 3 * unit)


def _chalk(rng: Generator, size_hw: tuple[int, int]) -> Floats:
    """A number written on the steel."""
    unit = _unit(size_hw)
    written = np.zeros(size_hw, dtype=np.uint8)
    place = (int(rng.uniform(0, 0.7) * size_hw[1]), int(rng.uniform(0.3, 0.95) * size_hw[0]))
    text = f"{'ABCK'[rng.integers(4)]}{rng.integers(100, 1000)}-{rng.integers(10)}"
    scale, thickness_px = rng.uniform(1.4, 2.6) * unit, max(1, round(3 * unit))
    cv2.putText(written, text, place, cv2.FONT_HERSHEY_SCRIPT_SIMPLEX, scale, (255,), thickness_px, cv2.LINE_AA)
    crumbly = np.clip(0.7 + 0.4 * rng.standard_normal(size_hw, dtype=np.float32), 0, 1)
    return _soften(written * crumbly * (rng.uniform(0.3, 0.6) / 255), 0.8)


def _pits(rng: Generator, size_hw: tuple[int, int]) -> _Mark:
    """A cluster of small dark pits with bright flecks. The mask is a small polygon around each."""
    unit = _unit(size_hw)
    height, width = round(rng.uniform(110, 220) * unit), round(rng.uniform(120, 320) * unit)
    relief = np.zeros((height, width), dtype=np.float32)
    mask = np.zeros((height, width), dtype=np.uint8)
    for _ in range(rng.integers(3, 9)):
        half_h, half_w = rng.uniform(10, 19) * unit, rng.uniform(6, 9) * unit
        y, x = rng.uniform(half_h + 3, height - half_h - 3), rng.uniform(half_w + 3, width - half_w - 3)
        for value in (*rng.uniform(-0.65, -0.4, 4), *rng.uniform(0.6, 1.3, rng.integers(1, 3))):
            share = 0.55 if value < 0 else 0.25
            centre = (round(x + rng.uniform(-0.4, 0.4) * half_w), round(y + rng.uniform(-0.5, 0.5) * half_h))
            axes = (max(1, round(share * half_w)), max(1, round(share * half_h)))
            cv2.ellipse(relief, centre, axes, rng.uniform(-25, 25), 0, 360, (value,), -1)
        turns = np.radians(np.arange(20, 380, 60))
        corners = np.stack([x + 1.2 * half_w * np.cos(turns), y + 1.15 * half_h * np.sin(turns)], axis=1)
        cv2.fillPoly(mask, [np.rint(corners + rng.normal(0, 0.6 * unit, corners.shape)).astype(np.int32)], (1,))
    crumbly = 1 + 0.35 * rng.standard_normal(relief.shape, dtype=np.float32)
    return _soften(relief * crumbly, 0.9), mask.astype(np.bool_)


def _cracks(rng: Generator, size_hw: tuple[int, int]) -> _Mark:
    """A thin, dark, jagged line that runs roughly downwards, bright on one side; the mask is a band around it."""
    unit = _unit(size_hw)
    height = round(rng.uniform(0.3, 0.95) * size_hw[0])
    y = np.arange(0, height, max(2, round(5 * unit)))
    x = np.cumsum(rng.normal(rng.uniform(-0.5, 0.5), 1.8, len(y))) * unit
    path = np.stack([x - x.min() + 10 * unit, y], axis=1)
    size = (height, round(np.ptp(x) + 20 * unit))
    relief, mask = np.zeros(size, dtype=np.float32), np.zeros(size, dtype=np.uint8)
    _draw_line(relief, path + np.array([2 * unit, 0]), rng.uniform(0.3, 0.6), 2 * unit)
    _draw_line(relief, path, rng.uniform(-0.75, -0.6), rng.uniform(2, 3.4) * unit)
    _draw_line(mask, path, 1, max(5, 12 * unit))
    return _soften(relief, 0.6), mask.astype(np.bool_)


def _scratches(rng: Generator, size_hw: tuple[int, int]) -> _Mark:
    """A bundle of straight parallel lines, vertical or (one in three) slanted; the mask is a quadrilateral."""
    unit = _unit(size_hw)
    slanting = rng.random() < 1 / 3
    length = rng.uniform(0.6, 1.8) * size_hw[0] if slanting else rng.uniform(0.4, 1.3) * size_hw[0]
    length = min(length, 0.9 * size_hw[1])
    angle = np.radians(rng.uniform(50, 84) * rng.choice([-1, 1]) if slanting else rng.uniform(-3, 3))
    along, beside = np.array([np.sin(angle), np.cos(angle)]), np.array([np.cos(angle), -np.sin(angle)])
    across_px = rng.uniform(12, 32) * unit
    taper = rng.uniform(0.4, 1.0) if slanting else rng.uniform(0.8, 1.1)
    corners = np.array([length * along, length * along + taper * across_px * beside, across_px * beside, (0, 0)])
    corner = corners.min(axis=0) - 4
    size = (int(np.ptp(corners[:, 1])) + 9, int(np.ptp(corners[:, 0])) + 9)
    mask = cv2.fillPoly(np.zeros(size, dtype=np.uint8), [np.rint(corners - corner).astype(np.int32)], (1,))
    relief = np.zeros(size, dtype=np.float32)
    bright = rng.random() < (0.7 if slanting else 0.35)
    places = np.linspace(0.18, 0.82, max(2, round(across_px / unit / rng.uniform(5, 9))))
    for index, share in enumerate(places + rng.normal(0, 0.03, len(places))):
        # The outer lines run the whole length, so that they show where the mask ends.
        first, last = (0.02, 0.98) if index in (0, len(places) - 1) else (rng.uniform(0.0, 0.3), rng.uniform(0.7, 1.0))
        line = np.array(
            [t * length * along + share * (1 + (taper - 1) * t) * across_px * beside for t in (first, last)]
        )
        strength = rng.uniform(0.5, 1.1) if bright else rng.uniform(-0.65, -0.4)
        _draw_line(relief, line - corner, strength, rng.uniform(1, 3.5) * unit)
    worn = np.clip(0.8 + 0.4 * _noise(rng, size, (14 * unit, 14 * unit)), 0.25, 1.4)
    tint = _soften(mask * (0.1 if bright else -0.12), 3 * unit)
    return _soften(relief, 0.7) * worn + tint, mask.astype(np.bool_)


def _patches(rng: Generator, size_hw: tuple[int, int]) -> _Mark:
    """A large, ragged patch of torn steel with a dark edge, lit from one side. The mask is its outline."""
    unit = _unit(size_hw)
    half_h, half_w = rng.uniform(28, 75) * unit, rng.uniform(35, 130) * unit
    turns = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    waves = sum(rng.normal(0, 0.2 / order) * np.cos(order * turns + rng.uniform(0, 7)) for order in range(2, 12))
    reach = np.maximum(1 + waves, 0.45)
    outline = np.stack([half_w * reach * np.cos(turns), half_h * reach * np.sin(turns)], axis=1)
    outline = np.rint(outline - outline.min(axis=0) + 3).astype(np.int32)
    size = (int(outline[:, 1].max()) + 4, int(outline[:, 0].max()) + 4)
    mask = cv2.fillPoly(np.zeros(size, dtype=np.uint8), [outline], (1,))
    folds = 9 * _noise(rng, size, (34 * unit, 60 * unit)) + 2 * _noise(rng, size, (9 * unit, 16 * unit))
    lit = np.tanh(cv2.Sobel(folds + 0.3 * _noise(rng, size, (2, 2)), cv2.CV_32F, 0, 1, ksize=3) / 6)
    edge = mask - cv2.erode(mask, np.ones((5, 5), np.uint8), borderValue=(0,))
    tone = rng.uniform(-0.5, -0.3) if rng.random() < 0.75 else rng.uniform(0.2, 0.4)
    relief = mask * (tone + np.where(lit > 0, 0.5, 0.25) * lit) - 0.15 * edge
    return _soften(relief, 0.8), mask.astype(np.bool_)


_MAKERS = ((_pits, 2), (_cracks, 3), (_scratches, 4), (_patches, 3))


def _draw_line(canvas: NDArray[Any], path_xy: NDArray[np.float64], value: float, thickness_px: float) -> None:
    points = np.rint(path_xy).astype(np.int32)
    cv2.polylines(canvas, [points], False, (value,), max(1, round(thickness_px)))


def _stamp(rng: Generator, mark: _Mark, brightness: Floats, mask: Bools, free: Bools) -> None:
    """Place a mark on free steel, with at most a third of it beyond the border; give up after some attempts.

    Changes brightness float32, mask bool and free bool, all (H, W), in place.
    """
    relief, outline = mark
    height, width = outline.shape
    reach_y, reach_x = height // 4, width // 4
    for _ in range(_PLACING_ATTEMPTS):
        top = int(rng.integers(-reach_y, max(mask.shape[0] - height + reach_y, 1 - reach_y)))
        left = int(rng.integers(-reach_x, max(mask.shape[1] - width + reach_x, 1 - reach_x)))
        inner = (slice(max(0, -top), mask.shape[0] - top), slice(max(0, -left), mask.shape[1] - left))
        outer = (slice(max(0, top), top + height), slice(max(0, left), left + width))
        part = outline[inner]
        if part.sum() * 3 >= outline.sum() * 2 and free[outer][part].all():
            brightness[outer] *= 1 + relief[inner]
            mask[outer] |= part
            grown = cv2.dilate(mask.view(np.uint8), np.ones((2 * _GAP_PX + 1, 2 * _GAP_PX + 1), np.uint8))
            free &= grown == 0
            return
