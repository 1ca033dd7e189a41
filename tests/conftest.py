"""Fixtures that several parts of the suite share: a small synthetic data folder and a run that was trained on it."""

import os
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings
from numpy.typing import NDArray
from safetensors.numpy import save_file

from defectseg.config import InferenceConfig, Recipe
from defectseg.data.synthetic import write_data_folder
from defectseg.image.appearance import NUMBERS
from defectseg.inference.settings import Settings
from defectseg.model.appearance import Appearance
from defectseg.model.info import METADATA_KEY, ModelInfo, Normalization, Thresholds, seal_model
from defectseg.predict.output import output_folder
from defectseg.predict.tables import IMAGE_COLUMNS, OutputChoice, Record
from defectseg.runtime.base import Answer

# One thread for torch, here and in the commands that tests start: these networks are too small to gain by two, and on a
# busy machine threads that wait for each other take ten times as long. torch reads it when it is first imported, which
# the conftest of a subfolder does before any hook of this file is called: so not in pytest_configure.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# Converted models stay out of the user's own cache.
os.environ.setdefault("DEFECTSEG_CACHE_DIR", tempfile.mkdtemp(prefix="defectseg-cache-"))

# How long an example takes says more of what else runs on the machine than of the code.
hypothesis_settings.register_profile("defectseg", deadline=None, suppress_health_check=[HealthCheck.too_slow])
hypothesis_settings.load_profile("defectseg")

SHEETS = 24
SHEET_HW = (64, 128)

TINY_RECIPE = """
seed: 3
model:
  architecture: Unet
  encoder: tu-test_resnet
  encoder_weights: none
  options:
    decoder_channels: [32, 16, 16, 8, 8]
data:
  folds: 4
  crop_hw: [64, 64]
  samples_per_epoch: 16
optimizer:
  encoder_lr: 5.0e-3
  decoder_lr: 5.0e-3
training:
  epochs: 2
  batch_size: 4
  precision: fp32
  trackers: []
"""


@pytest.fixture(scope="session")
def tiny_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe that trains in about a second: a small network from random weights, two epochs, no trackers."""
    path = tmp_path_factory.mktemp("recipes") / "tiny.yaml"
    path.write_text(TINY_RECIPE, encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def data_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 synthetic sheets of 64 x 128 px with four classes. Not to be written to: copy it first."""
    path = tmp_path_factory.mktemp("data") / "sheets"
    write_data_folder(path, images=SHEETS, seed=5, size_hw=SHEET_HW)
    return path


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, data_folder: Path, tiny_recipe: Path) -> Path:
    """The run folder of a network trained on `data_folder`, fold 0 of 4 held back; it finds some of the defects.

    Not to be written to: copy it first.
    """
    from defectseg.config import load_recipe
    from defectseg.train.train import train

    longer = ["training.epochs=16", "data.samples_per_epoch=48"]
    out = tmp_path_factory.mktemp("runs") / "tiny"
    train(data_folder, out, recipe=load_recipe(str(tiny_recipe), longer), device="cpu")
    return out


class GreyRuntime:
    """A Runtime without a network, whose answer for a pixel depends on its grey level alone, so that it is known.

    Two classes, pits and cracks. Levels 110 to 129 are a pit (0.9), 150 to 169 a crack (0.8), 190 to 209 a pit (0.6)
    and a crack (0.7) at once; everything else is steel (0.1 for both). The gate is the largest probability.

    Attributes:
        info: a description that it might have been loaded with.
        settings: those of its description.
        calls: shapes of the arrays that it was called with.
        before: called with the number of each call, from 1, before it is answered.
        parallel: how many calls at once it asks for.
        longest_s: it takes a random time up to this to answer.
        most_at_once: how many calls were in work at the same time.
        threads: the names of those that called it.
    """

    name = "grey levels"

    def __init__(self, thresholds: Thresholds, inference: InferenceConfig) -> None:
        self.info = ModelInfo(
            class_names=("pits", "cracks"),
            normalization=Normalization(mean=0.5, std=0.5),
            thresholds=thresholds,
            recipe=Recipe(inference=inference),
        )
        self.class_names, self.settings = self.info.class_names, Settings.of(self.info)
        self.levels = np.full((2, 256), 0.1, np.float32)
        self.levels[0, 110:130] = 0.9
        self.levels[1, 150:170] = 0.8
        self.levels[:, 190:210] = [[0.6], [0.7]]
        self.calls: list[tuple[int, ...]] = []
        self.before: Callable[[int], None] = lambda call: None
        self.parallel, self.longest_s, self.batch_px = 1, 0.0, 0
        self.threads: set[str] = set()
        self.at_once = self.most_at_once = 0
        self._lock = threading.Lock()

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        with self._lock:
            self.calls.append(images.shape)
            call = len(self.calls)
            self.threads.add(threading.current_thread().name)
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
        if self.longest_s:
            time.sleep(random.uniform(0, self.longest_s))
        with self._lock:
            self.at_once -= 1
        self.before(call)
        probabilities = np.ascontiguousarray(self.levels[:, images[:, 0]].swapaxes(0, 1))
        return Answer(probabilities, probabilities.max(axis=(2, 3)))


@pytest.fixture
def grey_runtime() -> Callable[..., GreyRuntime]:
    """Makes a GreyRuntime; by default no region is too small and tiles are of the usual size."""

    def make(
        *,
        min_area_px: int = 0,
        tile_hw: tuple[int, int] = (1024, 2048),
        tile_overlap_px: int = 128,
        parallel: int = 1,
        longest_s: float = 0.0,
    ) -> GreyRuntime:
        thresholds = Thresholds(gate=(0.5, 0.5), pixel=(0.5, 0.5), min_area_px=(min_area_px, min_area_px))
        runtime = GreyRuntime(thresholds, InferenceConfig(tile_hw=tile_hw, tile_overlap_px=tile_overlap_px))
        runtime.parallel, runtime.longest_s = parallel, longest_s
        return runtime

    return make


NUMBERS_OF_STEEL = np.full(NUMBERS, 4.0)
TRAINED = Appearance(
    images=300,
    groups=60,
    mean=tuple(NUMBERS_OF_STEEL),
    defect_shift=tuple(np.linspace(-0.2, 0.2, NUMBERS)),
    between=tuple((0.01 * np.eye(NUMBERS)).ravel()),
    within=tuple((0.01 * np.eye(NUMBERS)).ravel()),
    distances=tuple(np.linspace(3, 9, 101)),
    threshold=10.0,
    defective=0.5,
    defective_spread=0.25,
)


@pytest.fixture
def trained() -> Appearance:
    """What training images look like in which half have a defect, and which vary by 10 % as groups and as images."""
    return TRAINED


@pytest.fixture
def write_results() -> Callable[..., Path]:
    """Writes an output folder of `predict` with made-up descriptions."""

    def write(
        out: Path,
        groups: Iterable[int],
        *,
        day: float = 0,
        images: int = 4,
        brighter: float = 0.0,
        defective: float = 0.5,
        status: str | None = None,
        described: bool = True,
        trained: Appearance | None = TRAINED,
        pattern: str | None = "coil[0-9]+",
        key: Mapping[str, Any] | None = None,
        run_status: str = "finished",
    ) -> Path:
        """Groups of images, an hour apart, of which this share has a defect; their grey levels are brighter by this."""
        generator = np.random.default_rng([*out.name.encode()])
        settings = {"model_sha256": "a" * 64, "only_classes": None, "bit_depth": None, "model_bit_depth": 10}
        training = None if trained is None else trained.model_dump()
        with output_folder(out, {**settings, **(key or {})}, OutputChoice(group=pattern)) as output:
            for place, group in enumerate(groups):
                own = generator.normal(0, 0.1, NUMBERS)
                for number in range(images):
                    has_defect = (number + 0.5) / images < defective
                    numbers = TRAINED.expected(has_defect=has_defect) + own + generator.normal(0, 0.1, NUMBERS)
                    row: dict[str, Any] = dict.fromkeys(IMAGE_COLUMNS, "") | {
                        "ImageId": f"coil{group}_{out.name}{number}.png"
                    }
                    row |= {"status": status or ("defect" if has_defect else "clean"), "height": 8, "width": 8}
                    time_ns = int((day * 24 + place) * 3600e9) + number + 10**18
                    row["modified_ns"] = time_ns
                    numbers[:-3] += brighter
                    output.journal.add(Record(row, [], [], [], numbers.tolist() if described else []))
            output.name_pictures(output.journal.image_ids)
            output.finish({"status": run_status, "class_names": ["pits"], "training": training})
        return out

    return write


@pytest.fixture
def write_model() -> Callable[..., Path]:
    """Writes a bundle or an `.xml` without a network: the description of a GreyRuntime, and a single weight."""

    def write(path: Path, weight: float = 0.0, **changes: Any) -> Path:
        info = GreyRuntime(Thresholds.default(2), InferenceConfig()).info.model_copy(update=changes)
        weights = np.array([weight], np.float32)
        if path.suffix == ".xml":
            path.write_text(f'<net><rt_info><{METADATA_KEY} value=""/></rt_info></net>', encoding="utf-8")
            path.with_suffix(".bin").write_bytes(weights.tobytes())
        else:
            save_file({"weight": weights}, path, metadata={METADATA_KEY: ""})
        seal_model(path, info)
        return path

    return write


@pytest.fixture
def write_data() -> Callable[..., Path]:
    """Writes a data folder from pictures by ImageId and the rows of train.csv."""

    def write(
        root: Path, images: Mapping[str, NDArray[Any]], rows: Iterable[str] = (), classes: Iterable[str] = ()
    ) -> Path:
        for name, image in images.items():
            path = root / "train_images" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(cv2.imencode(path.suffix, image)[1].tobytes())
        (root / "train.csv").write_text("\n".join(["ImageId,ClassId,EncodedPixels", *rows, ""]))
        if names := list(classes):
            (root / "classes.txt").write_text("\n".join(names))
        return root

    return write
