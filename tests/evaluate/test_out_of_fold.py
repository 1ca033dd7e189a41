import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.data.folder import image_digest, open_data_folder
from defectseg.errors import ModelError, UsageError
from defectseg.evaluate.evaluate import evaluate
from defectseg.evaluate.metrics import Counts, summarise
from defectseg.evaluate.out_of_fold import are_folds, divide_by_seen, score_parts
from defectseg.evaluate.score import score_images
from defectseg.inference.settings import Settings
from defectseg.model.info import ModelInfo, read_model_info
from defectseg.runtime.base import Answer
from defectseg.runtime.ensemble import EnsembleRuntime, join_infos

Call = Callable[..., Any]

SIZE_HW = (32, 48)
STEEL, PIT = 60, 120  # grey levels, as GreyRuntime reads them
FOLDS = ("ab", "cd", "ef")
NEW = "xy"


class _Model:
    """A model that remembers which images it was asked for, by their first pixel, and calls its own level a pit."""

    def __init__(self, made: Any, level: int) -> None:
        made.levels[0, :] = 0.1
        made.levels[0, level] = 0.9
        self._made, self.asked = made, set[str]()
        self.name, self.parallel, self.batch_px, self.class_names = made.name, 1, 0, made.class_names

    def __call__(self, images: NDArray[np.uint8]) -> Answer:
        self.asked |= {chr(level) for level in images[:, 0, 0, 0].tolist()}
        answer: Answer = self._made(images)
        return answer


class _Run:
    """A data folder, and models in RUN/fold-0 and so on that held out two of its images each."""

    def __init__(self, root: Path, data: Path, write_model: Call, make: Call) -> None:
        self.root, self.data, self.write_model = root, data, write_model
        self.models = [_Model(make(), PIT + number) for number in range(3)]
        self.paths = [root / "run" / f"fold-{number}" / "model.safetensors" for number in range(3)]
        for number, path in enumerate(self.paths):
            path.parent.mkdir(parents=True)
            rows = [f"{name}.png,{fold}" for fold, names in enumerate(FOLDS) for name in names]
            (path.parent / "split.csv").write_text("\n".join(["ImageId,fold", *rows, ""]))
            seen = "".join(names for fold, names in enumerate(FOLDS) if fold != number)
            self.describe(number, fold=number, trained_on=[self.digest(name) for name in seen])

    def describe(self, number: int, **info: Any) -> None:
        info["trained_on"] = tuple(info.get("trained_on", ()))
        self.write_model(self.paths[number], **info)

    def digest(self, name: str) -> str:
        return image_digest(self.image(name))

    def image(self, name: str) -> Path:
        return self.data / "train_images" / f"{name}.png"

    @property
    def infos(self) -> list[ModelInfo]:
        return [read_model_info(path) for path in self.paths]

    def load(self, paths: Sequence[Path], *asked: Any) -> tuple[Any, ModelInfo]:
        return EnsembleRuntime(self.models), join_infos(self.infos, paths)

    def evaluate(self, **options: Any) -> tuple[Any, Any]:
        evaluation = evaluate(self.paths, self.data, self.root / "out", **options)
        return evaluation, json.loads((self.root / "out" / "metrics.json").read_text())


@pytest.fixture
def run(
    tmp_path: Path, write_data: Call, write_model: Call, grey_runtime: Call, monkeypatch: pytest.MonkeyPatch
) -> _Run:
    images = {}
    for name in "".join(FOLDS) + NEW:
        images[f"{name}.png"] = image = np.full(SIZE_HW, STEEL, np.uint8)
        image[0, 0] = ord(name)
        for number in range(3):  # 40, 80 and 120 px that only one of the models calls a pit
            image[2 + 8 * number : 6 + 8 * number, 2 : 12 + 10 * number] = PIT + number
    rows = [f"{name},1,{2 * SIZE_HW[0] + 3} 4" for name in images]
    run = _Run(tmp_path, write_data(tmp_path / "data", images, rows, ["pits", "cracks"]), write_model, grey_runtime)
    monkeypatch.setattr("defectseg.evaluate.evaluate.load_runtime", run.load)
    return run


def test_a_fold_scores_what_it_held_out_and_all_together_what_none_saw(run: _Run) -> None:
    evaluation, stored = run.evaluate()

    assert [model.asked for model in run.models] == [{*names, *NEW} for names in FOLDS]
    assert (evaluation.metrics.images, evaluation.warnings) == (8, ())
    assert stored["facts"]["held out by a fold"].startswith("6 images, ")
    assert stored["facts"]["seen by no fold"] == "2 images, scored by the mean of 3 models"
    assert "<dt>held out by a fold</dt><dd>6 images" in (run.root / "out" / "report.html").read_text()
    rows = [line.split(",") for line in (run.root / "out" / "pairs.csv").read_text().splitlines()[1::2]]
    # The model of fold n finds 40 (n + 1) px; the mean of the three, 0.37, is below the pixel threshold everywhere.
    assert [(name[0], int(px)) for name, _, _, px, *_ in rows] == [
        ("a", 40), ("b", 40), ("c", 80), ("d", 80), ("e", 120), ("f", 120), ("x", 0), ("y", 0),
    ]  # fmt: skip


def test_the_score_is_that_of_the_parts_and_progress_counts_all_images(run: _Run) -> None:
    folder, infos, network = open_data_folder(run.data), run.infos, EnsembleRuntime(run.models)
    parts, warnings = divide_by_seen(folder, infos, run.paths)
    steps: list[tuple[int, int]] = []

    score = score_parts(
        network, infos, run.paths, folder, parts, progress=lambda done, total, text="": steps.append((done, total))
    )

    expected: Counts = {}
    for number, names in enumerate(FOLDS):
        ids = [f"{name}.png" for name in names]
        expected |= score_images(run.models[number], folder, ids, Settings.of(infos[number])).counts
    expected |= score_images(network, folder, ["x.png", "y.png"], Settings.of(join_infos(infos, run.paths))).counts
    assert (score.counts, warnings) == (expected, [])
    assert {step for step in steps if step[0]} == {(done, 8) for done in range(1, 9)}
    assert summarise(score.counts, folder.class_names) == run.evaluate()[0].metrics


def test_an_image_that_every_model_saw_is_left_out_and_counted(run: _Run) -> None:
    run.image("c").write_bytes(run.image("a").read_bytes())
    for number in range(3):
        seen = [run.digest(name) for fold, names in enumerate(FOLDS) if fold != number for name in names]
        run.describe(number, fold=number, trained_on=seen)

    evaluation, stored = run.evaluate()

    (warning,) = evaluation.warnings
    assert warning == "left out, since every model was trained on them (or on a copy): 2, a.png, c.png"
    assert stored["images"] == 6
    assert [model.asked for model in run.models] == [{"b", *NEW}, {"d", *NEW}, {"e", "f", *NEW}]

    for number in range(3):
        run.describe(number, fold=number, trained_on=[run.digest(name) for name in "abdefxy"])
    with pytest.raises(UsageError, match="each of the 3 models was trained on all of the images"):
        run.evaluate(overwrite=True)
    assert (run.root / "out" / "metrics.json").exists(), "an earlier evaluation stays"


def test_a_file_that_was_changed_since_the_training_is_told(run: _Run) -> None:
    run.image("e").write_bytes(run.image("x").read_bytes())

    (warning,) = run.evaluate()[0].warnings

    assert warning.startswith("1 images count as new: named in ")
    assert warning.endswith("split.csv, but not the files of then: e.png")


def test_an_image_of_two_models_of_one_fold_gets_their_mean(run: _Run) -> None:
    run.describe(1, fold=0, trained_on=[run.digest(name) for name in "cdef"])

    run.evaluate()

    # Fold 1 has no model of its own any more, so that all have seen its images.
    assert [model.asked for model in run.models] == [set("abxy"), set("abxy"), set("efxy")]


def test_only_models_of_different_folds_are_a_run_of_folds(run: _Run) -> None:
    first, second, third = run.infos
    assert are_folds([first, second, third])
    assert not are_folds([first])
    assert not are_folds([first, first])
    assert not are_folds([first, second.model_copy(update={"fold": None})])


def test_a_model_that_does_not_tell_its_training_images_is_refused(run: _Run) -> None:
    run.describe(1, fold=1)
    with pytest.raises(ModelError, match=r"fold-1/model\.safetensors: does not tell which images it was trained on"):
        run.evaluate()


def test_groups_come_from_the_pattern_or_the_split_beside_the_models(run: _Run) -> None:
    evaluation, stored = run.evaluate()
    assert (evaluation.metrics.groups, stored["groups"]) == (8, 8)
    assert stored["facts"]["groups"] == "8, each image is its own group"
    assert (
        "8 groups of images drawn 1,000 times with replacement (each image is its own group)"
        in (run.root / "out" / "report.html").read_text()
    )

    split = run.paths[0].with_name("split.csv")
    split.write_text("ImageId,fold,group\na.png,0,coil\nb.png,0,coil\nc.png,1,\n")
    stored = run.evaluate(overwrite=True)[1]
    assert (stored["groups"], stored["facts"]["groups"]) == (7, f"7, {split}")

    stored = run.evaluate(overwrite=True, group="[a-e]")[1]
    assert stored["facts"]["groups"] == "8, each image is its own group"

    evaluation, stored = run.evaluate(overwrite=True, group="png")
    assert (stored["groups"], stored["kaggle_dice_interval"]) == (1, None)
    assert evaluation.warnings == ("all images are of one group: how much chance is in the figures cannot be told",)
    assert "one group: no interval" in (run.root / "out" / "report.html").read_text()
    with pytest.raises(UsageError, match="group: 'coil' matches no ImageId"):
        run.evaluate(overwrite=True, group="coil")
    assert (run.root / "out" / "metrics.json").exists(), "an earlier evaluation stays"
