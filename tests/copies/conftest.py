from collections.abc import Callable, Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.copies.descriptors import Descriptors, describe


@pytest.fixture(scope="session")
def describe_pictures() -> Callable[..., Descriptors]:
    """Describes grey pictures."""

    def describe_them(pictures: Sequence[NDArray[np.uint8]]) -> Descriptors:
        descriptors = Descriptors(len(pictures))
        for index, picture in enumerate(pictures):
            descriptors[index] = describe(picture)
        return descriptors

    return describe_them
