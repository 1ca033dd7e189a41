"""Delays SIGTERM and Ctrl-C until the end of a training step, when the state of the run is consistent."""

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One request can arrive twice: SLURM signals torchrun and its processes, and torchrun forwards the signal to them.
_ONE_REQUEST_S = 1.0


def leave_signals_to_main(worker_id: int) -> None:
    """Make a data-loader worker ignore SIGTERM and Ctrl-C unless its parent sends them.

    torchrun, SLURM and Ctrl-C signal whole process groups. The main process needs its workers to finish the step and
    save. The parent itself still ends its workers with SIGTERM.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if sys.platform == "linux":  # others tell no sender of a signal, or cannot wait for one
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_says_so, daemon=True).start()


if sys.platform == "linux":

    def _end_when_main_says_so() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)  # like PyTorch's own handler; any other code counts as a crash


class Interrupts:
    """Records the first signal; a second one, at least a second later, interrupts at once."""

    def __init__(self) -> None:
        self._came_s: float | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Catch signals within the block. It has no effect outside the main thread."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._remember) for number in _SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def came(self, accelerator: Accelerator) -> bool:
        """Whether any process was signalled. All processes must call this together."""
        if accelerator.num_processes == 1:
            return self._came_s is not None
        if self._came_s is not None:
            accelerator.set_trigger()
        return bool(accelerator.check_trigger())

    def _remember(self, number: int, frame: FrameType | None) -> None:
        now_s = time.monotonic()
        if self._came_s is not None:
            if now_s - self._came_s >= _ONE_REQUEST_S:
                raise KeyboardInterrupt
            return
        self._came_s = now_s
        log.warning("stopping after this step; once more to stop at once")
