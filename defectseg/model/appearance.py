"""How the images look that a model was trained on, and how far from that an image looks."""

from collections.abc import Callable
from functools import cached_property, partial
from typing import Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BeforeValidator, Field, PlainSerializer, model_validator

from defectseg.config import Frozen, Share
from defectseg.image.appearance import NUMBERS, VERSION, Readable, readable

Floats = NDArray[np.float64]

LEAST_GROUPS = 30  # with fewer, nobody knows what is usual, and no image is flagged
_NOTABLE = 2.0  # deviations of a readable number from the training images, to be named
_ALSO = 1.5  # of the sharpness in the other direction


def _parse(text: Any) -> Any:
    return [float(number) for number in text.split()] if isinstance(text, str) else text


def _join(numbers: tuple[float, ...]) -> str:
    return " ".join(f"{number:.6g}" for number in numbers)


Numbers = Annotated[tuple[float, ...], BeforeValidator(_parse), PlainSerializer(_join)]
"""Many numbers, stored as one line of text."""


class Appearance(Frozen):
    """How training images look: the statistics of their descriptions, see `appearance_of`.

    Attributes:
        version: of the description.
        images, groups: how many images they had, of how many groups.
        mean: of the groups, (45,), for an image without a defect.
        defect_shift: what a defect adds on average, (45,).
        between, within: covariances (45, 45), row by row, of the groups' true means, and of images around the mean of
            their group. An image of a new group has the covariance `between + within`.
        distances: quantiles 0, 1, ... 100 % of the distances of training images, each from the others' groups.
        threshold: an image that is farther is flagged; None if there are fewer than LEAST_GROUPS groups.
        defective: mean over the groups of the share of images with a defect.
        defective_spread: standard deviation of that share between groups.
    """

    version: int = VERSION
    images: Annotated[int, Field(ge=1)]
    groups: Annotated[int, Field(ge=1)]
    mean: Numbers
    defect_shift: Numbers
    between: Numbers
    within: Numbers
    distances: Numbers
    threshold: float | None
    defective: Share
    defective_spread: Annotated[float, Field(ge=0)]

    @model_validator(mode="after")
    def _fits(self) -> "Appearance":
        sizes = {"mean": NUMBERS, "defect_shift": NUMBERS, "between": NUMBERS**2, "within": NUMBERS**2}
        if self.version != VERSION:
            return self
        for name, size in {**sizes, "distances": 101}.items():
            if len(getattr(self, name)) != size:
                raise ValueError(f"{name}: {len(getattr(self, name))} numbers, expected {size}")
        try:
            np.linalg.cholesky(self.covariance())
        except np.linalg.LinAlgError:
            raise ValueError("between and within are no covariances") from None
        return self

    @property
    def state(self) -> str:
        """Whether images are flagged: judged or uncalibrated."""
        return "uncalibrated" if self.threshold is None else "judged"

    def covariance(self, images: float = 1) -> Floats:
        """Covariance (45, 45) of the mean of so many images of a new group."""
        between, within = (np.array(numbers).reshape(NUMBERS, NUMBERS) for numbers in (self.between, self.within))
        return np.asarray(between + within / images)

    def distance(self, appearance: ArrayLike, *, has_defect: float) -> float:
        """The Mahalanobis distance of an image from the training images."""
        return float(np.linalg.norm(self._whiten(np.asarray(appearance) - self.expected(has_defect=has_defect))))

    def expected(self, *, has_defect: float) -> Floats:
        """The mean description (45,) of images of which this share, 0..1, has a defect."""
        return np.asarray(np.array(self.mean) + has_defect * np.array(self.defect_shift))

    def rank(self, distance: float) -> float:
        """The share of training images at a smaller distance, 0..1."""
        return float(np.interp(distance, self.distances, np.linspace(0, 1, 101), left=0, right=1))

    def is_unlike(self, distance: float) -> bool:
        """Whether an image at this distance is flagged."""
        return self.threshold is not None and distance > self.threshold

    def in_words(self, appearance: ArrayLike, *, has_defect: float, images: float = 1) -> str:
        """What is different about an image, or about the mean of several of a group, in words."""
        expected = self.expected(has_defect=has_defect)
        deviations = np.sqrt(np.diag(self.covariance(images)))
        now, usual = readable(appearance), readable(expected)
        low, high = (readable(expected + sign * deviations) for sign in (-1, 1))
        words = _words(now, usual, [abs(above - below) / 2 for below, above in zip(low, high, strict=True)])
        return ", ".join(words) or "another texture"

    @cached_property
    def _whiten(self) -> Callable[[Floats], Floats]:
        # A function, since two descriptions that keep arrays cannot be compared.
        return partial(np.matmul, np.linalg.inv(np.linalg.cholesky(self.covariance())))


def _words(now: Readable, usual: Readable, spreads: list[float]) -> list[str]:
    z = Readable(*((a - b) / max(s, 1e-9) for a, b, s in zip(now, usual, spreads, strict=True)))
    words = []
    if abs(z.brightness) > _NOTABLE:
        change = 100 * (now.brightness / max(usual.brightness, 1e-9) - 1)
        words.append(f"{'brighter' if change > 0 else 'darker'} by {abs(change):.0f} %")
    along, across = z.sharpness_along, z.sharpness_across
    for sign, word in ((-1, "blurred"), (1, "sharper or noisier")):
        (lower, _), (higher, direction) = sorted(((sign * along, "along"), (sign * across, "across")))
        if higher > _NOTABLE:
            words.append(word if lower > _ALSO else f"{word} {direction}")
    if abs(z.contrast) > _NOTABLE:
        words.append("more contrast" if z.contrast > 0 else "less contrast")
    if abs(z.black_percent) > _NOTABLE:
        words.append("more black" if z.black_percent > 0 else "less black")
    return words


def comparable(appearance: Appearance | None) -> Appearance | None:
    """The same; None if another version of defectseg describes images by other numbers."""
    return appearance if appearance is not None and appearance.version == VERSION else None
