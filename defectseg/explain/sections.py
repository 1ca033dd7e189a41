"""The way of one image through a network: pictures with captions, from its pixels to the answer."""

from typing import Any

import cv2
import numpy as np

from defectseg.explain.filters import name_filter
from defectseg.explain.layers import Array, Layer, look_inside
from defectseg.image.overlay import legend_text, paint_prediction
from defectseg.inference.predictor import Prediction
from defectseg.inference.tiles import tile_starts
from defectseg.model.info import ModelInfo
from defectseg.model.network import DefectNetwork

Section = tuple[str, list[tuple[Array, str]]]
"""A step of the way: heading, and pictures, BGR uint8 (h, w, 3), with captions."""

_CONTOUR_BGR, _HEAT_SHARE = (255, 255, 0), 0.65


def explain_image(
    found: Prediction, network: DefectNetwork, info: ModelInfo, asked: list[int]
) -> tuple[dict[str, Any], list[Section]]:
    """Explain an image; of one that is larger than a tile, the tile around the strongest answer.

    Args:
        found: the image, and the answer for it.
        network, info: the model.
        asked: indices of the classes to explain; empty: those found, else the one that came closest to it. Explained
            are the pixels of the part that are at least half as probable as its most probable one.

    Returns:
        what was explained, for JSON; and the sections.

    Raises:
        ResourceError: memory ran out.
    """
    assert found.answer is not None, "kept by default"
    probabilities, present = found.answer.probabilities, sorted({region.class_id - 1 for region in found.regions})
    indices = asked or present or [int(probabilities.max(axis=(1, 2)).argmax())]
    strength, tiles = probabilities[indices].max(axis=0), info.recipe.inference
    peak = np.unravel_index(strength.argmax(), strength.shape)
    rows, columns = map(_tile_at, peak, strength.shape, tiles.tile_hw, [tiles.tile_overlap_px] * 2)
    cut = np.s_[..., rows, columns]
    probabilities, image, masks = probabilities[cut], found.image[cut], found.masks[cut]
    wanted = {index: 2 * probabilities[index] >= probabilities[index].max() for index in indices}
    layers, evidence = look_inside(network, image, wanted)
    grey, painted = np.dstack([image] * 3), paint_prediction(image, masks, info.class_names)[: len(image)]
    sections = [("The image and the answer", [(grey, "what the network gets"), (painted, "what predict answers")])]
    sections += map(_section, layers)
    warm, probable = [], []
    for index in indices:
        name, plane, limits = legend_text(info.class_names[index], index + 1), probabilities[index], info.thresholds
        told = name if evidence[index].any() else f"{name}: nothing at this stage speaks for it"
        warm.append((_warm(grey, evidence[index]), told))
        told = f"limit {limits.pixel[index]:g}; gate {found.answer.gate[index]:.2f}, limit {limits.gate[index]:g}"
        probable.append((_outlined(plane, limits.pixel[index]), f"{name}: peak {plane.max():.2f}, {told}"))
    title = f"What speaks for a class: Grad-CAM ({layers[-2].name})"
    sections += [(title, warm), ("From probabilities to the mask", probable)]
    named = [[info.class_names[index] for index in some] for some in (present, indices)]
    part = {"rows": [rows.start, rows.stop], "columns": [columns.start, columns.stop]}
    return {"size_hw": strength.shape, **part, "found": named[0], "explained": named[1]}, sections


def _tile_at(at: int, length: int, tile: int, overlap: int) -> slice:
    """Of the tiles of `predict` along one axis, the one whose middle is nearest to a pixel."""
    start = min(tile_starts(length, tile, overlap), key=lambda start: abs(at - start - tile // 2))
    return slice(start, min(start + tile, length))


def _section(layer: Layer) -> Section:
    panels = []
    for number, (channel, values) in enumerate(zip(layer.channels, layer.maps, strict=True)):
        low, high = np.percentile(values, (0.5, 99.5))
        picture = cv2.applyColorMap(_levels((values - low) / max(high - low, 1e-12)), cv2.COLORMAP_VIRIDIS)
        text = f"channel {channel}"
        if layer.filters is not None:
            weights, size_px = layer.filters[number], (len(picture), len(picture))
            square = _levels(0.5 + weights / max(2 * np.abs(weights).max(), 1e-12))
            square = cv2.resize(square, size_px, interpolation=cv2.INTER_NEAREST)[..., None].repeat(3, axis=2)
            picture = np.hstack([square, picture])
            text = f"filter {channel}: {name_filter(weights)}"
        panels.append((picture, text))
    count, size = f"the {len(panels)} of {layer.of} channels", "x".join(map(str, layer.size_hw))
    return f"{layer.name}: {count} that vary most and differ; {size} values each", panels


def _warm(grey: Array, evidence: Array) -> Array:
    strength = cv2.resize(evidence / max(evidence.max(), 1e-30), grey.shape[1::-1])
    share, warm = _HEAT_SHARE * strength[..., None], cv2.applyColorMap(_levels(strength), cv2.COLORMAP_INFERNO)
    return np.asarray((1 - share) * grey + share * warm, np.uint8)


def _outlined(plane: Array, least: float) -> Array:
    reached, picture = np.uint8(plane >= np.float32(least)), cv2.applyColorMap(_levels(plane), cv2.COLORMAP_INFERNO)
    outlines, _ = cv2.findContours(np.asarray(reached), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    return np.asarray(cv2.drawContours(picture, outlines, -1, _CONTOUR_BGR, 1 + max(plane.shape) // 800))


def _levels(values: Array) -> Array:
    """From 0..1 to 0..255."""
    return np.asarray(np.rint(255 * values.clip(0, 1)), np.uint8)
