"""What every runtime offers, whatever library computes behind it."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Answer:
    """What the network says of N images of one size.

    Attributes:
        probabilities: float32 (N, C, H, W), 0..1, classes independent.
        gate: float32 (N, C), 0..1: does the class occur in the image at all.
    """

    probabilities: NDArray[np.float32]
    gate: NDArray[np.float32]


class Runtime(Protocol):
    """A loaded network and nothing else. Normalisation, padding to the stride and sigmoid are inside."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names; name n - 1 belongs to ClassId n."""

    @property
    def name(self) -> str:
        """For people and run.json: the library, the device, the precision."""

    @property
    def parallel(self) -> int:
        """How many calls at once, from as many threads, make the best of the machine; 1 or more."""

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """Answer for images (N, 1, H, W), grey levels 0..255; H and W of any size.

        Raises:
            ResourceError: memory ran out.
        """
