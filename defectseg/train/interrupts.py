"""SIGTERM and Ctrl-C, kept until the end of a training step, when the state of the run is whole."""

import logging
import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from accelerate import Accelerator

log = logging.getLogger(__name__)

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# One request may come twice: SLURM signals torchrun and its processes alike, and torchrun passes it on to them.
_ONE_REQUEST_S = 1.0


def leave_signals_to_main(worker_id: int) -> None:
    """To be called in each worker of a data loader: whoever stops a whole group of processes (torchrun, SLURM, Ctrl-C)
    signals the workers too, and without them the main process could not end its step and save it. What the main
    process itself sends, as it does when it ends, still ends them.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_when_main_says_so, daemon=True).start()


def _end_when_main_says_so() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)  # as PyTorch's own handler, which tells the two kinds apart likewise; another code would be an error


class Interrupts:
    """Remembers a first signal; another one, a second or more later, interrupts at once."""

    def __init__(self) -> None:
        self._came_s: float | None = None

    @contextmanager
    def held(self) -> Iterator[None]:
        """Catch the signals inside the block; elsewhere, and outside the main thread, they do what they did."""
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
        """Whether any process has been asked to stop; all processes must ask together."""
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
