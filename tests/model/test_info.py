"""The description in exported files, and what is said of files that cannot be used."""

import importlib
import sys
from pathlib import Path
from typing import Any
from xml.sax.saxutils import quoteattr

import onnx
import pytest

from defectseg.config import Recipe
from defectseg.errors import MissingExtraError, ModelError
from defectseg.model.info import ExportInfo, ModelInfo, Normalization, Thresholds, read_model_info

INFO = ModelInfo(
    class_names=("pits", "<Kratzer> & \"Risse\" 'é'\n"),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(2),
    recipe=Recipe(),
    export=ExportInfo(format="openvino", precision="int8", size_hw=(256, 1600)),
)
LAYER = (
    '<layer><data element_type="f32" offset="4" size="16"/><rt_info><attribute value="1"/></rt_info></layer>'
    '<layer><data shape="1,2"/><data offset="20" size="12"/></layer>'
)


def _write_xml(path: Path, *, rt_info: str | None = None, layers: str = LAYER, weights_bytes: int = 32) -> Path:
    if rt_info is None:
        rt_info = f"<defectseg value={quoteattr(INFO.model_dump_json())}/>"
    text = (
        f'<?xml version="1.0"?>\n<net name="m" version="11"><layers>{layers}</layers><rt_info>{rt_info}</rt_info></net>'
    )
    path.write_text(text, encoding="utf-8")
    path.with_suffix(".bin").write_bytes(bytes(weights_bytes))
    return path


def _write_onnx(path: Path, **metadata: str) -> Path:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    ])  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return path


@pytest.mark.parametrize("name", ["m.xml", "m.XML"])
def test_the_description_of_an_openvino_file_is_read(tmp_path: Path, name: str) -> None:
    assert read_model_info(_write_xml(tmp_path / name)) == INFO


def test_the_description_of_an_onnx_file_is_read(tmp_path: Path) -> None:
    assert read_model_info(_write_onnx(tmp_path / "m.onnx", defectseg=INFO.model_dump_json())) == INFO


def test_onnx_runtime_reads_the_description_where_onnx_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = _write_onnx(tmp_path / "m.onnx", defectseg=INFO.model_dump_json())
    importlib.import_module("onnxruntime")

    monkeypatch.setitem(sys.modules, "onnx", None)
    assert read_model_info(path) == INFO
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingExtraError, match=r"m\.onnx: reading an ONNX model needs .*defectseg\[onnx\]"):
        read_model_info(path)


@pytest.mark.parametrize(
    "rt_info",
    [
        "",
        "<nncf><defectseg value='{}'/></nncf>",
        "<defectseg/>",
    ],
)
def test_a_model_of_another_program_is_refused(tmp_path: Path, rt_info: str) -> None:
    with pytest.raises(ModelError, match=r"m\.xml: holds weights, but was not written by defectseg"):
        read_model_info(_write_xml(tmp_path / "m.xml", rt_info=rt_info))


def test_an_onnx_model_of_another_program_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"m\.onnx: holds weights, but was not written by defectseg"):
        read_model_info(_write_onnx(tmp_path / "m.onnx", producer="another"))


def test_only_the_description_of_the_model_counts_not_one_within_a_layer(tmp_path: Path) -> None:
    layer = f"<layer><rt_info><defectseg value={quoteattr('{}')}/></rt_info></layer>"
    assert read_model_info(_write_xml(tmp_path / "m.xml", layers=layer)) == INFO


def test_an_openvino_file_without_its_weights_is_told(tmp_path: Path) -> None:
    path = _write_xml(tmp_path / "m.xml")
    path.with_suffix(".bin").unlink()
    with pytest.raises(ModelError, match=r"m\.xml: its weights, m\.bin, are not beside it. Copy both files"):
        read_model_info(path)


def test_weights_that_are_cut_short_are_told(tmp_path: Path) -> None:
    assert read_model_info(_write_xml(tmp_path / "m.xml", weights_bytes=33)) == INFO
    with pytest.raises(ModelError, match=r"m\.bin: 31 bytes instead of 32; damaged, or of another m\.xml"):
        read_model_info(_write_xml(tmp_path / "m.xml", weights_bytes=31))


def test_the_weights_alone_are_refused_with_the_file_to_give(tmp_path: Path) -> None:
    path = _write_xml(tmp_path / "m.xml")
    with pytest.raises(ModelError, match=r"m\.bin: only the weights of an export. Give m\.xml"):
        read_model_info(path.with_suffix(".bin"))


BOMB = '<!DOCTYPE net [<!ENTITY a "{0}"><!ENTITY b "{1}">]><net><rt_info><defectseg value="&b;"/></rt_info></net>'


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x80\x04junk",
        b"<net><layers>",
        b"<html></html>",
        b"<net><layers><layer><data offset='x' size='1'/></layer></layers></net>",
        BOMB.format("x" * 1000, "&a;" * 1000).encode(),
        b'<!DOCTYPE net SYSTEM "file:///etc/passwd"><net/>',
    ],
)
def test_what_is_no_whole_file_of_openvino_is_refused(tmp_path: Path, content: bytes) -> None:
    path = _write_xml(tmp_path / "m.xml")
    path.write_bytes(content)
    with pytest.raises(ModelError, match=r"m\.xml: not a model of OpenVINO, or damaged"):
        read_model_info(path)


@pytest.mark.parametrize("keep", [0, 1, 10, -1])
def test_what_is_no_whole_onnx_file_is_refused(tmp_path: Path, keep: int) -> None:
    path = _write_onnx(tmp_path / "m.onnx", defectseg=INFO.model_dump_json())
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=r"m\.onnx: not an ONNX model, or damaged"):
        read_model_info(path)


def test_a_newer_format_is_refused_in_every_kind_of_file(tmp_path: Path) -> None:
    text = INFO.model_dump_json().replace('"format_version":1', '"format_version":99')
    files: list[Any] = [
        _write_onnx(tmp_path / "m.onnx", defectseg=text),
        _write_xml(tmp_path / "m.xml", rt_info=f"<defectseg value={quoteattr(text)}/>"),
    ]
    for path in files:
        with pytest.raises(ModelError, match=f"{path.name}: format 99; .* Upgrade defectseg"):
            read_model_info(path)
