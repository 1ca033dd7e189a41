"""The Python API: a loaded model for one image or many."""

import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from defectseg.errors import UsageError
from defectseg.image import rle
from defectseg.image.find import FoundImage
from defectseg.image.overlay import paint_prediction
from defectseg.image.read import DecodedImage, is_blank
from defectseg.inference.segment import Segmentation, segment_image
from defectseg.inference.settings import Settings
from defectseg.inference.stream import GivenImage, Segmented, Unreadable, decode, stream
from defectseg.model.info import ModelInfo
from defectseg.model.locate import model_paths
from defectseg.runtime.base import Runtime
from defectseg.runtime.load import load_runtime

Image = str | Path | NDArray[np.uint8] | NDArray[np.uint16]


@dataclass(frozen=True, eq=False, kw_only=True)
class Prediction(Segmentation):
    """The result for one image: the masks and regions that `predict` would write, and the model's answer.

    Attributes:
        class_names: C names; name n - 1 belongs to ClassId n.
        image: uint8 (H, W), grey, as the model saw it.
        masks: bool (C, H, W); classes may overlap.
        regions: of all classes, in the order of the classes, the largest first.
        class_map: uint8 (H, W): 0 sound, else the ClassId of the most probable class among those whose mask holds
            the pixel.
        sheet_score: see Segmentation.
        answer: see `probabilities` and `gate`.
        notes: what was changed or ignored when the image was read, for people to read.
    """

    class_names: tuple[str, ...]
    image: NDArray[np.uint8]
    notes: tuple[str, ...]

    @property
    def probabilities(self) -> NDArray[np.float32] | None:
        """float32 (C, H, W), 0..1, before any threshold; None without `keep_probabilities`."""
        return None if self.answer is None else self.answer.probabilities

    @property
    def gate(self) -> NDArray[np.float32] | None:
        """float32 (C,), 0..1: does the class occur in the image at all; None without `keep_probabilities`."""
        return None if self.answer is None else self.answer.gate

    @property
    def has_defect(self) -> bool:
        """Whether any region of any class was found."""
        return bool(self.regions)

    @property
    def is_blank(self) -> bool:
        """Whether nothing was found and the image is empty, as with the lamp off: the status `blank` of `predict`."""
        return not self.regions and is_blank(self.image)

    def overlay(self) -> NDArray[np.uint8]:
        """The picture that `predict` writes: uint8 (H + legend, W, 3), BGR, defects red; see paint_prediction."""
        return paint_prediction(self.image, self.masks, self.class_names)

    def run_lengths(self) -> dict[int, str]:
        """ClassId -> Severstal's EncodedPixels, for all classes; "" for an empty mask."""
        return {class_id: rle.encode(mask) for class_id, mask in enumerate(self.masks, start=1)}


class Predictor:
    """A model: `Predictor.load("model.safetensors")("sheet.jpg")`, or `many` for many images.

    Several threads may call one Predictor. A pickled Predictor has the path of its model file and its options, not the
    weights: another process loads the model at its first call.
    """

    def __init__(
        self, load: "partial[tuple[Runtime, ModelInfo]]", *, keep_probabilities: bool = True, **settings: Any
    ) -> None:
        """Use Predictor.load."""
        self._load = load
        self._settings = settings
        self._keep_probabilities = keep_probabilities
        self._loaded: tuple[Runtime, Settings] | None = None
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
            tta: test-time augmentation: none, flips or turns; None: the model's own.
            workers: images that the network computes at once. None: one, on all cores, which is fastest for a single
                image. For `many` images on a CPU, one worker per core is up to a tenth faster.
            bit_depth: bits of the values of 16-bit files and uint16 arrays, 9 to 16; None: as the TIFF tag of the file
                says, else as the model was trained, else 16.
            keep_probabilities: return probabilities and gate. Without them, a very large image takes less memory.

        Raises:
            ModelError: a file cannot be used.
            MissingExtraError: the runtime is not installed.
            UsageError, ResourceError: unknown device, runtime, augmentation or bit depth.
        """
        paths = tuple(model.absolute() for model in model_paths(path))  # another process may run in another folder
        load = partial(load_runtime, paths, device, runtime, workers=1 if workers is None else workers)
        predictor = cls(load, keep_probabilities=keep_probabilities, tta=tta, bit_depth=bit_depth)
        predictor._model()
        return predictor

    @property
    def class_names(self) -> tuple[str, ...]:
        """C names; name n - 1 belongs to ClassId n."""
        return self._model()[0].class_names

    @property
    def parallel(self) -> int:
        """How many calls at once, from as many threads, use the machine best."""
        return self._model()[0].parallel

    def __call__(self, image: Image) -> Prediction:
        """Find the defects in one image of any size.

        Args:
            image: the path of an image file; or an array (H, W), (H, W, 3) or (H, W, 4) of uint8, or of uint16 with
                the full range of the bit depth. The colours are in the order of cv2.imread: blue, green, red, alpha.
                Arrays become grey as files do, see defectseg.image.read.decode_bytes.

        Raises:
            ImageError: the file cannot be read completely, the array is not an image, or a value is beyond the bit
                depth.
            UsageError: neither a path nor an array.
            ModelError: the network answers with NaN.
            ResourceError: memory ran out.
        """
        runtime, settings = self._model()
        decoded = decode(_found(image), settings)
        found = segment_image(runtime, decoded.pixels, settings, keep_answer=self._keep_probabilities)
        return _prediction(runtime, decoded, found)

    def many(self, images: Iterable[Image]) -> Generator[Prediction | Unreadable, None, None]:
        """Find the defects in many images; reading, network and post-processing overlap.

        Args:
            images: as for a single call; read a bounded number ahead.

        Yields:
            for each image, in order, its Prediction, or Unreadable with the reason.

        Raises:
            UsageError, ModelError: as for a single call.
        """
        runtime, settings = self._model()
        found = (_found(image, f"image {number}") for number, image in enumerate(images))

        def predict(one: Segmented) -> Prediction:
            return _prediction(runtime, one.decoded, one.segmentation)

        with closing(stream(found, runtime, settings, predict, keep_answers=self._keep_probabilities)) as results:
            yield from results

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(type(self), self._load, keep_probabilities=self._keep_probabilities, **self._settings), ()

    def _model(self) -> tuple[Runtime, Settings]:
        """The runtime and the settings, loaded at the first call.

        An error while a Predictor is unpickled would end the worker of a pool, and the pool would wait forever.
        """
        with self._loading:
            if self._loaded is None:
                runtime, info = self._load()
                self._loaded = runtime, Settings.of(info, **self._settings)
            return self._loaded


def _prediction(runtime: Runtime, decoded: DecodedImage, found: Segmentation) -> Prediction:
    return Prediction(**vars(found), class_names=runtime.class_names, image=decoded.pixels, notes=decoded.notes)


def _found(image: object, name: str = "image") -> FoundImage:
    """The image of an argument. An array is copied, since the caller may reuse it for the next image."""
    if isinstance(image, str | Path):
        return FoundImage(str(image), str(image))
    if isinstance(image, np.ndarray):
        return GivenImage(name, name, array=image.copy())
    raise UsageError(
        f"an image is given as {type(image).__name__}; expected a path or a numpy array. "
        "A PIL image is turned into one by numpy.asarray(image.convert('L')); many() takes several."
    )
