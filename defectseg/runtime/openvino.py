"""The network in OpenVINO, on a processor."""

import functools
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset8

from defectseg.errors import ModelError, ResourceError
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.model.openvino_io import core, read_model, unmark
from defectseg.runtime.base import Answer

log = logging.getLogger(__name__)

Precision = Literal["auto", "f32"]
Models = Callable[[tuple[int, int]], openvino.Model]  # the model for images of (H, W)

MOST_STREAMS = 16  # beyond that, a stream gets several cores: each holds activations of its own, 50 to 600 MB
_KEPT_SIZES = 3  # compiled models; each holds the weights once more


class OpenVinoRuntime:
    """A Runtime around a converted model; threads may call it at once.

    The model is compiled for each size of image, since it is 5 % quicker and needs a third of the memory of one that
    is compiled for all sizes. One stream for each core, each with one thread, is quicker than one stream with all
    threads: by 8 % on two cores with AVX512-BF16, 12 % with AMX. Answers are the same to the last bit.

    Args:
        model: see export.to_openvino; or, where it cannot take any size, a function that makes it for one.
        info: its description: the names of the classes, and what the model is to be computed in.
        precision: auto for what is quickest on this processor, which may be bf16, unless the description asks for
            more; f32 for comparisons.
        workers: number of streams, which share the cores; None for one for each core.
    """

    def __init__(
        self,
        model: openvino.Model | Models,
        info: ModelInfo,
        *,
        precision: Precision = "auto",
        workers: int | None = None,
    ) -> None:
        self.class_names = info.class_names
        self._model_for: Models = functools.partial(_same, model) if isinstance(model, openvino.Model) else model
        self._is_int8 = info.export is not None and info.export.precision == "int8"
        in_f32 = precision == "f32" or (info.export is not None and info.export.float_layers == "f32")
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if in_f32 else {}
        cores, self._precision = _probe(tuple(hint.items()))
        self._streams = workers or min(cores, MOST_STREAMS)
        self._options = {"NUM_STREAMS": self._streams, "INFERENCE_NUM_THREADS": max(cores, self._streams), **hint}
        self._sizes: OrderedDict[tuple[int, ...], _Compiled] = OrderedDict()
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """For example 'openvino cpu bf16'; of a quantised model 'openvino cpu int8 and bf16'."""
        return f"openvino cpu {'int8 and ' if self._is_int8 else ''}{self._precision}"

    @property
    def parallel(self) -> int:
        """See Runtime: the number of streams."""
        return self._streams

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime. Raises ModelError for a size that the model was not exported for."""
        with _told_what_ran_out(images.shape):
            return self._compiled(images.shape)(np.require(images, requirements=["C", "W"]))

    def _compiled(self, shape: tuple[int, ...]) -> "_Compiled":
        # Compiling takes all cores in any case, so that nothing is lost where others wait for the lock.
        with self._lock:
            compiled = self._sizes.pop(shape, None)
            if compiled is None:
                while len(self._sizes) >= _KEPT_SIZES:
                    self._sizes.popitem(last=False)
                compiled = self._compile(shape)
            self._sizes[shape] = compiled
            return compiled

    def _compile(self, shape: tuple[int, ...]) -> "_Compiled":
        model = self._model_for((shape[2], shape[3])).clone()
        wanted = openvino.PartialShape(list(shape))
        given = model.input(0).get_partial_shape()
        if not given.compatible(wanted):
            takes = "x".join(str(length) for length in list(given)[2:])
            raise ModelError(
                f"This model was exported for images of {takes} px, but was given {shape[2]}x{shape[3]}. "
                "Export it without a size."
            )
        model.reshape(wanted)
        try:
            return _Compiled(core().compile_model(model, "CPU", self._options))
        except RuntimeError:
            if not unmark(model):
                raise
        log.info("this processor cannot keep a few layers in float32 beside %s; all are in %s", *[self._precision] * 2)
        return _Compiled(core().compile_model(model, "CPU", self._options))


class _Compiled:
    """A model compiled for one shape, with as many requests as were ever needed at once."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._model = model
        self._shapes = [tuple(output.get_shape()) for output in model.outputs]
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        # The request writes to arrays of the caller's own: its buffers are overwritten by the next call.
        probabilities, gate = (np.empty(shape, np.float32) for shape in self._shapes)
        request = self._take()
        try:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.set_output_tensor(0, openvino.Tensor(probabilities, shared_memory=True))
            request.set_output_tensor(1, openvino.Tensor(gate, shared_memory=True))
            request.infer()
        finally:
            self._idle.put(request)
        return Answer(probabilities, gate)

    def _take(self) -> openvino.InferRequest:
        try:
            return self._idle.get_nowait()
        except Empty:
            return self._model.create_infer_request()


def load_openvino_runtime(path: Path, *, precision: Precision = "auto", workers: int | None = None) -> OpenVinoRuntime:
    """Load an exported `.xml`.

    Raises:
        ModelError: the file cannot be used.
    """
    info = read_model_info(path)
    return OpenVinoRuntime(read_model(path), info, precision=precision, workers=workers)


@functools.cache
def _probe(options: tuple[tuple[str, str], ...]) -> tuple[int, str]:
    """Cores that OpenVINO may use, hyper-threads not counted, and the precision that it computes in.

    It knows the cores of each system and the mask of the process; it tells of them when it has compiled something.
    """
    x = opset8.parameter([1, 1, 8, 8], np.float32)
    model = openvino.Model([opset8.relu(x)], [x])
    settings = {"PERFORMANCE_HINT": "LATENCY", "ENABLE_HYPER_THREADING": False, **dict(options)}
    compiled = core().compile_model(model, "CPU", settings)
    precision = compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
    cores: Any = compiled.get_property("INFERENCE_NUM_THREADS")
    return max(1, int(cores)), precision


def _same(model: openvino.Model, size_hw: tuple[int, int]) -> openvino.Model:
    return model


@contextmanager
def _told_what_ran_out(shape: tuple[int, ...]) -> Iterator[None]:
    """Turn what OpenVINO and numpy say when memory runs out into a ResourceError."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, MemoryError) and "bad_alloc" not in text and "allocat" not in text:
            raise
        raise ResourceError(
            f"Out of memory on {shape[0]} image(s) of {shape[2]}x{shape[3]}. Use fewer workers, or train with a "
            "smaller inference.tile_hw."
        ) from error
