import json
from pathlib import Path
from typing import Any

import pytest

from defectseg.config import Recipe
from defectseg.errors import ConfigError, DataError, ModelError
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.tune.file import read_thresholds, write_thresholds

NAMES = ("pits", "Ränder")
THRESHOLDS = Thresholds(gate=(0.5, 0.8), pixel=(0.3, 0.6), min_area_px=(0, 600), chosen_by="search")


def _write(path: Path, **changes: Any) -> Path:
    content = {"class_names": list(NAMES), "thresholds": THRESHOLDS.model_dump(mode="json")}
    path.write_text(json.dumps({key: value for key, value in (content | changes).items() if value is not None}))
    return path


def test_a_written_file_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "thresholds.json"

    write_thresholds(path, NAMES, THRESHOLDS)

    assert read_thresholds(path, NAMES) == THRESHOLDS
    content = json.loads(path.read_text(encoding="utf-8"))
    assert content["class_names"] == ["pits", "Ränder"]
    assert content["thresholds"]["min_area_px"] == [0, 600]


def test_classes_are_matched_by_name(tmp_path: Path) -> None:
    path = _write(tmp_path / "t.json")

    assert read_thresholds(path, NAMES[::-1]).min_area_px == (600, 0)
    assert read_thresholds(path, ["Ränder"]).pixel == (0.6,)


def test_a_model_gives_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = ModelInfo(
        class_names=NAMES, normalization=Normalization(mean=0.5, std=0.5), thresholds=THRESHOLDS, recipe=Recipe()
    )
    monkeypatch.setattr("defectseg.tune.file.read_model_info", lambda path: info)

    for name in ("m.safetensors", "m.xml", "m.onnx"):
        assert read_thresholds(tmp_path / name, NAMES) == THRESHOLDS
    with pytest.raises(ConfigError, match="for the classes pits, Ränder; expected pits, cracks"):
        read_thresholds(tmp_path / "m.safetensors", ["pits", "cracks"])


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"class_names": ["pits", "pits"]}, "for the classes pits, pits; expected pits, Ränder"),
        ({"class_names": None}, "class_names: Field required"),
        ({"more": 1}, "more: Extra inputs"),
        ({"class_names": ["pits"]}, "thresholds for 2 classes, but 1 class names"),
        ({"thresholds": {"gate": [0.5], "pixel": [2], "min_area_px": [0]}}, "thresholds.pixel.0: .*less than"),
        ({"thresholds": {"gate": [0.5], "pixel": [0.5], "min_area_px": []}}, "one value for each class"),
    ],
)
def test_invalid_content_is_refused_with_the_file(tmp_path: Path, changes: dict[str, Any], told: str) -> None:
    path = _write(tmp_path / "t.json", **changes)

    with pytest.raises(ConfigError, match=f"t.json: .*{told}"):
        read_thresholds(path, NAMES)


@pytest.mark.parametrize(
    ("name", "content", "kind", "told"),
    [
        ("absent.json", None, DataError, "cannot be read"),
        ("t.json", b"{", DataError, "not valid JSON"),
        ("t.json", b"\xff\xfe", DataError, "not UTF-8"),
        ("t.json", b"[]", ConfigError, "Expected a model, or a file"),
        ("m.safetensors", b"weights", ModelError, "not a model file"),
        ("absent.safetensors", None, ModelError, "no such model file"),
    ],
)
def test_unreadable_files_are_refused_by_name(
    tmp_path: Path, name: str, content: bytes | None, kind: type[Exception], told: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)

    with pytest.raises(kind, match=f"{name}: .*{told}"):
        read_thresholds(tmp_path / name, NAMES)
