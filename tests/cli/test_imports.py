"""What a command must not import: torch costs 3 seconds, pandas half a second, and neither need be installed."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import defectseg

HEAVY = {"torch", "segmentation_models_pytorch", "timm", "accelerate", "albumentations", "kaggle"}
PROBE = """
import json, sys
for arguments in json.loads(sys.argv[1]):
    from defectseg.cli.main import main
    sys.argv = ["defectseg", *arguments]
    try:
        main()
    except SystemExit as ended:
        print(int(ended.code or 0), file=sys.stderr)
"""


def _imports(code: str, *calls: Sequence[str | Path]) -> set[str]:
    """The modules that a fresh Python has loaded after calls of the command line, then some code."""
    listed = json.dumps([[str(word) for word in words] for words in calls])
    done = subprocess.run(
        [sys.executable, "-c", f"{PROBE}\n{code}\nprint(*sys.modules, file=sys.stderr)", listed],
        env={**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1])},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    *_, modules = done.stderr.splitlines()
    codes = [int(line) for line in done.stderr.splitlines() if line.isdigit()]
    assert set(codes) <= {0, 3, 4}, done.stderr
    assert len(codes) == len(calls)
    return set(modules.split())


def test_importing_the_package_loads_nothing_heavy() -> None:
    imports = _imports("import defectseg")
    assert "defectseg" in imports
    assert imports.isdisjoint({*HEAVY, "pandas", "numpy", "cv2", "typer"})


def test_help_loads_no_library_of_the_trade() -> None:
    imports = _imports("", ["--help"], ["--version"], ["predict", "--help"], ["train", "--help"], ["drift", "--help"])
    assert imports.isdisjoint({*HEAVY, "pandas", "numpy", "cv2", "scipy"})


def test_data_commands_scores_of_predictions_and_descriptions_load_no_torch(
    data_folder: Path, trained_run: Path, tmp_path: Path
) -> None:
    sheets, table = tmp_path / "sheets", data_folder / "train.csv"
    imports = _imports(
        "",
        ["data", "synthesize", "--out", sheets, "--images", "4", "--size", "64x128"],
        ["data", "check", sheets],
        ["data", "split", sheets, "--folds", "2"],
        ["data", "export", "coco", sheets, "--out", tmp_path / "coco"],
        ["data", "import", tmp_path / "coco", "--out", tmp_path / "out"],
        ["evaluate", "--predictions", table, "--data", data_folder],
        ["compare", table, table, "--data", data_folder],
        ["info", trained_run],
    )
    assert {"defectseg.formats.masks.read", "defectseg.evaluate.evaluate", "defectseg.model.info"} <= imports
    assert imports.isdisjoint(HEAVY)


def test_the_way_of_a_prediction_loads_neither_torch_nor_pandas_nor_a_runtime(tmp_path: Path) -> None:
    (tmp_path / "m.xml").write_text("<net/>", encoding="utf-8")
    (tmp_path / "m.bin").touch()
    code = "import defectseg.predict.predict, defectseg.runtime.cache\nfrom defectseg import Predictor"
    imports = _imports(code, ["info", tmp_path / "m.xml"])
    assert {"defectseg.inference.stream", "defectseg.model.info", "defectseg.runtime.load", "cv2"} <= imports
    assert imports.isdisjoint({*HEAVY, "pandas", "scipy", "jinja2", "matplotlib", "openvino", "onnx", "onnxruntime"})
    assert imports.isdisjoint({"yaml", "statistics", "urllib.request", "ssl"}), "they take a fifth of a start"


def test_openvino_loads_its_converter_when_it_is_used() -> None:
    code = "import defectseg.model.openvino_io, openvino"
    assert "openvino.tools.ovc" not in _imports(code)
    assert "openvino.tools.ovc" in _imports(f"{code}\nassert callable(openvino.convert_model)")
    assert "openvino.tools.ovc" not in _imports(f"{code}\nassert not hasattr(openvino, 'convert')")


def test_openvino_loads_no_telemetry() -> None:
    code = "import defectseg.runtime.openvino\nassert sys.modules['openvino_telemetry'] is None"
    imports = _imports(code)
    assert "openvino" in imports
    assert imports.isdisjoint({*HEAVY, "onnx", "nncf"})
