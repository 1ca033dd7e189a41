"""The Python API: a loaded model that is called with one image after another."""

import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import ImageError, ModelError, UsageError
from defectseg.files import file_sha256
from defectseg.image import read as image_files
from defectseg.image import rle
from defectseg.image.overlay import paint_prediction
from defectseg.image.read import DecodedImage, is_blank, to_grey
from defectseg.image.regions import Region
from defectseg.inference.segment import segment, segment_image
from defectseg.inference.tiles import predict_image
from defectseg.inference.views import with_tta
from defectseg.model.info import OPENVINO_SUFFIX, ModelInfo
from defectseg.model.locate import model_paths
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime

_GIVEN_ARRAY = "image"  # how messages name an image that has no path


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a model says of one image: the masks and regions that `predict` would write, and what they come from.

    Attributes:
        class_names: C names; name n - 1 belongs to ClassId n.
        image: uint8 (H, W), grey, as the model saw it.
        masks: bool (C, H, W); classes may overlap.
        regions: of all classes, in the order of the classes, the largest first.
        class_map: uint8 (H, W): 0 sound, else the ClassId of the most probable class among those whose mask holds
            the pixel.
        probabilities: float32 (C, H, W), 0..1, before any threshold; None where they were not to be kept.
        gate: float32 (C,), 0..1: does the class occur in the image at all; None where probabilities are.
        notes: what was changed in the image as it was read, in words for people.
    """

    class_names: tuple[str, ...]
    image: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    regions: tuple[Region, ...]
    class_map: NDArray[np.uint8]
    probabilities: NDArray[np.float32] | None
    gate: NDArray[np.float32] | None
    notes: tuple[str, ...]

    @property
    def has_defect(self) -> bool:
        """Whether any region of any class was found."""
        return bool(self.regions)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was found because the image shows nothing, as with the lamp off: the status `blank`."""
        return not self.regions and is_blank(self.image)

    def overlay(self) -> NDArray[np.uint8]:
        """The picture that `predict` writes: uint8 (H + legend, W, 3), BGR, defects red; see paint_prediction."""
        return paint_prediction(self.image, self.masks, self.class_names)

    def run_lengths(self) -> dict[int, str]:
        """ClassId -> Severstal's EncodedPixels, "" where there is nothing; all classes are in it."""
        return {class_id: rle.encode(mask) for class_id, mask in enumerate(self.masks, start=1)}


@dataclass(frozen=True)
class _Source:
    """What a Predictor is loaded from, here and again in another process.

    Attributes:
        paths: model files, absolute, since another process may run in another folder.
        sha256: of each of their files, when the Predictor was loaded.
        device, runtime, tta, workers: as for Predictor.load.
    """

    paths: tuple[Path, ...]
    sha256: dict[Path, str]
    device: str
    runtime: str
    tta: str | None
    workers: int | None

    def load(self) -> Runtime:
        return with_tta(load_runtime(self.paths, self.device, self.runtime, workers=self.workers), self.tta)

    def check_unchanged(self) -> None:
        """Raise ModelError where a file is no longer what it was."""
        for path, sha256 in self.sha256.items():
            if _sha256(path) != sha256:
                raise ModelError(f"{path}: has changed since this Predictor was loaded. Load it again.")


class Predictor:
    """A model, called with an image at a time: `Predictor.load("model.safetensors")("sheet.jpg")`.

    Threads may call one Predictor at once; how many calls gain from it is `parallel`. A pickled Predictor holds the
    path of its model file and its options, not the model: another process loads it at the first call there, and
    refuses a file that has changed meanwhile.
    """

    def __init__(
        self, source: _Source, runtime: Runtime, *, keep_probabilities: bool, bit_depth: int | None = None
    ) -> None:
        """Use Predictor.load."""
        self._source = source
        self._bit_depth = bit_depth
        self._keep_probabilities = keep_probabilities
        self._loaded: Runtime | None = runtime
        self._loading = threading.Lock()

    @classmethod
    def load(
        cls,
        path: str | Path,
        *,
        device: str = "auto",
        runtime: str = "auto",
        tta: str | None = None,
        workers: int | None = None,
        bit_depth: int | None = None,
        keep_probabilities: bool = True,
    ) -> Self:
        """Load a model.

        Args:
            path: a model file (bundle or export), the run folder of `train`, or several, comma-separated, whose
                answers are averaged: as MODEL of `defectseg predict`.
            device: auto, cpu, cuda, cuda:N or mps.
            runtime: auto, torch, openvino or onnx; auto takes torch on a GPU and openvino on a CPU.
            tta: test-time augmentation: none, flips or turns; None for the model's own.
            workers: how many calls at once to prepare for; None for what suits the machine.
            bit_depth: how many bits the values of 16-bit files and uint16 arrays have, 9 to 16; None: as the TIFF tag
                of the file says, else as the model was trained, else 16.
            keep_probabilities: give probabilities and gate along. Without them, a very large image takes less memory.

        Raises:
            ModelError: a file cannot be used.
            MissingExtraError: the runtime is not installed.
            UsageError, ResourceError: there is no such device, runtime, kind of augmentation or bit depth.
        """
        if bit_depth is not None and not 9 <= bit_depth <= 16:
            raise UsageError(f"bit_depth={bit_depth}: expected 9 to 16, the bits that 16-bit values have.")
        paths = tuple(model.absolute() for model in model_paths(path))
        source = _Source(paths, {}, device, runtime, tta, workers)
        loaded = source.load()
        source.sha256.update({file: _sha256(file) for model in paths for file in _files_of(model)})
        return cls(source, loaded, keep_probabilities=keep_probabilities, bit_depth=bit_depth)

    @property
    def info(self) -> ModelInfo:
        """The description in the model file."""
        return self._runtime().info

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names; name n - 1 belongs to ClassId n."""
        return self.info.class_names

    @property
    def runtime(self) -> str:
        """The library, the device and the precision, for people."""
        return self._runtime().name

    @property
    def parallel(self) -> int:
        """How many calls at once, from as many threads, make the best of the machine."""
        return self._runtime().parallel

    def __call__(self, image: str | Path | NDArray[np.uint8] | NDArray[np.uint16]) -> Prediction:
        """Find the defects in one image of any size.

        Args:
            image: the path of an image file; or an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or of uint16 with
                the full range of the bit depth, its colours in the order that cv2.imread gives: blue, green, red,
                alpha. Arrays become grey as files do, see defectseg.image.read.decode_bytes.

        Raises:
            ImageError: the file cannot be read whole, the array is not an image, or a value is beyond the bit depth.
            UsageError: neither a path nor an array.
            ModelError: the network answers with something that is not a number.
            ResourceError: memory ran out.
        """
        runtime = self._runtime()
        decoded = _decode(image, self._bit_depth, runtime.info.recipe.data.bit_depth)
        thresholds = runtime.info.thresholds
        probabilities = gate = None
        if self._keep_probabilities:
            prediction = predict_image(runtime, decoded.pixels)
            probabilities, gate = prediction.probabilities, prediction.gate
            found = segment(prediction, thresholds)
        else:
            found = segment_image(runtime, decoded.pixels, thresholds)
        return Prediction(
            class_names=runtime.info.class_names,
            image=decoded.pixels,
            masks=found.masks,
            regions=found.regions,
            class_map=found.class_map,
            probabilities=probabilities,
            gate=gate,
            notes=decoded.notes,
        )

    def __repr__(self) -> str:
        return f"Predictor({', '.join(map(str, self._source.paths))!r})"

    def __getstate__(self) -> dict[str, Any]:
        return {
            "source": self._source,
            "keep_probabilities": self._keep_probabilities,
            "bit_depth": self._bit_depth,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._source = state["source"]
        self._keep_probabilities = state["keep_probabilities"]
        self._bit_depth = state["bit_depth"]
        self._loaded = None
        self._loading = threading.Lock()

    def _runtime(self) -> Runtime:
        """The runtime; in a process that got the Predictor pickled, loaded now.

        Not while it is unpickled: a pool's worker that fails there takes its task along, and the pool waits for ever.
        """
        with self._loading:
            if self._loaded is None:
                self._source.check_unchanged()
                self._loaded = self._source.load()
            return self._loaded


def _decode(image: object, bit_depth: int | None, model_bit_depth: int | None) -> DecodedImage:
    if isinstance(image, str | Path):
        return image_files.decode(Path(image), bit_depth=bit_depth, model_bit_depth=model_bit_depth)
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"an image is given as {type(image).__name__}; expected a path or a numpy array. "
            "A PIL image is turned into one by numpy.asarray(image.convert('L'))."
        )
    if image.ndim not in (2, 3) or image.size == 0:
        raise ImageError(
            f"{_GIVEN_ARRAY}: an array of shape {image.shape}; expected (H, W), (H, W, 3) or (H, W, 4), not empty."
        )
    return to_grey(image, _GIVEN_ARRAY, bit_depth=model_bit_depth if bit_depth is None else bit_depth)


def _files_of(model: Path) -> Iterator[Path]:
    """The files that a model consists of: an OpenVINO model keeps its weights beside it."""
    yield model
    if model.suffix.lower() == OPENVINO_SUFFIX:
        yield model.with_suffix(".bin")


def _sha256(path: Path) -> str:
    try:
        return file_sha256(path)
    except OSError as error:
        raise ModelError(
            f"{path}: cannot be read ({error.strerror or error}). A Predictor needs its model file wherever it is sent."
        ) from error
