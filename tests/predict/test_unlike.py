"""Images that look unlike those that the model was trained on."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.image.appearance import NUMBERS
from defectseg.image.find import find_images
from defectseg.image.measure import appearance_of
from defectseg.model.appearance import Appearance
from defectseg.predict.merge import merge
from defectseg.predict.predict import predict
from defectseg.predict.shards import Shard
from defectseg.predict.tables import Record, choose_outputs
from defectseg.predict.unlike import Unlike, judged
from defectseg.train.appearance import fit_appearance

DARK, BLANK = 5, 7  # numbers of images that are not as the others
COLUMNS = ("unlike", "differs", "brightness", "contrast", "sharpness_along", "sharpness_across", "black_percent")


def _steel(number: int) -> NDArray[np.uint8]:
    random = np.random.default_rng(number)
    texture = cv2.GaussianBlur(random.normal(0, 40, (64, 192)), (0, 0), random.uniform(1.8, 2.2))
    return np.asarray(np.clip(random.normal(70, 2) + texture, 40, 100), np.uint8)


def _darker(factor: float, number: int = 1) -> NDArray[np.uint8]:
    return np.asarray(_steel(number) * factor, np.uint8)


@pytest.fixture(scope="module")
def trained() -> Appearance:
    """How forty images of steel look, each a group of its own."""
    images = [_steel(number) for number in range(100, 140)]
    found = fit_appearance([*map(appearance_of, images)], [*map(str, range(40))], np.zeros(40, bool))
    assert found is not None
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of steel, one of them much darker, and one blank."""
    (tmp_path / "in").mkdir()
    for number in range(10):
        factor = {DARK: 0.5, BLANK: 0.0}.get(number, 1.0)
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), _darker(factor, number))
    return tmp_path / "in"


@pytest.fixture
def process(
    tmp_path: Path,
    folder: Path,
    grey_runtime: Callable[..., Any],
    write_model: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., dict[str, Any]]:
    """Predicts with a model that describes its training images, or does not, into a folder of a name."""
    model = write_model(tmp_path / "model.safetensors")

    def predict_on(name: str, appearance: Appearance | None, **options: Any) -> dict[str, Any]:
        runtime = grey_runtime()
        info = runtime.info.model_copy(update={"appearance": appearance})
        monkeypatch.setattr("defectseg.predict.predict.load_runtime", lambda *_, **__: (runtime, info))
        choice = choose_outputs(None, None)
        return predict(model, find_images([folder]), tmp_path / name, choice=choice, **options)

    return predict_on


def _cells(folder: Path) -> list[list[str]]:
    with (folder / "images.csv").open(encoding="utf-8", newline="") as file:
        return [[row[name] for name in COLUMNS] for row in csv.DictReader(file)]


def test_the_dark_image_is_flagged_and_told_in_words(
    tmp_path: Path, process: Callable[..., dict[str, Any]], trained: Appearance
) -> None:
    run = process("out", trained)

    rows = _cells(tmp_path / "out")
    assert [number for number, row in enumerate(rows) if row[1]] == [DARK]
    assert rows[DARK][0] == "1.0000"
    share = 100 * (1 - float(rows[DARK][2]) / np.mean([float(rows[number][2]) for number in range(5)]))
    assert rows[DARK][1].startswith("darker by ")
    assert float(rows[DARK][1].split()[2]) == pytest.approx(share, abs=5)
    assert rows[BLANK] == [""] * len(COLUMNS)
    usual = [float(row[0]) for number, row in enumerate(rows) if number not in (DARK, BLANK)]
    assert all(0 <= rank <= 1 for rank in usual)
    assert len(set(usual)) > 4
    assert run["unlike"] == {"state": "judged", "images": 1, "differs": rows[DARK][1]}
    assert Appearance.model_validate(json.loads((tmp_path / "out" / "run.json").read_text())["training"]).images == 40


def test_the_journal_holds_the_description_as_it_is_computed(
    tmp_path: Path, process: Callable[..., dict[str, Any]], trained: Appearance
) -> None:
    process("out", trained)
    records = [json.loads(line) for line in (tmp_path / "out" / "journal.jsonl").read_text().splitlines()]
    of_image = {record["image"]["ImageId"]: record["appearance"] for record in records}
    assert of_image[f"{BLANK}.png"] == []
    np.testing.assert_allclose(of_image["3.png"], appearance_of(_steel(3)), atol=1e-4)


def test_a_model_that_is_uncalibrated_or_says_nothing_flags_nothing(
    tmp_path: Path, process: Callable[..., dict[str, Any]], trained: Appearance
) -> None:
    few = trained.model_copy(update={"threshold": None})
    assert process("few", few)["unlike"] == {"state": "uncalibrated", "images": 0, "differs": ""}
    assert _cells(tmp_path / "few")[DARK][:2] == ["1.0000", ""], "the rank is known all the same"

    assert process("none", None)["unlike"] == {"state": "not judged", "images": 0, "differs": ""}
    assert _cells(tmp_path / "none")[DARK][:2] == ["", ""]
    assert _cells(tmp_path / "none")[DARK][2] != "", "the readable numbers need no model"


def test_merged_shards_tell_what_one_run_tells(
    tmp_path: Path, process: Callable[..., dict[str, Any]], trained: Appearance
) -> None:
    whole = process("whole", trained)
    for index in (1, 2):
        process(str(index), trained, shard=Shard(index, 2))

    merged = merge([tmp_path / "1", tmp_path / "2"], tmp_path / "merged")

    assert merged["unlike"] == whole["unlike"]
    assert merged["training"] == whole["training"]
    assert _cells(tmp_path / "merged") == _cells(tmp_path / "whole")


def test_a_record_whose_description_is_cut_short_is_done_again(
    tmp_path: Path, process: Callable[..., dict[str, Any]], trained: Appearance
) -> None:
    process("out", trained)
    journal = tmp_path / "out" / "journal.jsonl"
    lines = journal.read_text().splitlines()
    damaged = json.loads(lines[0])
    damaged["appearance"] = damaged["appearance"][: NUMBERS - 1]
    journal.write_text("\n".join([json.dumps(damaged), *lines[1:]]) + "\n")

    assert process("out", trained)["processed"] == 1


def test_the_mean_of_the_flagged_images_is_told(trained: Appearance) -> None:
    flagged = [
        Record({"status": "clean", "differs": "darker"}, [], [], [], appearance_of(_darker(factor)).tolist())
        for factor in (0.4, 0.9)
    ]
    unlike = Unlike(trained)
    for record in flagged:
        unlike.add(record)

    told = unlike.told()
    mean = np.mean([record.appearance for record in flagged], axis=0)
    assert told == {"state": "judged", "images": 2, "differs": trained.in_words(mean, has_defect=0)}
    assert judged((), trained, has_defect=False) == {}
