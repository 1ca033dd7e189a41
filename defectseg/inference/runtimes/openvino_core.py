"""OpenVINO's entry: one Core for the process, files read and written, and signals that stay deliverable.

OpenVINO's plugin for processors gives the thread that loads it another stack for signals, and takes it away again with
no regard to who has set one since. Where several plugins come and go, as with a Core of each caller's own, the thread
is left with a stack that is gone, and Ctrl-C ends in a segmentation fault. Signals reach the main thread; so whatever
loads plugins does it in another one.
"""

import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import openvino

from defectseg.errors import ModelError

Result = TypeVar("Result")


@functools.cache
def core() -> openvino.Core:
    """The Core of this process, with the plugin for processors loaded."""

    def load() -> openvino.Core:
        new = openvino.Core()
        new.get_property("CPU", "FULL_DEVICE_NAME")
        return new

    return away_from_signals(load)


def away_from_signals(work: Callable[[], Result], *, stop: Callable[[], object] | None = None) -> Result:
    """Call `work` in a thread of its own and return what it returns, or raise what it raises.

    Args:
        work: what may load OpenVINO's plugins.
        stop: called on Ctrl-C, to make `work` end soon; it is waited for in any case.
    """
    with ThreadPoolExecutor(1, thread_name_prefix="openvino") as pool:
        future = pool.submit(work)
        try:
            return future.result()
        except BaseException:
            if stop is not None and not future.done():
                stop()
            raise


def read_model(path: Path) -> openvino.Model:
    """Read an `.xml` with its `.bin`. Raises ModelError where OpenVINO cannot."""
    try:
        return core().read_model(path)
    except RuntimeError as error:
        raise ModelError(
            f"{path}: OpenVINO cannot read it; damaged, or of a newer version of OpenVINO. Export the model again."
        ) from error


def save_model(model: openvino.Model, path: Path) -> None:
    """Write an `.xml` with its `.bin`, in the precision that the model has. Raises RuntimeError, as on a full disk."""
    openvino.save_model(model, path, compress_to_fp16=False)
