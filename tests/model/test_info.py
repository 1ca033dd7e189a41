"""The description in every kind of model file, read and replaced; files that cannot be used; a model's identity."""

import errno
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET
from xml.sax.saxutils import escape

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from safetensors import safe_open
from safetensors.numpy import save_file

from defectseg.config import ModelConfig, Recipe
from defectseg.errors import ExitCode, ModelError, ResourceError
from defectseg.model.info import (
    ExportInfo,
    ModelInfo,
    Normalization,
    Thresholds,
    read_model_info,
    seal_model,
    write_model_info,
)
from defectseg.model.locate import model_identity

INFO = ModelInfo(
    class_names=("pits", "<Kratzer> & \"Risse\" 'é'"),
    normalization=Normalization(mean=0.5, std=0.5),
    thresholds=Thresholds.default(2),
    recipe=Recipe(),
    export=ExportInfo(format="openvino", precision="int8", size_hw=(256, 1600)),
)
TEXT = INFO.model_dump_json()
LAYER = (
    '<layer><data element_type="f32" offset="4" size="16"/><rt_info><defectseg value="{}"/></rt_info></layer>'
    '<layer><data shape="1,2"/><data offset="20" size="12"/></layer>'
)


WITHOUT_CHECKSUM = TEXT.replace('"created":""', '"created":"before"')  # as older versions wrote it


QUOTES = {'"': "&quot;"}


def _sealed(path: Path, text: str | None) -> Path:
    if text == TEXT:
        seal_model(path, INFO)
    return path


def _write_xml(path: Path, text: str | None = TEXT, *, layers: str = LAYER, weights_bytes: int = 32) -> Path:
    description = (
        "<nncf><defectseg value='{}'/></nncf>" if text is None else f'<defectseg value="{escape(text, QUOTES)}"/>'
    )
    net = f'<net name="m" version="11"><layers>{layers}</layers><rt_info>{description}</rt_info></net>'
    path.write_text(f'<?xml version="1.0"?>\n{net}', encoding="utf-8")
    path.with_suffix(".bin").write_bytes(bytes(weights_bytes))
    return _sealed(path, text)


def _write_onnx(path: Path, text: str | None = TEXT) -> Path:
    value = onnx.helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, [1])
    graph = onnx.helper.make_graph([onnx.helper.make_node("Identity", ["x"], ["y"])], "g", [value], [
        onnx.helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [1])
    ])  # fmt: skip
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    metadata = {"first": "1", **({} if text is None else {"defectseg": text}), "last": "3" * 300}
    onnx.helper.set_model_props(model, metadata)
    path.write_bytes(model.SerializeToString())
    return _sealed(path, text)


def _write_bundle(path: Path, text: str | None = TEXT, *, weight: float = 0.5) -> Path:
    tensors: dict[str, NDArray[Any]] = {"b": np.full((2, 3), weight, np.float32), "a": np.arange(3)}
    save_file(tensors, path, metadata={"format": "pt", **({} if text is None else {"defectseg": text})})
    return _sealed(path, text)


WRITERS: dict[str, Callable[..., Path]] = {
    "m.safetensors": _write_bundle,
    "m.xml": _write_xml,
    "m.XML": _write_xml,
    "m.onnx": _write_onnx,
}
every_kind = pytest.mark.parametrize("name", WRITERS)


def _without_description(path: Path) -> object:
    """All that a file holds besides the description, as its own library reads it."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        others = {entry.key: entry.value for entry in model.metadata_props if entry.key != "defectseg"}
        return model.graph.SerializeToString(), others, model.ir_version
    if path.suffix == ".safetensors":
        with safe_open(path, "np") as file:
            return {key: file.get_tensor(key).tolist() for key in file.keys()}  # noqa: SIM118
    net = ET.parse(path).getroot()
    net.find("rt_info/defectseg").attrib.clear()  # type: ignore[union-attr]
    return ET.tostring(net), path.with_suffix(".bin").read_bytes()


@every_kind
def test_a_description_is_read_and_replaced_and_nothing_else_changes(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    before = _without_description(path)
    assert read_model_info(path) == INFO

    to_16384_bytes = "x" * (2**14 - len(TEXT.encode()) + len("default"))  # one more group of bits in an ONNX file
    for chosen_by in ("hand" * 5000, "Ä & <\"'>\t\n]]>", "", to_16384_bytes):
        changed = INFO.model_copy(update={"thresholds": INFO.thresholds.model_copy(update={"chosen_by": chosen_by})})
        write_model_info(path, changed)
        assert read_model_info(path) == changed
        assert _without_description(path) == before
    assert {file.suffix for file in tmp_path.iterdir()} <= {path.suffix, ".bin"}


@every_kind
def test_a_file_that_cannot_be_written_stays_as_it_was(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = WRITERS[name](tmp_path / name)
    content = path.read_bytes()

    def fail(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(ResourceError, match="no space left"):
        write_model_info(path, INFO.model_copy(update={"created": "now"}))
    assert path.read_bytes() == content
    assert len(list(tmp_path.iterdir())) == (2 if path.suffix.lower() == ".xml" else 1)


@pytest.mark.parametrize("names", [("pit", "pit"), ("pit", " "), ("pit", "a\x1b[31m"), ("pit", "a" * 10_000)])
def test_classes_that_cannot_be_told_apart_are_refused(names: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="a class name is"):
        ModelInfo(**{**dict(INFO), "class_names": names})


@every_kind
def test_identity_is_of_what_the_network_answers_not_of_settings(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    before = model_identity(path)

    settings = {"thresholds": Thresholds(gate=(0, 1), pixel=(0.1, 0.2), min_area_px=(3, 4)), "metrics": {"a": 1}}
    write_model_info(path, INFO.model_copy(update=settings))
    assert model_identity(path) == before

    changes: list[dict[str, Any]] = [
        {"class_names": ("cracks", "pits")},
        {"normalization": Normalization(mean=0.4, std=0.5)},
        {"recipe": Recipe(model=ModelConfig(input_scale=0.5))},
        {"export": ExportInfo(format="openvino", precision="int8", float_layers="f32")},
    ]
    identities = {before}
    for change in changes:
        write_model_info(path, INFO.model_copy(update=change))
        identities.add(model_identity(path))
    assert len(identities) == 1 + len(changes)


def test_identity_is_of_the_weights_wherever_they_lie(tmp_path: Path) -> None:
    bundles = [_write_bundle(tmp_path / f"{weight}.safetensors", weight=weight) for weight in (0.5, 0.6)]
    one, other = map(model_identity, bundles)
    assert one != other
    assert model_identity([bundles[0]]) == one
    assert len({one, other, model_identity(bundles), model_identity(bundles[::-1])}) == 4

    path = _write_xml(tmp_path / "m.xml")
    before = model_identity(path)
    path.with_suffix(".bin").write_bytes(b"1" * 32)
    seal_model(path, INFO)
    assert model_identity(path) != before


@every_kind
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_and_never_a_bug(
    tmp_path_factory: pytest.TempPathFactory, name: str, data: st.DataObject
) -> None:
    path = WRITERS[name](tmp_path_factory.mktemp("damaged") / name)
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, min(len(content), 400) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(ModelError):
        assert read_model_info(path) == INFO


@every_kind
def test_one_flipped_bit_anywhere_is_refused_or_changes_nothing(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    content, before = path.read_bytes(), _without_description(path)
    answering = 0
    for position in range(0, len(content), 11):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with suppress(ModelError):
            assert (read_model_info(path), _without_description(path)) == (INFO, before)
            answering += 1
    assert answering < 5  # blanks that fill the header of a bundle


@every_kind
def test_a_file_without_a_checksum_is_refused_with_the_way_on(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name, WITHOUT_CHECKSUM)
    for use in (read_model_info, model_identity, lambda path: write_model_info(path, INFO)):
        with pytest.raises(ModelError, match=rf"{name}: has no checksum.* Export or train again") as refused:
            use(path)
        assert refused.value.exit_code is ExitCode.CANNOT_CONTINUE


@every_kind
def test_a_damaged_file_is_not_called_right_by_writing_to_it(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    damaged = path if name != "m.xml" and name != "m.XML" else path.with_suffix(".bin")
    content = bytearray(damaged.read_bytes())
    content[-1 if damaged.suffix != ".onnx" else 3] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(ModelError, match=name):
        write_model_info(path, INFO)


@every_kind
def test_a_file_with_absurd_sizes_is_refused_before_it_is_read(tmp_path: Path, name: str) -> None:
    path = WRITERS[name](tmp_path / name)
    text = {".onnx": b"\x72\x80\x80\x80\x80\x08", ".safetensors": (1 << 31).to_bytes(8, "little")}
    with path.open("rb+") as file:
        file.write(text.get(path.suffix, b""))  # a length of 2 GiB
        file.truncate(3 << 30)  # a hole, which needs no disk
    with pytest.raises(ModelError, match="bytes of text; expected at most"):
        read_model_info(path)


def test_an_onnx_file_of_countless_fields_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"\x08\x01" * 20_000)
    with pytest.raises(ModelError, match="more than 16384 fields"):
        read_model_info(tmp_path / "m.onnx")


@every_kind
@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "holds weights, but not of defectseg"),
        *((text, "its description cannot be read") for text in ("", "{", "[]", "3", '{"format_version": 1}')),
        ('{"format_version": 1, "colour": 2}', "its description cannot be read"),
        ("[" * 100_000, "its description cannot be read"),
        (TEXT.replace('"format_version":1', '"format_version":99'), r"format 99; .* up to 1\. Upgrade it"),
    ],
)
def test_a_description_of_another_program_or_version_is_refused(
    tmp_path: Path, name: str, text: str | None, words: str
) -> None:
    with pytest.raises(ModelError, match=f"{name}: {words}"):
        read_model_info(WRITERS[name](tmp_path / name, text))


@every_kind
@pytest.mark.parametrize("keep", [0, 1, 10, -1])
def test_a_file_that_is_not_whole_is_refused(tmp_path: Path, name: str, keep: int) -> None:
    path = WRITERS[name](tmp_path / name)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ModelError, match=f"{name}: not .* model.*, or damaged"):
        read_model_info(path)


BOMB = '<!DOCTYPE net [<!ENTITY a "{0}"><!ENTITY b "{1}">]><net><rt_info><defectseg value="&b;"/></rt_info></net>'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("m.xml", b"\x80\x04junk"),
        ("m.xml", b"<net><layers>"),
        ("m.xml", b"<html></html>"),
        ("m.xml", BOMB.format("x" * 1000, "&a;" * 1000).encode()),
        ("m.xml", b'<!DOCTYPE net SYSTEM "file:///etc/passwd"><net/>'),
        ("m.safetensors", b"\x00" * 64),
        ("m.safetensors", b"PK\x03\x04 a zip"),
        ("m.safetensors", b"\xff" * 8 + b"{}"),
        ("m.safetensors", b"\xa0\x86\x01" + b"\x00" * 5 + b"[" * 100_000),
        ("m.safetensors", b"\x24" + b"\x00" * 7 + b'{"__metadata__": {"defectseg": {}}}  '[:36]),
        ("m.onnx", b"\xff" * 5000),
        ("m.onnx", b"\x08\x01"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: (not .* model.*, or damaged|its description cannot be read)"):
        read_model_info(tmp_path / name)


def test_the_weights_beside_an_openvino_file_must_be_there_and_its_own(tmp_path: Path) -> None:
    path, other = (_write_xml(tmp_path / name, weights_bytes=size) for name, size in (("m.xml", 32), ("n.xml", 33)))
    mine, others = path.with_suffix(".bin"), other.with_suffix(".bin")
    with pytest.raises(ModelError, match=r"m\.bin: only the weights of an export. Give m\.xml"):
        read_model_info(mine)
    mine.write_bytes(others.read_bytes())
    with pytest.raises(
        ModelError, match=r"m\.xml: .* checksum of it and m\.bin, which may be of another export.* export"
    ):
        read_model_info(path)
    mine.unlink()
    with pytest.raises(ModelError, match=r"m\.xml: its weights, m\.bin, are not beside it. Copy both files"):
        read_model_info(path)
