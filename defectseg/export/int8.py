"""Quantisation of an OpenVINO model to 8-bit integers by NNCF, judged on labelled images with predict's settings."""

import io
import logging
import random
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import fmean, median
from typing import Any

import numpy as np
from numpy.typing import NDArray

from defectseg.data.folder import DataFolder, open_data_folder
from defectseg.data.split import SPLIT_NAME, leave_out_test, read_split
from defectseg.errors import DataError, ImageError, ModelError
from defectseg.evaluate.metrics import Counts, count_pairs, summarise
from defectseg.evaluate.score import Scored, score_images
from defectseg.export.parity import SEED, cut, pooled_dice
from defectseg.inference.segment import segment_image
from defectseg.inference.settings import Settings
from defectseg.model.info import ModelInfo
from defectseg.runtime.base import Answer, Runtime

log = logging.getLogger(__name__)

MAX_LOSS = 0.005  # of positive-pair Dice
CALIBRATION_IMAGES = 300  # NNCF's own default; more change nothing
VALIDATION_IMAGES = 300
RANKING_IMAGES = 8  # of the validation images; NNCF uses them once per layer to rank the layers
TIMED_RUNS = 9
_TELL_EVERY_S = 15.0
# NNCF judges with the other layers in fp32. In bf16, which processors prefer, int8 costs a little more: 0.003 of Dice
# on the one network where it was measured.
_SHARE_FOR_NNCF = 0.5

# Normalisation and resizing in DefectNetwork itself, outside the network with weights.
_OWN_OPERATIONS = r"__module\.network/.*"
_LAYERS = frozenset({"Convolution", "GroupConvolution", "ConvolutionBackpropData", "MatMul"})


@dataclass(frozen=True)
class LabelledImages:
    """Images to quantise with.

    Attributes:
        folder: the data folder.
        calibration: ImageIds that show the range of values inside the network.
        validation: ImageIds to measure the loss on, including clean ones.
        chosen_by: how the two were chosen, for people.
    """

    folder: DataFolder
    calibration: tuple[str, ...]
    validation: tuple[str, ...]
    chosen_by: str


@dataclass(frozen=True)
class Int8Cost:
    """What int8 costs in quality and gains in speed.

    Attributes:
        labelled_images: the number of images that it was measured on.
        positive_dice_fp32, positive_dice_int8: mean Dice of the pairs with a defect.
        kaggle_dice_fp32, kaggle_dice_int8: mean Dice of all pairs.
        mask_dice_int8: agreement of both models' masks, pooled.
        layers, layers_int8: the number of layers with weights, and of those in int8.
        ms_fp32, ms_int8: median time for one image on this machine, in the precision that it prefers.
    """

    labelled_images: int
    positive_dice_fp32: float
    positive_dice_int8: float
    kaggle_dice_fp32: float
    kaggle_dice_int8: float
    mask_dice_int8: float
    layers: int
    layers_int8: int
    ms_fp32: float
    ms_int8: float

    @property
    def loss(self) -> float:
        """Loss of positive-pair Dice; below 0 if int8 is better."""
        return self.positive_dice_fp32 - self.positive_dice_int8

    def check(self, *, what: str) -> None:
        """Raise ModelError if int8 loses more than MAX_LOSS; `what` is the file, for the error."""
        if not self.loss <= MAX_LOSS:
            raise ModelError(
                f"{what}: not written, since int8 loses {self.loss:.4f} of positive-pair Dice "
                f"({self.positive_dice_fp32:.4f} -> {self.positive_dice_int8:.4f} on {self.labelled_images} images), "
                f"where {MAX_LOSS:g} is allowed. Give a data folder with more images, or export without int8."
            )


def choose_images(data: Path, info: ModelInfo, model: Path, *, bit_depth: int | None = None) -> LabelledImages:
    """Choose images for calibration and for validation.

    They are the training images and the fold that the model held out, according to the split.csv beside the model or in
    the data folder. Without a split or a held-out fold, they are two halves with as many defects each. Images that
    either split puts into test are not used.

    Raises:
        DataError, LabelError: the data folder or the split cannot be used, or there is no defect to judge by.
    """
    folder = open_data_folder(data, class_names=info.class_names, bit_depth=bit_depth)
    rng = random.Random(SEED)  # noqa: S311  # chooses images, guards nothing
    splits = [path for place in (model.parent, data) if (path := place / SPLIT_NAME).is_file()]
    parts = [read_split(path, folder.image_ids) for path in splits]
    folder = leave_out_test(folder, *parts)
    folds = parts[0] if parts and info.fold is not None else {}
    listed = [image_id for image_id in folder.image_ids if image_id in folds]
    training = [image_id for image_id in listed if folds[image_id] not in (info.fold, "val")]
    held_out = [image_id for image_id in listed if folds[image_id] == info.fold]
    chosen_by = f"{(splits or [data])[0]}: calibrated on training images, judged on fold {info.fold} (held out)"
    if not training or not held_out:
        if len(folder.image_ids) < 2:
            raise DataError(f"{data}: int8 needs at least two images, one to calibrate on and one to judge by.")
        # Sorted by their classes, so that each half gets half of the images of every combination.
        ordered = sorted(rng.sample(folder.image_ids, len(folder.image_ids)), key=folder.classes_of, reverse=True)
        training, held_out = ordered[1::2], ordered[::2]
        chosen_by = "no split tells what the model held out: calibrated and judged on halves, which it may have seen"
    validation = _sample(held_out, VALIDATION_IMAGES, rng)
    if not any(folder.classes_of(image_id) for image_id in validation):
        raise DataError(f"{data}: no defect in {len(validation)} images to judge int8 on ({chosen_by}). Label more.")
    return LabelledImages(folder, _sample(training, CALIBRATION_IMAGES, rng), validation, chosen_by)


def _sample(image_ids: Sequence[str], count: int, rng: random.Random) -> tuple[str, ...]:
    return tuple(sorted(rng.sample(image_ids, min(count, len(image_ids)))))


def quantize(model: Any, info: ModelInfo, images: LabelledImages) -> Any:
    """Quantise an openvino.Model. NNCF returns layers that cost too much to floating point.

    NNCF aims at half of MAX_LOSS and may miss that, so measure the result.

    Args:
        model: in fp32; it is not changed.
        info: its description.
        images: for calibration and validation.

    Raises:
        DataError: no image can be read, or the model takes one size only and an image has another.
    """
    calibration = _usable(images.folder, images.calibration, info)
    # Only images with a defect count for the loss.
    wanted = [image_id for image_id in images.validation if images.folder.classes_of(image_id)]
    labelled = _usable(images.folder, wanted, info)
    if not calibration or not labelled:
        raise DataError(f"{images.folder.root}: the images for int8 cannot be read.")

    from defectseg.model.openvino_io import away_from_signals

    stopped = threading.Event()
    judge = Judge(info, images.folder, labelled, stopped)

    def tile(image_id: str) -> NDArray[np.uint8]:
        _stop_if(stopped)
        rng = random.Random(f"{SEED} {image_id}")  # noqa: S311  # chooses a window, guards nothing
        pixels = images.folder.decode(image_id, model_bit_depth=info.recipe.data.bit_depth).pixels
        return cut(pixels, info.recipe.inference.tile_hw, rng)[None, None]

    with redirect_stdout(io.StringIO()):  # NNCF draws bars, but stdout belongs to the result
        logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # it reports a missing GPU
        import nncf

        logging.getLogger("nncf").setLevel(logging.ERROR)  # nncf.set_log_level changes other handlers
        work = partial(
            nncf.quantize_with_accuracy_control,
            model,
            nncf.Dataset(calibration, tile),
            nncf.Dataset(labelled),
            judge,
            max_drop=MAX_LOSS * _SHARE_FOR_NNCF,
            drop_type=nncf.DropType.ABSOLUTE,
            subset_size=len(calibration),
            ignored_scope=nncf.IgnoredScope(patterns=[_OWN_OPERATIONS], validate=False),
            advanced_accuracy_restorer_parameters=nncf.AdvancedAccuracyRestorerParameters(
                ranking_subset_size=min(RANKING_IMAGES, max(1, len(labelled) // 2)), num_ranking_workers=1
            ),
        )
        return away_from_signals(work, stop=stopped.set)


def _usable(folder: DataFolder, image_ids: Iterable[str], info: ModelInfo) -> list[str]:
    """The images that can be read. Raises DataError if one does not have the only size that the export takes."""
    size_hw = None if info.export is None else info.export.size_hw
    usable = []
    for image_id in image_ids:
        try:
            pixels = folder.decode(image_id, model_bit_depth=info.recipe.data.bit_depth).pixels
        except ImageError as error:
            log.warning("left out: %s", error)
            continue
        if size_hw is not None and pixels.shape != size_hw:
            raise DataError(
                f"{folder.image_path(image_id)}: {pixels.shape[0]}x{pixels.shape[1]} px, but the export is to "
                f"take {size_hw[0]}x{size_hw[1]} only. Choose another size, or none."
            )
        usable.append(image_id)
    return usable


class Judge:
    """Tells NNCF the positive-pair Dice of each model that it tries, and logs the progress now and then.

    All images are judged in the views of `predict`. NNCF only ranks its layers with a part of them, for which a single
    view is enough and takes a quarter of the time or less.
    """

    def __init__(self, info: ModelInfo, folder: DataFolder, labelled: Sequence[str], stopped: threading.Event) -> None:
        self.info = info
        self.folder = folder
        self.labelled = labelled
        self.stopped = stopped
        self.trials = 0
        self.spoke = time.monotonic()

    def __call__(self, compiled: Any, image_ids: Iterable[str]) -> tuple[float, list[float]]:
        """The Dice of an openvino.CompiledModel over these images, and for each of them."""
        image_ids = list(image_ids)
        settings = Settings.of(self.info, tta=None if len(image_ids) == len(self.labelled) else "none")
        runtime = _CompiledRuntime(compiled, self.info.class_names)
        visitors = (lambda scored: _stop_if(self.stopped),)
        counts = score_images(runtime, self.folder, image_ids, settings, visitors=visitors).counts
        dice = _positive_dice(counts)
        self.trials += 1
        if time.monotonic() - self.spoke >= _TELL_EVERY_S:
            self.spoke = time.monotonic()
            log.info("quantising: trial %d, positive-pair Dice %.4f on %d images", self.trials, dice, len(image_ids))
        return dice, [_positive_dice(counts, image_id) for image_id in image_ids]


def _positive_dice(counts: Counts, image_id: str | None = None) -> float:
    """Mean Dice of the pairs with a defect, in all images or in one; 1 if there is no such pair."""
    values = [pair.dice for key, pair in counts.items() if pair.true_px and image_id in (None, key[0])]
    return fmean(values) if values else 1.0


def _stop_if(stopped: threading.Event) -> None:
    """Leave NNCF, which runs in another thread, after Ctrl-C."""
    if stopped.is_set():
        raise KeyboardInterrupt


@dataclass
class _CompiledRuntime:
    """A Runtime around an openvino.CompiledModel."""

    compiled: Any
    class_names: tuple[str, ...]
    name: str = "openvino, while quantising"
    parallel: int = 1
    batch_px: int = 0

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        answer = self.compiled(images)
        return Answer(answer["probabilities"], answer["gate"])


def measure(
    fp32: Runtime,
    quick: Runtime,
    int8: Runtime,
    info: ModelInfo,
    images: LabelledImages,
    typical: NDArray[np.uint8],
    layers: tuple[int, int],
) -> Int8Cost:
    """Measure the quality of int8 against fp32, and its speed against `quick`.

    Args:
        fp32, quick, int8: the runtimes; quick has the weights of fp32, but computes in the processor's precision.
        info: their description.
        images: labelled images to judge by.
        typical: an image (H, W) to measure the time on.
        layers: see `count_layers`.

    Raises:
        DataError: none of the images can be read.
    """
    folder, settings = images.folder, Settings.of(info)
    places = info.indices_of(folder.class_names)
    counts: Counts = {}
    agreement: Counts = {}

    def compare(scored: Scored) -> None:
        masks = segment_image(int8, scored.pixels, settings).masks[places]
        counts.update(count_pairs(scored.image_id, masks, scored.truth, scored.ignore))
        agreement.update(count_pairs(scored.image_id, masks, scored.masks))

    score = score_images(fp32, folder, images.validation, settings, visitors=(compare,))
    for one in score.unreadable:
        log.warning("left out: %s", one.message)
    before, after = (summarise(dict(sorted(part.items())), folder.class_names) for part in (score.counts, counts))
    ms_fp32, ms_int8 = median_ms([quick, int8], typical)
    return Int8Cost(
        labelled_images=before.images,
        positive_dice_fp32=before.positive_dice or 0.0,
        positive_dice_int8=after.positive_dice or 0.0,
        kaggle_dice_fp32=before.kaggle_dice,
        kaggle_dice_int8=after.kaggle_dice,
        mask_dice_int8=pooled_dice(agreement),
        layers=layers[0],
        layers_int8=layers[1],
        ms_fp32=ms_fp32,
        ms_int8=ms_int8,
    )


def median_ms(runtimes: Sequence[Runtime], image: NDArray[np.uint8]) -> list[float]:
    """Median time of each runtime for one image (H, W). They take turns, so that other work affects all of them."""
    taken_ms: list[list[float]] = [[] for _ in runtimes]
    for run in range(TIMED_RUNS + 1):
        for runtime, times in zip(runtimes, taken_ms, strict=True):
            start = time.perf_counter()
            runtime(image[None, None])
            if run:  # the first call compiles
                times.append(1000 * (time.perf_counter() - start))
    return [median(times) for times in taken_ms]


def count_layers(model: Any) -> tuple[int, int]:
    """The number of layers with weights in an openvino.Model, and of those with 8-bit weights."""
    types = [_type_of_weights(operation) for operation in model.get_ops() if operation.get_type_name() in _LAYERS]
    return sum(kind != "" for kind in types), sum(kind in ("i8", "u8") for kind in types)


def _type_of_weights(operation: Any) -> str:
    """The stored element type of a layer's weights; "" if its second operand is computed."""
    node = operation.input_value(1).get_node()
    while node.get_input_size():
        node = node.input_value(0).get_node()
    kind: str = node.get_element_type().get_type_name() if node.get_type_name() == "Constant" else ""
    return kind
