"""An ONNX file whose weights lie outside its folder is refused, which depends on the version of ONNX Runtime."""

from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper

from defectseg.config import Recipe
from defectseg.errors import ModelError
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.runtime.onnx import OnnxRuntime

INFO = ModelInfo(
    class_names=("pits",),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(1),
    recipe=Recipe(),
)


def _write(path: Path, location: str) -> Path:
    """A model that adds four weights from a file to its input."""
    weights = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "16")):
        weights.external_data.add(key=key, value=value)
    image, answer = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 1, 1, 4]) for name in "xy")
    graph = helper.make_graph([helper.make_node("Add", ["x", "w"], ["y"])], "g", [image], [answer], [weights])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("kind", ["parent", "absolute", "link"])
def test_weights_outside_the_folder_are_not_read(kind: str, tmp_path: Path) -> None:
    folder, secret = tmp_path / "model", tmp_path / "secret"
    folder.mkdir()
    for place in (secret, folder / "w"):
        place.write_bytes(np.ones(4, np.float32).tobytes())
    (folder / "link").symlink_to(secret)
    OnnxRuntime(_write(folder / "m.onnx", "w"), INFO, device="cpu")
    location = {"parent": "../secret", "absolute": str(secret), "link": "link"}[kind]
    with pytest.raises(ModelError):
        OnnxRuntime(_write(folder / "m.onnx", location), INFO, device="cpu")
