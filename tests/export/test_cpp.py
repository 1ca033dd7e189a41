"""The C++ program for other programs' authors: it finds what `predict` finds, and docs show it as it is."""

import shutil
import subprocess
from pathlib import Path

import cv2
import numpy as np
import pytest

from defectseg import Prediction, Predictor
from defectseg.export.export import export
from defectseg.model.info import Thresholds, read_model_info, write_model_info

ROOT = Path(__file__).parent.parent.parent
SOURCE = ROOT / "scripts" / "cpp" / "segment.cpp"
PAGE = ROOT / "docs" / "other-programs.md"


@pytest.fixture(scope="session")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The program, built as its page says."""
    if shutil.which("g++") is None or shutil.which("pkg-config") is None:
        pytest.skip("needs g++ and pkg-config")
    if subprocess.run(["pkg-config", "--exists", "opencv4 >= 4.6"], check=False).returncode != 0:
        pytest.skip("needs OpenCV's headers, 4.6 or newer (pkg-config opencv4)")
    folder = tmp_path_factory.mktemp("program")
    command = next(line for line in PAGE.read_text(encoding="utf-8").splitlines() if line.startswith("g++ "))
    command = command.replace("scripts/cpp/segment.cpp", f"-Wall -Wextra -Werror '{SOURCE}'")
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, timeout=300)
    return folder / "segment"


def test_the_page_shows_the_program_as_it_is() -> None:
    assert f"```cpp\n{SOURCE.read_text(encoding='utf-8')}```\n" in PAGE.read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_program_writes_the_class_map_of_predict(
    program: Path, trained_run: Path, data_folder: Path, tmp_path: Path
) -> None:
    model = tmp_path / "line.onnx"
    export(trained_run / "model.safetensors", model, format="onnx", size_hw=(64, 128))
    info = read_model_info(model)
    loose = Thresholds(gate=(0.0,) * 4, pixel=(0.2, 0.3, 0.25, 0.35), min_area_px=(0, 0, 0, 0))
    strict = loose.model_copy(update={"gate": (0.4, 0.5, 0.45, 0.6), "min_area_px": (30, 60, 90, 120)})
    sheets = sorted((data_folder / "train_images").iterdir())[:4]
    maps = []
    for thresholds in (loose, strict):
        write_model_info(model, info.model_copy(update={"thresholds": thresholds}))
        predictor = Predictor.load(model, tta="none")
        for sheet in sheets:
            subprocess.run([program, model, sheet, tmp_path / "map.png"], check=True, timeout=60)
            found = cv2.imread(str(tmp_path / "map.png"), cv2.IMREAD_UNCHANGED)
            assert found is not None
            expected = predictor(sheet)
            assert isinstance(expected, Prediction)
            np.testing.assert_array_equal(found, expected.class_map)
            maps.append(found)
    sizes = [np.count_nonzero(one) for one in maps]
    assert sum(sizes[:4]) > sum(sizes[4:]) > 0, "the thresholds matter"
    assert len(np.unique(np.stack(maps))) > 2, "several classes"
