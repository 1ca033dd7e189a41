"""The network in OpenVINO, on a processor."""

import functools
import logging
import threading
from collections.abc import Callable, Mapping
from queue import Empty, SimpleQueue
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray
from openvino import opset8

from defectseg.model.info import ModelInfo
from defectseg.model.openvino_io import core, unmark
from defectseg.runtime.base import Answer, memory_errors, wrong_size

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
        in_f32 = precision == "f32" or (info.export is not None and info.export.float_layers == "f32")
        hint = {"INFERENCE_PRECISION_HINT": "f32"} if in_f32 else {}
        cores, computed_in = _probe(tuple(hint.items()))
        is_int8 = info.export is not None and info.export.precision == "int8"
        self.name = f"openvino cpu {'int8 and ' if is_int8 else ''}{computed_in}"  # for example 'openvino cpu bf16'
        self.parallel = workers or min(cores, MOST_STREAMS)
        options = {"NUM_STREAMS": self.parallel, "INFERENCE_NUM_THREADS": max(cores, self.parallel), **hint}
        self._compiled = functools.lru_cache(_KEPT_SIZES)(functools.partial(_compile, model, options))
        self._lock = threading.Lock()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime."""
        with memory_errors(images.shape):
            with self._lock:  # compiling takes all cores in any case, so nothing is lost where others wait
                compiled = self._compiled(images.shape)
            return compiled(np.require(images, requirements=["C", "W"]))


def _compile(model: openvino.Model | Models, options: Mapping[str, Any], shape: tuple[int, ...]) -> "_Compiled":
    own = (model if isinstance(model, openvino.Model) else model((shape[2], shape[3]))).clone()
    wanted = openvino.PartialShape(list(shape))
    given = own.input(0).get_partial_shape()
    if not given.compatible(wanted):
        raise wrong_size(list(given)[2:], shape)
    own.reshape(wanted)
    try:
        return _Compiled(core().compile_model(own, "CPU", options))
    except RuntimeError:
        if not unmark(own):
            raise
    log.info("this processor cannot keep a few layers in float32, so they are in the precision of the others")
    return _Compiled(core().compile_model(own, "CPU", options))


class _Compiled:
    """A model compiled for one shape, with as many requests as were ever needed at once."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._model = model
        self._shapes = [tuple(output.get_shape()) for output in model.outputs]
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        # The request writes to arrays of the caller's own: its buffers are overwritten by the next call.
        probabilities, gate = (np.empty(shape, np.float32) for shape in self._shapes)
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        try:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.set_output_tensor(0, openvino.Tensor(probabilities, shared_memory=True))
            request.set_output_tensor(1, openvino.Tensor(gate, shared_memory=True))
            request.infer()
        finally:
            self._idle.put(request)
        return Answer(probabilities, gate)


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
