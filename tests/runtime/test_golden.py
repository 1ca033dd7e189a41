"""Class maps that never change: not with a library's version, the runtime, the workers, the order or the company.

The network's weights and the images are made by integer arithmetic, so that no library's random numbers decide.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from defectseg.config import InferenceConfig, ModelConfig, Recipe
from defectseg.image.find import FoundImage, find_images
from defectseg.inference.settings import Settings
from defectseg.inference.stream import Segmented, Unreadable, stream
from defectseg.model.bundle import load_bundle, save_bundle
from defectseg.model.graph import to_onnx, to_openvino
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork
from defectseg.runtime.base import Runtime
from defectseg.runtime.onnx import OnnxRuntime
from defectseg.runtime.openvino import OpenVinoRuntime
from defectseg.runtime.torch import TorchRuntime

GOLDEN = Path(__file__).with_name("golden_class_maps.png")  # the maps below each other; a class is a step of 60
STEP = 60
MOST_DIFFERENT = 0.0005  # share of pixels; where a probability is at its threshold, the last bit of float32 decides
TOLERANCE = 1e-4  # of probabilities
IMAGES, SIZE_HW, TILE_HW = 5, (96, 224), (64, 128)
TILE_PX = TILE_HW[0] * TILE_HW[1]
MODEL = ModelConfig(
    encoder="tu-test_resnet", encoder_weights="none", options={"encoder_depth": 3, "decoder_channels": [16, 16, 8]}
)
INFO = ModelInfo(
    class_names=("pits", "cracks", "scale"),
    normalization=Normalization(mean=0.5, std=0.25),
    thresholds=Thresholds(gate=(0.3,) * 3, pixel=(0.8, 0.6, 0.5), min_area_px=(0, 12, 30)),
    recipe=Recipe(model=MODEL, inference=InferenceConfig(tile_hw=TILE_HW, tile_overlap_px=32)),
)
Load = Callable[[int], Runtime]


def counted(name: str, shape: Sequence[int]) -> NDArray[np.float32]:
    """Weights of one tensor from its name and the places in it, about as large as those of a fresh network."""
    key = sum((place + 1) * ord(letter) for place, letter in enumerate(name))
    steps = (np.arange(int(np.prod(shape)), dtype=np.int64) * 7919 + key * 104729) * 53 % 1009 - 504
    fan_in = int(np.prod(shape[1:]))
    return (steps.astype(np.float32) / np.float32(504 * max(fan_in, 2) ** 0.5) * np.float32(2)).reshape(shape)


def drawn(number: int) -> NDArray[np.uint8]:
    """A sheet with a slope of grey, stripes and a disc."""
    rows, columns = np.indices(SIZE_HW)
    grey = 60 + (rows * (number + 1) + columns) % 120 + 40 * ((columns // (7 + number)) % 2)
    disc = (rows - 30 - 8 * number) ** 2 + (columns - 40 * number - 30) ** 2 < (100 + 90 * number)
    return np.where(disc, 20 + 50 * number, grey).astype(np.uint8)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[FoundImage]:
    folder = tmp_path_factory.mktemp("golden images")
    for number in range(IMAGES):
        cv2.imwrite(str(folder / f"{number}.png"), drawn(number))
    return find_images([folder])


@pytest.fixture(scope="module")
def loaders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Load]:
    """For each runtime, a function of the number of workers that loads the network in float32.

    The ONNX file is for the size of a tile alone, which takes half the time to make, the OpenVINO model for any size.
    """
    folder = tmp_path_factory.mktemp("golden")
    weights = DefectNetwork(MODEL, 3, INFO.normalization).state_dict()
    for name, tensor in weights.items():
        if tensor.ndim > 1:
            weights[name] = torch.from_numpy(counted(name, tensor.shape))
    save_bundle(folder / "m.safetensors", weights, INFO)
    network, _ = load_bundle(folder / "m.safetensors")
    to_onnx(network, INFO, folder / "m.onnx", size_hw=TILE_HW)
    converted = to_openvino(network, INFO)
    return {
        "torch": lambda workers: TorchRuntime(network, INFO, workers=workers),
        "torch in batches": lambda workers: TorchRuntime(network, INFO, workers=workers, batch_px=4 * TILE_PX),
        "onnx": lambda workers: OnnxRuntime(folder / "m.onnx", INFO, device="cpu", workers=workers),
        "openvino": lambda workers: OpenVinoRuntime(converted, INFO, precision="f32", workers=workers),
    }


def class_maps(runtime: Runtime, images: Sequence[FoundImage]) -> dict[str, NDArray[np.uint8]]:
    """The class map of each image, by ImageId."""

    def keep(one: Segmented) -> tuple[str, Any]:
        return one.found.image_id, one.segmentation.class_map

    with closing(stream(images, runtime, Settings.of(INFO), keep)) as results:
        return dict(result for result in results if not isinstance(result, Unreadable))


@pytest.mark.parametrize("kind", ["torch", "torch in batches", "onnx", "openvino"])
def test_class_maps_are_the_golden_ones_for_any_workers_order_and_company(
    kind: str, loaders: dict[str, Load], images: list[FoundImage]
) -> None:
    one, three = loaders[kind](1), loaders[kind](3)
    found = class_maps(one, images)
    stacked = np.concatenate([found[image.image_id] for image in images])
    golden = cv2.imread(str(GOLDEN), cv2.IMREAD_UNCHANGED)
    assert golden is not None
    assert golden.shape == stacked.shape
    assert (stacked != golden // STEP).mean() <= MOST_DIFFERENT
    for other in (class_maps(three, images), class_maps(three, images[::-1]), class_maps(one, images[3:4])):
        assert [name for name, class_map in other.items() if not np.array_equal(class_map, found[name])] == []


@pytest.mark.parametrize("kind", ["torch", "onnx", "openvino"])
def test_an_answer_does_not_depend_on_the_batch(kind: str, loaders: dict[str, Load]) -> None:
    batch = np.stack([drawn(number)[None, : TILE_HW[0], : TILE_HW[1]] for number in range(3)])
    runtime = loaders[kind](1)
    together = runtime(batch)
    for number in range(3):
        alone = runtime(batch[number : number + 1])
        np.testing.assert_allclose(alone.probabilities[0], together.probabilities[number], atol=TOLERANCE)
        np.testing.assert_allclose(alone.gate[0], together.gate[number], atol=TOLERANCE)
