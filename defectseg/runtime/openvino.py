"""Networks in OpenVINO, on a CPU."""

import functools
import logging
import math
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from queue import SimpleQueue
from typing import Any, Literal

import numpy as np
import openvino
from numpy.typing import NDArray

from defectseg import machine
from defectseg.errors import ModelError
from defectseg.machine import check_memory, cpu_flags, with_amx
from defectseg.model.info import ModelInfo
from defectseg.model.openvino_io import core, cores_and_precision, unmark
from defectseg.runtime.base import Answer, borrowed, memory_errors, wrong_size
from defectseg.runtime.cache import CompiledModels
from defectseg.runtime.doubling import double_by_convolution

log = logging.getLogger(__name__)

Precision = Literal["auto", "f32"]
_Value = tuple[str, int]  # an output of an operation: its name and number
Models = Callable[[tuple[int, int]], openvino.Model]  # the model for images of (H, W)

MOST_STREAMS = 16  # with more cores, each stream gets several, since each holds 50 to 600 MB of activations
_LOOPS = ("If", "Loop", "TensorIterator")
_KEPT_SIZES = 3  # compiled models; each holds another copy of the weights


class OpenVinoRuntime:
    """A Runtime around an OpenVINO model. Threads may call it in parallel.

    The model is compiled for each image size, which is 5 % faster and needs a third of the memory of one that is
    compiled for all sizes. One stream per core, each with one thread, is faster than one stream with all threads: by
    8 % on two cores with AVX512-BF16, by 12 % with AMX. The answers are the same bit for bit.

    Args:
        model: a model from `to_openvino`; or a function that gives the model for one size.
        info: its description: the class names, and the precision that it asks for.
        precision: auto is the fastest on this CPU, which may be bf16, unless the description asks for f32; f32 is for
            comparisons.
        workers: the number of streams, which share the cores; None for one per core.
        kept: the cache of compiled models; None: compile anew.
    """

    def __init__(
        self,
        model: openvino.Model | Models,
        info: ModelInfo,
        *,
        precision: Precision = "auto",
        workers: int | None = None,
        kept: CompiledModels | None = None,
    ) -> None:
        self.class_names = info.class_names
        hint = _hint(info, precision)
        cores = min(cores_and_precision()[0], machine.cores())
        self.name = name_of(info, precision)
        self.parallel = workers or min(cores, MOST_STREAMS)
        self.batch_px = 0
        options = {"NUM_STREAMS": self.parallel, "INFERENCE_NUM_THREADS": max(cores, self.parallel), **hint}
        if machine.most_cores:  # else each of the processes would pin its threads to the same cores, the first
            options["ENABLE_CPU_PINNING"] = False
        self._compiled = functools.lru_cache(_KEPT_SIZES)(functools.partial(_compiled, model, options, kept))
        self._lock = threading.Lock()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        """See Runtime."""
        with memory_errors(images.shape, of_export=True):
            return self._compiled_for(images.shape)(np.require(images, requirements=["C", "W"]))

    def prepare(self, size_hw: tuple[int, int]) -> None:
        """See PreparingRuntime."""
        threading.Thread(target=self._prepare, args=((1, 1, *size_hw),), name="prepare").start()

    def _prepare(self, shape: tuple[int, ...]) -> None:
        with suppress(Exception):  # the first call tells what is wrong
            self._compiled_for(shape)

    def _compiled_for(self, shape: tuple[int, ...]) -> "_Compiled":
        with self._lock:  # compiling uses all cores, so other threads lose nothing by waiting
            return self._compiled(shape)


def name_of(info: ModelInfo, precision: Precision = "auto") -> str:
    """The name of a runtime on this processor, for example 'openvino cpu int8 and bf16 with AMX'."""
    computed_in = _hint(info, precision).get("INFERENCE_PRECISION_HINT") or cores_and_precision()[1]
    is_int8 = info.export is not None and info.export.precision == "int8"
    return f"openvino cpu {with_amx(f'int8 and {computed_in}' if is_int8 else computed_in)}"


def _hint(info: ModelInfo, precision: Precision) -> dict[str, str]:
    in_f32 = precision == "f32" or (info.export is not None and info.export.float_layers == "f32")
    return {"INFERENCE_PRECISION_HINT": "f32"} if in_f32 else {}


def _compiled(
    model: openvino.Model | Models, options: Mapping[str, Any], kept: CompiledModels | None, shape: tuple[int, ...]
) -> "_Compiled":
    if kept is None:
        return _Compiled(_compile(model, options, shape))
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    form = f"{openvino.__version__} {sorted(capabilities)} {cpu_flags()} {dict(options)} {shape}"
    if content := kept.read(form):
        with suppress(RuntimeError):  # such as one of another build of OpenVINO
            # Bytes are copied; a tensor would not be, and freed too early.
            return _Compiled(core().import_model(content, "CPU", options))
    compiled = _compile(model, options, shape)
    kept.keep(form, lambda: compiled.export_model().getvalue())
    return _Compiled(compiled)


def _compile(
    model: openvino.Model | Models, options: Mapping[str, Any], shape: tuple[int, ...]
) -> openvino.CompiledModel:
    own = (model if isinstance(model, openvino.Model) else model((shape[2], shape[3]))).clone()
    wanted = openvino.PartialShape(list(shape))
    given = own.input(0).get_partial_shape()
    if not given.compatible(wanted):
        raise wrong_size(list(given)[2:], shape)
    own.reshape(wanted)
    check_memory(f"This model, for an image of {shape[2]}x{shape[3]}", _peak_bytes(own))
    double_by_convolution(own)
    try:
        return core().compile_model(own, "CPU", options)
    except RuntimeError:
        if not unmark(own):
            raise
    log.info("this processor cannot keep a few layers in float32, so they are in the precision of the others")
    return core().compile_model(own, "CPU", options)


def _peak_bytes(model: openvino.Model) -> int:
    """Memory of the values that a model of fixed shape holds at once, computed operation by operation.

    What does not depend on the image, as weights, is held all the time.

    Raises:
        ModelError: it depends on the content of the image.
    """
    held = peak = 0
    sizes, readers = dict[_Value, int](), dict[_Value, int]()  # of values that depend on the image
    for operation in model.get_ordered_ops():
        kind, name = operation.get_type_name(), operation.get_name()
        if kind in _LOOPS or any(output.get_partial_shape().is_dynamic for output in operation.outputs()):
            raise ModelError(
                f"This model takes as much memory as the image makes it take (in its {kind}). Export again."
            )
        inputs = [(value.get_node().get_name(), value.get_index()) for value in operation.input_values()]
        of_image = [value for value in inputs if value in readers]
        for index, output in enumerate(operation.outputs()):
            size = math.prod(output.get_shape()) * output.get_element_type().size
            held += size
            if of_image or kind == "Parameter":
                sizes[name, index], readers[name, index] = size, len(output.get_target_inputs())
        peak = max(peak, held)
        for value in of_image:
            readers[value] -= 1
            held -= 0 if readers[value] else sizes[value]
    return peak


class _Compiled:
    """A model compiled for one shape, with a pool of requests that grows to the number of parallel calls."""

    def __init__(self, model: openvino.CompiledModel) -> None:
        self._model = model
        self._shapes = [tuple(output.get_shape()) for output in model.outputs]
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        # The request writes into new arrays, since the next call overwrites its own buffers.
        probabilities, gate = (np.empty(shape, np.float32) for shape in self._shapes)
        with borrowed(self._idle, self._model.create_infer_request) as request:
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.set_output_tensor(0, openvino.Tensor(probabilities, shared_memory=True))
            request.set_output_tensor(1, openvino.Tensor(gate, shared_memory=True))
            request.infer()
        return Answer(probabilities, gate)
