"""What a command must not import: torch costs 3 seconds, pandas half a second, and neither need be installed."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

import defectseg

HEAVY = ("torch", "segmentation_models_pytorch", "timm", "accelerate", "albumentations")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1])}


def _imports(*arguments: str, code: int = 0) -> set[str]:
    """The modules that Python imports when it is called so, of the top level and below, as `a.b.c`."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == code, done.stderr[-2000:]
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert len(lines) > 20
    return {line.rpartition("|")[2].strip() for line in lines}


def _heavy(imports: set[str], names: Sequence[str] = HEAVY) -> list[str]:
    return [name for name in names if name in imports]


def test_the_probe_sees_what_is_imported() -> None:
    assert _heavy(_imports("-c", "import pandas.testing"), ("torch", "pandas")) == ["pandas"]


def test_importing_the_package_loads_nothing_heavy() -> None:
    imports = _imports("-c", "import defectseg")

    assert "defectseg" in imports
    assert _heavy(imports, (*HEAVY, "pandas", "numpy", "cv2", "typer")) == []


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["predict", "--help"], ["train", "--help"]])
def test_help_loads_no_library_of_the_trade(arguments: list[str]) -> None:
    assert _heavy(_imports("-m", "defectseg", *arguments), (*HEAVY, "pandas", "numpy", "cv2")) == []


def test_data_commands_load_no_torch(tmp_path: Path) -> None:
    demo, imported = tmp_path / "demo", tmp_path / "imported"
    (tmp_path / "src" / "images").mkdir(parents=True)

    made = _imports("-m", "defectseg", "data", "synthesize", "--out", str(demo), "--images", "4", "--size", "64x128")
    checked = _imports("-m", "defectseg", "data", "check", str(demo))
    split = _imports("-m", "defectseg", "data", "split", str(demo), "--folds", "2")
    # No masks there: the command ends early, with everything imported.
    failed = _imports(
        "-m", "defectseg", "data", "import", "masks", str(tmp_path / "src"), "--out", str(imported), code=4
    )

    for imports in (made, checked, split, failed):
        assert any(name.startswith("defectseg.data.") for name in imports)
        assert _heavy(imports) == []


def test_scoring_predictions_loads_no_torch(data_folder: Path) -> None:
    imports = _imports(
        *("-m", "defectseg", "evaluate", "--predictions", str(data_folder / "train.csv"), "--data", str(data_folder))
    )

    assert "defectseg.evaluate.evaluate" in imports
    assert _heavy(imports) == []


def test_describing_a_model_loads_no_torch(trained_run: Path) -> None:
    imports = _imports("-m", "defectseg", "info", str(trained_run))

    assert "defectseg.model.info" in imports
    assert _heavy(imports) == []


def test_the_way_of_a_prediction_loads_neither_torch_nor_pandas() -> None:
    imports = _imports("-c", "import defectseg.predict.predict, defectseg.cli.predict")

    assert {"defectseg.inference.stream", "defectseg.predict.output", "cv2"} <= imports
    assert _heavy(imports, (*HEAVY, "pandas", "jinja2", "matplotlib")) == []


def test_reading_an_export_loads_nothing_heavy(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>", encoding="utf-8")
    (tmp_path / "m.bin").touch()

    imports = _imports("-m", "defectseg", "info", str(tmp_path / "m.xml"), code=4)

    assert "defectseg.model.info" in imports
    assert _heavy(imports, (*HEAVY, "openvino", "onnx", "onnxruntime")) == []


def test_the_choice_of_a_runtime_loads_none() -> None:
    imports = _imports("-c", "import defectseg.runtime.load, defectseg.runtime.cache")

    assert "defectseg.runtime.load" in imports
    assert _heavy(imports, (*HEAVY, "openvino", "onnx", "onnxruntime")) == []


def test_openvino_loads_no_telemetry() -> None:
    imports = _imports("-c", "import defectseg.runtime.openvino")

    assert "openvino" in imports
    # Its name alone is there in any case: the attempt to import it, which fails.
    assert _heavy(imports, (*HEAVY, "openvino_telemetry.utils", "onnx", "nncf")) == []
    assert _heavy(_imports("-c", "import openvino"), ["openvino_telemetry.utils"]) == ["openvino_telemetry.utils"]
