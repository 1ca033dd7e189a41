"""Where the time of a prediction run goes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

STAGES = ("decode", "infer", "postprocess", "render", "write")


class StageTimes:
    """Time spent in each stage, added up over all threads; stages overlap, so the sum exceeds the time on the clock.

    Attributes:
        seconds: for each of STAGES, the time in it.
        counts: for each of STAGES, how often it was entered: once for an image, but `infer` once for each call of the
            network, that is for each tile and view.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STAGES, 0.0)
        self.counts: dict[str, int] = dict.fromkeys(STAGES, 0)
        self._lock = Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count one more pass through a stage."""
        with self._lock:
            self.seconds[stage] += seconds
            self.counts[stage] += 1

    @property
    def mean_ms(self) -> dict[str, float]:
        """For each of STAGES, milliseconds for one pass; 0 where there was none."""
        return {stage: 1000 * self.seconds[stage] / max(1, self.counts[stage]) for stage in STAGES}


@contextmanager
def timed(times: StageTimes | None, stage: str) -> Iterator[None]:
    """Add the time spent inside to a stage, where somebody wants to know; not that of a pass that fails."""
    begun = time.perf_counter()
    yield
    if times is not None:
        times.add(stage, time.perf_counter() - begun)
