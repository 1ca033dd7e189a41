"""The pictures that explain an image, with their captions."""

from collections.abc import Mapping, Sequence

import cv2
import numpy as np

from defectseg.explain.filters import name_filter
from defectseg.explain.layers import Array, Layer
from defectseg.image.overlay import legend_text
from defectseg.inference.predictor import Prediction
from defectseg.inference.tiles import ImageAnswer
from defectseg.model.info import Thresholds

Section = tuple[str, Sequence[tuple[Array, str]]]
"""A step on the way of an image through the network: heading, and pictures, BGR uint8 (h, w, 3), with captions."""

_CONTOUR_BGR, _HEAT_SHARE = (255, 255, 0), 0.65


def make_sections(
    found: Prediction, answer: ImageAnswer, layers: Sequence[Layer], evidence: Mapping[int, Array], limits: Thresholds
) -> list[Section]:
    """The way of an image through a network to the answer of `predict`.

    Args:
        found: the image, and what was found.
        answer: the probabilities.
        layers, evidence: see `look_inside`; the classes with evidence are explained.
        limits: the thresholds of the model.
    """
    grey, speaks, probable = cv2.cvtColor(found.image, cv2.COLOR_GRAY2BGR), [], []
    for index, values in evidence.items():
        name = legend_text(found.class_names[index], index + 1)
        strength = cv2.resize(values / max(values.max(), 1e-30), grey.shape[1::-1])
        share, warm = _HEAT_SHARE * strength[..., None], cv2.applyColorMap(_levels(strength), cv2.COLORMAP_INFERNO)
        told = "" if values.any() else ": nothing at this stage speaks for it"
        speaks.append((((1 - share) * grey + share * warm).astype(np.uint8), f"{name}{told}"))
        plane, least, gate = answer.probabilities[index], limits.pixel[index], answer.gate[index]
        told = f"up to {plane.max():.2f}, threshold {least:g}; gate {gate:.2f}, threshold {limits.gate[index]:g}"
        told += f"; mask {np.count_nonzero(found.masks[index]):,} px"
        probable.append((_outlined(plane, least), f"{name}: {told}"))
    return [
        (
            "The image and the answer",
            [(grey, "what the network gets"), (found.overlay()[: len(grey)], "what predict answers")],
        ),
        *map(_section, layers),
        (f"What speaks for a class: Grad-CAM ({layers[-2].name})", speaks),
        ("From probabilities to the mask", probable),
    ]


def _section(layer: Layer) -> Section:
    pictures = [cv2.applyColorMap(_levels(_spread(values)), cv2.COLORMAP_VIRIDIS) for values in layer.maps]
    captions = [f"channel {channel}" for channel in layer.channels]
    if layer.filters is not None:
        weights = [0.5 + one / max(2 * np.abs(one).max(), 1e-12) for one in layer.filters]
        squares = [
            cv2.resize(_levels(one), (len(pictures[0]),) * 2, interpolation=cv2.INTER_NEAREST) for one in weights
        ]
        pairs = zip(squares, pictures, strict=True)
        pictures = [np.hstack([cv2.cvtColor(square, cv2.COLOR_GRAY2BGR), picture]) for square, picture in pairs]
        captions = [f"filter {n}: {name_filter(one)}" for n, one in zip(layer.channels, layer.filters, strict=True)]
    size, shown = "x".join(map(str, layer.size_hw)), len(pictures)
    title = f"{layer.name}: {shown} of {layer.of} channels, that vary most and differ; {size} values each"
    return title, list(zip(pictures, captions, strict=True))


def _outlined(plane: Array, least: float) -> Array:
    """Probabilities as colours, with a line around those that reach the threshold."""
    reached = (plane >= np.float32(least)).astype(np.uint8)
    outlines, _ = cv2.findContours(reached, cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    picture = cv2.applyColorMap(_levels(plane), cv2.COLORMAP_INFERNO)
    return cv2.drawContours(picture, outlines, -1, _CONTOUR_BGR, 1 + max(plane.shape) // 800)


def _spread(values: Array) -> Array:
    """A map whose lowest and highest 0.5 % are 0 and 1."""
    low, high = np.percentile(values, (0.5, 99.5))
    return ((values - low) / max(high - low, 1e-12)).clip(0, 1)


def _levels(values: Array) -> Array:
    return np.rint(255 * values).astype(np.uint8)
