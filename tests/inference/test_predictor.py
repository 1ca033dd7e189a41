"""The Python API, on a runtime whose answer is known and on a tiny network."""

import multiprocessing
import pickle
import re
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

import defectseg
from defectseg import Prediction, Predictor, Unreadable
from defectseg.config import ModelConfig, Recipe
from defectseg.data.synthetic import make_sheet
from defectseg.errors import ImageError, ModelError, UsageError
from defectseg.image.overlay import paint_prediction
from defectseg.model.bundle import save_bundle
from defectseg.model.info import ModelInfo, Normalization, Thresholds
from defectseg.model.network import DefectNetwork

ROOT = Path(__file__).parents[2]
Make = Callable[..., Predictor]
PIT, CRACK = 120, 160  # grey levels, as GreyRuntime reads them
MODEL = ModelConfig(encoder="tu-test_resnet", encoder_weights="none", options={"decoder_channels": [16, 8, 8, 8, 8]})


def sheet(*, pit: bool = True, crack: bool = True) -> NDArray[np.uint8]:
    """8 x 16 of steel with a pit in rows 2-3, columns 1-3, and a crack in rows 5-6, column 10."""
    image = np.full((8, 16), 60, np.uint8)
    if pit:
        image[2:4, 1:4] = PIT
    if crack:
        image[5:7, 10] = CRACK
    return image


@pytest.fixture
def make_predictor(
    grey_runtime: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Predictor]:
    """Loads a Predictor around a GreyRuntime."""
    model = tmp_path / "grey.safetensors"
    model.write_bytes(b"weights")

    def make(*, keep_probabilities: bool = True, workers: int | None = None, **settings: Any) -> Predictor:
        def load(paths: Any, device: str, runtime: str, *, workers: int) -> Any:
            made = grey_runtime(parallel=workers, **settings)
            return made, made.info

        monkeypatch.setattr("defectseg.inference.predictor.load_runtime", load)
        return Predictor.load(model, keep_probabilities=keep_probabilities, workers=workers)

    return make


def bundle_of(seed: int, path: Path) -> Path:
    """A tiny network with random weights for two classes; what it calls a defect is chance, but always the same."""
    torch.manual_seed(seed)
    normalization = Normalization(mean=0.5, std=0.25)
    info = ModelInfo(
        class_names=("pits", "cracks"),
        normalization=normalization,
        thresholds=Thresholds(gate=(0.0, 0.0), pixel=(0.5, 0.5), min_area_px=(4, 4)),
        recipe=Recipe(model=MODEL),
    )
    save_bundle(path, DefectNetwork(MODEL, 2, normalization).state_dict(), info)
    return path


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle_of(0, tmp_path_factory.mktemp("bundle") / "model.safetensors")


@pytest.fixture(scope="module", params=["torch", "openvino"])
def predictor(bundle: Path, request: pytest.FixtureRequest) -> Predictor:
    return Predictor.load(bundle, device="cpu", runtime=request.param, workers=2)


@pytest.fixture(scope="module")
def images() -> list[NDArray[np.uint8]]:
    return [make_sheet(1, index, (64, 96)).image for index in range(6)]


def assert_equal(first: Prediction, second: Prediction) -> None:
    for name in ("image", "masks", "class_map", "probabilities", "gate"):
        np.testing.assert_array_equal(getattr(first, name), getattr(second, name))
    assert (first.regions, first.class_names, first.notes) == (second.regions, second.class_names, second.notes)


def test_a_prediction_holds_masks_regions_and_what_they_come_from(make_predictor: Make) -> None:
    prediction = make_predictor()(sheet())

    truth = np.zeros((2, 8, 16), np.bool_)
    truth[0, 2:4, 1:4] = truth[1, 5:7, 10] = True
    np.testing.assert_array_equal(prediction.masks, truth)
    np.testing.assert_array_equal(prediction.class_map, truth[0] + 2 * truth[1])
    assert prediction.probabilities is not None
    assert prediction.gate is not None
    high = np.array([0.9, 0.8], np.float32)[:, None, None]
    np.testing.assert_array_equal(prediction.probabilities, np.where(truth, high, np.float32(0.1)))
    np.testing.assert_array_equal(prediction.gate, high.ravel())
    assert [(region.class_id, region.area_px, region.box_xywh) for region in prediction.regions] == [
        (1, 6, (1, 2, 3, 2)),
        (2, 2, (10, 5, 1, 2)),
    ]
    assert (prediction.has_defect, prediction.class_names, prediction.notes) == (True, ("pits", "cracks"), ())
    # Column-major from 1 in 8 rows: column 1 holds pixels 9 to 16, so its rows 2 and 3 are pixels 11 and 12.
    assert prediction.run_lengths() == {1: "11 2 19 2 27 2", 2: "86 2"}
    np.testing.assert_array_equal(prediction.overlay(), paint_prediction(sheet(), truth, ("pits", "cracks")))
    assert_equal(pickle.loads(pickle.dumps(prediction)), prediction)


def test_clean_steel_has_no_defect_and_an_overlay_without_red(make_predictor: Make) -> None:
    prediction = make_predictor()(sheet(pit=False, crack=False))
    assert (prediction.has_defect, prediction.is_blank) == (False, True)  # a single grey
    assert prediction.run_lengths() == {1: "", 2: ""}
    assert prediction.overlay().tolist() == np.full((8, 16, 3), 60).tolist()


def test_arrays_are_copied_and_answered_as_files_are(make_predictor: Make, tmp_path: Path) -> None:
    predictor = make_predictor()
    bgr = np.random.default_rng(0).integers(0, 256, (8, 16, 3), np.uint8)
    deep = sheet().astype(np.uint16) * 257
    strided = np.repeat(sheet(), 2, axis=1)[:, ::2]
    for name, array in {"colour.png": bgr, "deep.png": deep, "strided.png": strided}.items():
        cv2.imwrite(str(tmp_path / name), array)
        expected = predictor(tmp_path / name)
        assert_equal(predictor(str(tmp_path / name)), expected)
        prediction = predictor(array)
        array[:] = 0
        assert_equal(prediction, expected)
    assert predictor(tmp_path / "deep.png").notes == ("16-bit scaled by 1/257",)


@pytest.mark.parametrize("keep_probabilities", [True, False])
def test_many_images_give_what_each_gives_alone(make_predictor: Make, tmp_path: Path, keep_probabilities: bool) -> None:
    predictor, path = make_predictor(keep_probabilities=keep_probabilities), tmp_path / "sheet.png"
    path.write_bytes(cv2.imencode(".png", sheet(pit=False))[1].tobytes())

    def given() -> Iterator[Any]:
        yield path
        frame = sheet()
        for crack in (True, False, True):  # a camera that fills the same array again and again
            frame[:] = sheet(crack=crack)
            yield frame
        yield from (str(path), tmp_path / "missing.png", np.zeros((4, 4)))

    *found, missing, wrong = predictor.many(given())

    assert isinstance(missing, Unreadable)
    assert isinstance(wrong, Unreadable)
    assert (missing.path, wrong.image_id) == (tmp_path / "missing.png", "image 6")
    images: list[Any] = [path, sheet(), sheet(crack=False), sheet(), path]
    for one, image in zip(found, images, strict=True):
        assert isinstance(one, Prediction)
        assert_equal(one, predictor(image))


def test_one_call_has_all_cores_unless_workers_are_given(make_predictor: Make) -> None:
    assert make_predictor().parallel == 1
    assert make_predictor(workers=3).parallel == 3


def test_bits_and_views_that_were_said_hold_for_arrays_and_files_and_travel_along(
    bundle: Path, tmp_path: Path, images: Any
) -> None:
    deep = np.rint(images[0] / 255 * 4095).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    plain = Predictor.load(bundle, device="cpu", runtime="torch")
    said = Predictor.load(bundle, device="cpu", runtime="torch", bit_depth=12, tta="flips")
    for predictor in (said, pickle.loads(pickle.dumps(said))):
        for image in (deep, tmp_path / "deep.png"):
            np.testing.assert_array_equal(predictor(image).image, images[0])
        mirrored = predictor(images[0][:, ::-1]).probabilities
        np.testing.assert_allclose(np.asarray(predictor(images[0]).probabilities)[..., ::-1], np.asarray(mirrored))
    assert plain(deep).image.max() <= 16
    assert not np.array_equal(np.asarray(plain(images[0]).gate), np.asarray(said(images[0]).gate))


@pytest.mark.parametrize(
    ("image", "error", "told"),
    [
        (np.zeros((8, 16)), ImageError, "float64"),
        (np.zeros((8, 16, 2), np.uint8), ImageError, "2 channels"),
        (np.zeros((1, 1, 8, 16), np.uint8), ImageError, r"\(1, 1, 8, 16\)"),
        (np.zeros((0, 16), np.uint8), ImageError, "not empty"),
        ([[1, 2], [3, 4]], UsageError, "list; expected a path or a numpy array"),
        ("no such file.jpg", ImageError, "no such file.jpg: cannot be read"),
    ],
)
def test_what_is_no_image_is_refused(make_predictor: Make, image: Any, error: type[Exception], told: str) -> None:
    with pytest.raises(error, match=told):
        make_predictor()(image)
    if error is UsageError:
        with pytest.raises(error, match=told):
            list(make_predictor().many([sheet(), image]))


@pytest.mark.parametrize("tile_hw", [(1024, 2048), (8, 8)])
def test_without_probabilities_the_rest_is_equal(make_predictor: Make, tile_hw: tuple[int, int]) -> None:
    whole = make_predictor(tile_hw=tile_hw, tile_overlap_px=4)(sheet())
    spare = make_predictor(tile_hw=tile_hw, tile_overlap_px=4, keep_probabilities=False)(sheet())
    assert_equal(spare, replace(whole, answer=None))
    assert spare.answer is None


def test_threads_and_a_pickled_predictor_answer_as_single_calls_do(predictor: Predictor, images: Any) -> None:
    alone = [predictor(image) for image in images]
    assert any(prediction.has_defect for prediction in alone)
    sent = pickle.dumps(predictor)
    assert len(sent) < 2000
    received = pickle.loads(sent)
    assert received.class_names == predictor.class_names == ("pits", "cracks")
    with ThreadPoolExecutor(4) as pool:
        together = [*pool.map(predictor, images * 2), *pool.map(received, images)]
    for index, prediction in enumerate(together):
        assert_equal(prediction, alone[index % len(images)])


@pytest.mark.slow
def test_another_process_answers_the_same(bundle: Path, images: Any) -> None:
    predictor = Predictor.load(bundle, device="cpu", runtime="openvino")
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert_equal(pool.submit(predictor, images[0]).result(timeout=120), predictor(images[0]))


def test_a_pickled_predictor_finds_its_model_from_any_folder_at_the_first_call(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, images: Any
) -> None:
    model = Path(shutil.copy(bundle, tmp_path / "model.safetensors"))
    monkeypatch.chdir(tmp_path)
    sent = pickle.dumps(Predictor.load("model.safetensors", device="cpu", runtime="torch"))
    monkeypatch.chdir(bundle.parent)
    assert pickle.loads(sent)(images[0]).masks.shape == (2, 64, 96)
    model.unlink()
    received = pickle.loads(sent)  # an error here would end a pool's worker
    with pytest.raises(ModelError, match=r"model\.safetensors: no such model file"):
        received(images[0])


def test_the_package_has_no_other_names() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'Predicter'"):
        getattr(defectseg, "Predicter")  # noqa: B009


@pytest.mark.slow
def test_the_examples_in_the_documentation_run(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(bundle, tmp_path / "model.safetensors")
    cv2.imwrite(str(tmp_path / "sheet.jpg"), make_sheet(1, 0, (64, 96)).image)
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert len(blocks) == 5
    names: dict[str, Any] = {}
    exec("\n".join(blocks), names)
    assert names["result"].path == Path("missing.jpg")
    assert Path("sheet-overlay.png").exists()
    assert "missing.jpg: cannot be read" in capsys.readouterr().out
