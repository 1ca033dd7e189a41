import csv
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from html import escape
from math import comb
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.compare import sources
from defectseg.compare.compare import compare
from defectseg.compare.report import Result, write_result_folder
from defectseg.compare.unlabelled import compare_unlabelled, votes_needed
from defectseg.data.folder import image_digest, open_data_folder
from defectseg.errors import DataError, DefectsegError, LabelError, OutputExistsError, UsageError
from defectseg.evaluate.evaluate import evaluate_predictions
from defectseg.image.find import find_images
from defectseg.predict.predict import predict

Call = Callable[..., Any]

SIZE_HW = (16, 24)
STEEL, PIT, CRACK = 60, 120, 160  # grey levels, as GreyRuntime reads them
NAMES = [f"coil{number // 2:02}_{number:02}.png" for number in range(48)]
DEFECTIVE = NAMES[:24]
HEADER = "ImageId,ClassId,EncodedPixels"


@dataclass
class _Bench:
    """48 images of 24 coils; the first 24 have a pit of 6 x 4 px, which the model sees. A table sees what it lists."""

    root: Path
    data: Path
    model: Path
    runtime: Any

    def table(self, name: str, rows: Sequence[str]) -> str:
        path = self.root / name
        listed = {row.partition(",")[0] for row in rows}
        path.write_text("\n".join([HEADER, *(f"{one},1," for one in NAMES if one not in listed), *rows, ""]))
        return str(path)

    def results(self, name: str = "results", *, names: Sequence[str] = NAMES) -> str:
        predict(self.model, find_images([self.data / "train_images" / one for one in names]), self.root / name)
        return str(self.root / name)

    def describe(self, **info: Any) -> None:
        self.runtime.info = self.runtime.info.model_copy(update=info)


def _pit(rows: int = 4) -> str:
    """The first rows of the pit, which begins at column 2 and row 1."""
    return " ".join(f"{column * SIZE_HW[0] + 2} {rows}" for column in range(2, 8))


@pytest.fixture
def bench(
    tmp_path: Path, write_data: Call, write_model: Call, grey_runtime: Call, monkeypatch: pytest.MonkeyPatch
) -> _Bench:
    images: dict[str, NDArray[np.uint8]] = {name: np.full(SIZE_HW, STEEL, np.uint8) for name in NAMES}
    for name in DEFECTIVE:
        images[name][1:5, 2:8] = PIT
    rows = [f"{name},1,{_pit()}" for name in DEFECTIVE]
    data = write_data(tmp_path / "data", images, rows, ["pits", "cracks"])
    bench = _Bench(tmp_path, data, tmp_path / "run" / "model.safetensors", grey_runtime())
    bench.model.parent.mkdir()
    write_model(bench.model, trained_on=("0" * 12,))
    for module in ("compare.sources", "predict.predict"):
        monkeypatch.setattr(
            f"defectseg.{module}.load_runtime", lambda *asked, **options: (bench.runtime, bench.runtime.info)
        )
    return bench


def _columns(frame: Any, *names: str) -> list[tuple[Any, ...]]:
    return list(frame[list(names)].itertuples(index=False, name=None))


def test_two_tables_differ_as_their_own_evaluations_do(bench: _Bench) -> None:
    good = bench.table("a.csv", [f"{name},1,{_pit()}" for name in DEFECTIVE])
    bad = bench.table("b.csv", [f"{name},1,{_pit(3)}" for name in DEFECTIVE[2:]] + [f"{NAMES[-1]},2,1 9"])

    done = compare(good, bad, bench.data)

    assert done.verdict is not None
    dice = done.verdict.differences["kaggle_dice"]
    by_file = [evaluate_predictions(Path(one), bench.data, None).metrics for one in (good, bad)]
    assert [dice.a, dice.b] == pytest.approx([one.kaggle_dice for one in by_file], abs=1e-12)
    positive = done.verdict.differences["positive_dice"]
    assert [positive.a, positive.b] == pytest.approx([one.positive_dice for one in by_file], abs=1e-12)
    figures = {name: (one.a, one.b) for name, one in done.verdict.differences.items()}
    assert figures["missed_sheets"] == pytest.approx((0, 2 / 24))
    assert figures["stopped_sheets"] == pytest.approx((0, 1 / 24))
    assert figures["region_recall"] == pytest.approx((1, 22 / 24))
    assert (done.content["images"], done.content["changed"], done.verdict.groups) == (48, 25, 48)
    assert _columns(done.images, "ImageId", "missed_b", "stopped_b")[:3] == [
        (NAMES[0], 1, 0), (NAMES[1], 1, 0), (NAMES[-1], 0, 1),
    ]  # fmt: skip
    assert done.images["dice_difference"].iloc[0] == -0.5
    assert done.verdict.verdict == "worse"
    assert "not for the recipes that made them" in done.sentences[-2]
    assert done.sentences[-1] == "48 images in 48 groups: each image is its own group."


def test_groups_are_counted_and_named_by_the_pattern(bench: _Bench) -> None:
    done = compare(bench.table("a.csv", []), bench.table("b.csv", []), bench.data, group="coil[0-9]+")
    assert done.verdict is not None
    assert (done.verdict.groups, done.verdict.verdict) == (24, "not worse")
    assert done.images.empty


def test_a_model_its_results_and_its_table_answer_the_same(bench: _Bench) -> None:
    results = bench.results()
    for other in (results, f"{results}/predictions.csv", str(bench.model)):
        done = compare(str(bench.model.parent), other, bench.data)
        assert done.images.empty
        assert done.verdict is not None
        assert done.verdict.differences["positive_dice"].b == 1


def test_classes_are_matched_by_name_whatever_their_numbers(bench: _Bench, tmp_path: Path) -> None:
    results = bench.results()
    (bench.data / "classes.txt").write_text("cracks\npits\n")
    (bench.data / "train.csv").write_text("\n".join([HEADER, *(f"{name},2,{_pit()}" for name in DEFECTIVE), ""]))
    table = bench.table("a.csv", [f"{name},2,{_pit()}" for name in DEFECTIVE])

    assert compare(table, results, bench.data).images.empty
    (bench.data / "classes.txt").write_text("dents\npits\n")
    with pytest.raises(DataError, match="dents"):
        compare(table, results, bench.data)


def test_a_model_is_refused_on_images_that_it_was_trained_on(bench: _Bench, write_model: Call) -> None:
    digests = tuple(image_digest(bench.data / "train_images" / name) for name in (NAMES[0], NAMES[30]))
    write_model(bench.model, trained_on=digests, fold=0)
    table, results = bench.table("a.csv", []), bench.results()
    # Two pictures of sound steel have the same bytes, so all 24 of them were seen, and all 24 equal pits.
    for source in (str(bench.model), results):
        with pytest.raises(UsageError, match="was trained on 48 of these 48") as refused:
            compare(table, source, bench.data)
        assert refused.value.go_on == {"allow_seen": True}
        told = compare(table, source, bench.data, allow_seen=True).warnings
        assert "nobody knows" in told[0]
        assert "favours it" in told[1]
    (warned,) = evaluate_predictions(Path(results), bench.data, None).warnings
    assert "was trained on 48 of these 48 images" in warned


def test_nothing_depends_on_answers_of_an_unknown_model_unless_that_is_allowed(bench: _Bench) -> None:
    table, results = bench.table("a.csv", []), bench.results()
    assert compare(results, results, bench.data, require="better").verdict is not None
    with pytest.raises(UsageError, match=r"a\.csv: nobody knows") as refused:
        compare(results, table, bench.data, require="better")
    assert refused.value.go_on == {"allow_unknown": True}
    assert compare(results, table, bench.data, require="better", allow_unknown=True).verdict is not None
    moved = bench.model.rename(bench.root / "moved.safetensors")
    told = f"results: nobody knows what the model was trained on, since it is not, or no longer, at {bench.model}"
    with pytest.raises(UsageError, match=re.escape(told)):
        compare(results, results, bench.data, require="better")
    assert [one.endswith(told) for one in compare(results, results, bench.data).warnings] == [True]
    (Path(results) / "run.json").unlink()
    with pytest.raises(DataError, match=r"has no run\.json"):
        compare(results, str(moved), bench.data)


def test_a_low_bit_depth_is_warned_of_and_compared_correctly_once_it_is_known(bench: _Bench) -> None:
    for path in (bench.data / "train_images").iterdir():
        grey = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert grey is not None
        cv2.imwrite(str(path), np.rint(grey / 255.0 * 4095).astype(np.uint16))
    table = bench.table("a.csv", [f"{name},1,{_pit()}" for name in DEFECTIVE])

    black, right = (compare(table, str(bench.model), bench.data, bit_depth=bits) for bits in (None, 12))
    assert any("48 of 48 16-bit images" in one and "bit_depth=12" in one for one in black.warnings)
    assert not any("16-bit" in one for one in right.warnings)
    assert (len(black.images), len(right.images)) == (24, 0)


def test_models_of_folds_answer_for_the_images_that_they_held_out(
    bench: _Bench, write_model: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, name in enumerate(NAMES):  # no two images alike
        path = bench.data / "train_images" / name
        image = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        assert image is not None
        image[-1, -1] = number
        path.write_bytes(cv2.imencode(".png", image)[1].tobytes())
    digests = [image_digest(bench.data / "train_images" / name) for name in NAMES]
    for fold in range(2):
        (bench.root / "folds" / f"fold-{fold}").mkdir(parents=True)
        path = bench.root / "folds" / f"fold-{fold}" / "model.safetensors"
        write_model(path, trained_on=tuple(digests[1 - fold :: 2]), fold=fold)
    asked: list[Any] = []

    def score_parts(network: Any, infos: Any, models: Any, folder: Any, parts: Any, **options: Any) -> Any:
        asked.append(parts)
        return replace(scored, unreadable=())

    side = sources.Side(sources.open_source(bench.results()), open_data_folder(bench.data), "all")
    scored = side.score
    monkeypatch.setattr(sources, "score_parts", score_parts)

    done = compare(str(bench.root / "folds"), f"{bench.root / 'results'}/predictions.csv", bench.data)

    assert asked == [[((0,), tuple(NAMES[0::2])), ((1,), tuple(NAMES[1::2]))]]
    assert done.content["images"] == 48


def test_a_subset_is_that_of_the_model_and_images_outside_it_need_not_be_new(bench: _Bench, write_model: Call) -> None:
    image = bench.data / "train_images" / NAMES[1]
    image.write_bytes(image.read_bytes() + b" ")  # no other image has these bytes
    write_model(bench.model, trained_on=(image_digest(image),), fold=0)
    rows = [f"{name},{number % 2}" for number, name in enumerate(NAMES)]
    (bench.model.parent / "split.csv").write_text("\n".join(["ImageId,fold", *rows, ""]))

    done = compare(
        str(bench.model), bench.table("b.csv", []), bench.data, subset="val", require="better", allow_unknown=True
    )

    assert done.content["images"] == 24
    assert set(done.images["ImageId"]) == set(DEFECTIVE[::2])


def test_images_without_an_answer_of_both_are_left_out_and_told(bench: _Bench) -> None:
    table = bench.table("a.csv", [])
    torn = bench.data / "train_images" / NAMES[5]
    whole = torn.read_bytes()
    torn.write_bytes(whole[:60])
    results = bench.results(names=NAMES[:40])
    torn.write_bytes(whole)

    done = compare(results, table, bench.data)

    assert (done.content["images"], done.unreadable) == (39, 1)
    assert any("8 images are not in results" in warning for warning in done.warnings)
    assert sum("left out, unreadable" in warning for warning in done.warnings) == 1


@pytest.mark.parametrize(
    ("change", "error", "told"),
    [
        (lambda bench: bench.table("a.csv", [f"{NAMES[0]},1,380 9"]), LabelError, NAMES[0]),
        (lambda bench: bench.table("a.csv", [f"{NAMES[0]},3,1 9"]), LabelError, "ClassId 3"),
        (lambda bench: str(bench.root / "absent.csv"), DefectsegError, r"absent\.csv"),
        (lambda bench: str(bench.root / "absent"), DefectsegError, "absent"),
    ],
    ids=["beyond the image", "class", "no table", "no model"],
)
def test_answers_that_do_not_fit_are_refused(
    bench: _Bench, change: Callable[[_Bench], str], error: type[Exception], told: str
) -> None:
    good = bench.table("b.csv", [])
    with pytest.raises(error, match=told):
        compare(good, change(bench), bench.data)
    with pytest.raises(UsageError, match="neither side has a model"):
        compare(good, good, bench.data, subset="val")


def test_without_class_names_models_must_agree_on_theirs(bench: _Bench, write_model: Call) -> None:
    (bench.data / "classes.txt").unlink()
    other = write_model(bench.root / "other.safetensors", class_names=("cracks", "pits"))
    with pytest.raises(DataError, match="name their classes differently"):
        compare(str(bench.model), str(other), bench.data)


def test_the_folder_holds_figures_changes_and_pictures_of_a_label_and_b(bench: _Bench) -> None:
    hostile = "<img src=x onerror=alert(1)>.png"
    first = bench.data / "train_images" / DEFECTIVE[0]
    first.rename(first.with_name(hostile))
    train = bench.data / "train.csv"
    train.write_text(train.read_text().replace(DEFECTIVE[0], hostile))
    results = bench.results(names=[hostile, *NAMES[1:]])
    table = bench.table("b.csv", [f"{hostile},1,{_pit(2)}", f"{NAMES[-1]},2,1 9"])
    done = compare(results, table, bench.data)
    out = bench.root / "out"

    write_result_folder(out, done)

    assert {one.name for one in out.iterdir()} == {"compare.html", "compare.json", "images.csv", "pictures"}
    content = json.loads((out / "compare.json").read_text())
    assert content["differences"]["kaggle_dice"]["interval"]["low"] < 0
    assert (content["verdict"], content["changed"]) == ("worse", 25)
    with (out / "images.csv").open(encoding="utf-8", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert len(rows) == 25
    assert len(list((out / "pictures").iterdir())) == 25
    page = (out / "compare.html").read_text()
    shown = [page.index(f'class="id">{escape(str(one))}') for one in done.images["ImageId"]]
    assert shown == sorted(shown), "as in images.csv"
    assert "<img src=x" not in page
    assert page.count('src="data:image/jpeg') == 25
    name = next(one for one in (out / "pictures").iterdir() if "alert" in one.name)
    picture = np.asarray(cv2.imread(str(name)), np.int64)
    height, width = SIZE_HW
    panels = [picture[:height, start : start + width] for start in range(0, 3 * (width + 10), width + 10)]
    reddish = [(panel[..., 2] - panel[..., 0] > 60).sum() for panel in panels]
    assert reddish[0] > 1.5 * reddish[2] > 0 == reddish[1]
    assert (panels[1][..., 0] - panels[1][..., 2] > 60).sum() > 12
    with pytest.raises(OutputExistsError):
        write_result_folder(out, done)
    write_result_folder(out, done, overwrite=True)


def _unlabelled(bench: _Bench, **options: Any) -> Result:
    a = bench.table(
        "a.csv", [*(f"{name},1,1 {9 + number}" for number, name in enumerate(NAMES[:10])), f"{NAMES[40]},1,1 9"]
    )
    b = bench.table("b.csv", [*(f"{name},2,1 5" for name in NAMES[20:22]), f"{NAMES[40]},2,1 9"])
    return compare_unlabelled(a, b, **options)


def test_without_labels_the_sheets_that_change_are_told_both_ways_and_the_worst_first(bench: _Bench) -> None:
    done = _unlabelled(bench, images=bench.data / "train_images")

    assert "10 are defective for A alone, 2 for B alone, and for 1 the two find other classes" in done.sentences[0]
    assert _columns(done.images, "ImageId", "change", "classes_a", "classes_b", "changed_px") == [
        *((NAMES[number], "only A finds a defect", "class 1", "", 9 + number) for number in range(9, -1, -1)),
        *((name, "only B finds a defect", "", "class 2", 5) for name in NAMES[20:22]),
        (NAMES[40], "other classes", "class 1", "class 2", 18),
    ]
    assert done.to_label == (*NAMES[:10], *NAMES[20:22]), "all that change between sound and defective"
    write_result_folder(bench.root / "out", done)
    assert (bench.root / "out" / "to_label.csv").read_text().split() == ["ImageId", *done.to_label]
    assert len(list((bench.root / "out" / "pictures").iterdir())) == 13
    assert "The figures" not in (bench.root / "out" / "compare.html").read_text()


def test_too_few_groups_cannot_decide_and_many_are_drawn_at_random(bench: _Bench) -> None:
    assert "at least 7 groups must change" in _unlabelled(bench, group="coil[0-9]+").sentences[1]
    many = [f"x{number:03}.png" for number in range(100)]
    a, b = bench.root / "a.csv", bench.root / "b.csv"
    a.write_text("\n".join([HEADER, *(f"{name},1,1 {number + 1}" for number, name in enumerate(many))]))
    b.write_text("\n".join([HEADER, *(f"{name},1," for name in many)]))
    done = compare_unlabelled(str(a), str(b))
    assert len(done.to_label) == 40
    assert set(done.to_label) != set(many[-40:])
    assert done.panels is None


def test_votes_needed_are_those_of_the_exact_sign_test() -> None:
    least, probably = votes_needed()
    assert 0.5**least <= 0.01 < 0.5 ** (least - 1)

    def power(groups: int, share: float, against: int) -> float:
        return sum(comb(groups, k) * share**k * (1 - share) ** (groups - k) for k in range(against, groups + 1))

    def enough(groups: int) -> int:
        return next(k for k in range(groups + 2) if power(groups, 0.5, k) <= 0.01)

    assert power(probably, 0.75, enough(probably)) >= 0.8
    assert all(power(groups, 0.75, enough(groups)) < 0.8 for groups in range(1, probably))


def test_without_labels_models_and_strangers_are_refused(bench: _Bench) -> None:
    table = bench.table("a.csv", [])
    with pytest.raises(UsageError, match="is a model"):
        compare_unlabelled(table, str(bench.model))
    other = bench.root / "other.csv"
    other.write_text(f"{HEADER}\nz.png,1,1 2\n")
    with pytest.raises(DataError, match="no image in common"):
        compare_unlabelled(table, str(other))
