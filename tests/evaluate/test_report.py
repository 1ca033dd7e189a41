import base64
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.evaluate import report
from defectseg.evaluate.bootstrap import Interval
from defectseg.evaluate.metrics import Counts, Metrics, PairCounts, summarise
from defectseg.evaluate.rates import rates_of
from defectseg.evaluate.report import metrics_table, verdict, write_evaluation
from defectseg.evaluate.score import Evaluation, Score
from defectseg.evaluate.sheets import Sheet
from defectseg.inference.stream import Unreadable

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}"
COUNTS: Counts = {
    ("b.jpg", 1): PairCounts(10, 0, 0), ("b.jpg", 2): PairCounts(0, 0, 0),
    ("a.jpg", 1): PairCounts(6, 2, 2), ("a.jpg", 2): PairCounts(0, 5, 0),
    ("c, d.jpg", 1): PairCounts(0, 0, 0), ("c, d.jpg", 2): PairCounts(0, 0, 0),
}  # fmt: skip


class _Page(HTMLParser):
    """Tags with their attributes, and the text outside style and script, as a browser would see them."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] != "style":
            self.text += f" {data}"

    def pictures(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def _sheets(counts: Counts, classes: int) -> dict[str, Sheet]:
    """Sheets on which each pair is one labelled and one predicted region, and no class is taken for another."""
    sheets = {}
    for image_id in {image_id for image_id, _ in counts}:
        own = [(class_id, counts[image_id, class_id]) for class_id in range(1, classes + 1)]
        labelled = tuple((one, pair.true_px, 10 * pair.both_px >= pair.true_px) for one, pair in own if pair.true_px)
        predicted = tuple((one, pair.predicted_px, pair.both_px > 0) for one, pair in own if pair.predicted_px)
        confusion = np.diag([1000, *(pair.both_px for _, pair in own)])
        sheets[image_id] = Sheet(0.25 if image_id == "a.jpg" else None, labelled, predicted, confusion)
    return sheets


def _write(
    out: Path, counts: Counts = COUNTS, class_names: tuple[str, ...] = ("pits", "cracks"), **options: Any
) -> tuple[Metrics, _Page]:
    metrics = summarise(counts, class_names)
    sheets = _sheets(counts, len(class_names))
    told = {name: options.pop(name) for name in ("warnings", "unreadable") if name in options}
    evaluation = Evaluation(metrics, rates_of(counts, sheets, class_names), **({"warnings": ()} | told))
    options = {"title": "Evaluation", "facts": {}, "overlays": {}} | options
    write_evaluation(out, evaluation, Score(counts, sheets), **options)
    return metrics, _Page(out / "report.html")


def _write_overlays(out: Path, names: list[str], size_hw: tuple[int, int] = (20, 100)) -> dict[str, Path]:
    overlays = {name: Path(f"{number}.jpg") for number, name in enumerate(names)}
    for path in overlays.values():
        red = np.full((*size_hw, 3), (0, 0, 255), np.uint8)
        (out / path).write_bytes(cv2.imencode(".jpg", red)[1].tobytes())
    return overlays


def test_tables_hold_no_formulas(tmp_path: Path) -> None:
    counts: Counts = {("=1+1.jpg", 1): PairCounts(1, 1, 1)}
    _write(tmp_path, counts, ("pits",), unreadable=(Unreadable("-1.jpg", Path("@A1"), "=torn"),))
    assert (tmp_path / "pairs.csv").read_text().splitlines()[1] == "'=1+1.jpg,1,1,1,1,1,"
    assert (tmp_path / "errors.csv").read_text().splitlines()[1] == "'-1.jpg,'@A1,'=torn"


def test_tables_hold_the_figures_of_every_pair_in_order(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"
    counts = COUNTS | {("e.jpg", 1): PairCounts(7, 9, 7), ("e.jpg", 2): PairCounts(0, 9, 0, unknown=True)}

    metrics, page = _write(out, counts, title="Night shift", facts={"seed": "3"}, warnings=("few images",))

    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "pairs.csv", "report.html"]
    content = json.loads((out / "metrics.json").read_text())
    assert content["rates"]["all"]["missed"]["count"] == 1
    assert (content["kaggle_dice"], content["unknown_pairs"]) == (metrics.kaggle_dice, 1)
    assert (content["title"], content["facts"], content["warnings"]) == ("Night shift", {"seed": "3"}, ["few images"])
    assert (out / "pairs.csv").read_text().splitlines() == [
        "ImageId,ClassId,true_px,predicted_px,both_px,dice,sheet_score",
        "a.jpg,1,6,2,2,0.5,0.25", "a.jpg,2,0,5,0,0,0.25", "b.jpg,1,10,0,0,0,", "b.jpg,2,0,0,0,1,",
        '"c, d.jpg",1,0,0,0,1,', '"c, d.jpg",2,0,0,0,1,', "e.jpg,1,7,9,7,0.875,", "e.jpg,2,0,9,0,,",
    ]  # fmt: skip
    words = " ".join(page.text.split())
    assert "1 unknown" in words
    bars = (
        "0, nothing of it to 0.1 to 0.2 to 0.3 to 0.4 to 0.5 to 0.6 to 0.7 to 0.8 to 0.9 to 1.0 1 0 0 0 0 1 0 0 0 1 0"
    )
    assert bars in words
    worst = words[words.index("Worst pairs") :]
    places = [worst.index(text) for text in ("b.jpg 1. pits missed", "a.jpg 2. cracks false alarm", "a.jpg 1. pits")]
    assert places == sorted(places)
    assert "The 4 lowest of the 4 pairs" in worst, "an unknown pair is no fault"
    for text in ("0.6250", "0.5714", "+0.0536", "few images", "seed 3"):
        assert text in words
    assert [row[:3] for row in metrics_table(metrics)] == [
        ("class", "images", "unknown"), ("pits", "3", "0"), ("cracks", "0", "1"), ("all", "3", "1"),
    ]  # fmt: skip


def test_a_class_that_is_unknown_in_all_images_has_dashes(tmp_path: Path) -> None:
    counts = {("a.jpg", 1): PairCounts(4, 4, 4), ("a.jpg", 2): PairCounts(0, 0, 0, unknown=True)}

    metrics, page = _write(tmp_path, counts)

    assert re.search(r"cracks\s+0\s+–\s+–\s+–\s+–", page.text)
    assert metrics_table(metrics)[2][:5] == ("cracks", "0", "1", "–", "–")


def test_page_is_self_contained(tmp_path: Path) -> None:
    overlays = _write_overlays(tmp_path, ["a.jpg", "b.jpg"])

    _, page = _write(tmp_path, overlays=overlays)  # a.jpg has two faults and is shown once

    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "form"})
    assert {attributes["href"] for tag, attributes in page.tags if tag == "a"} == {"#pictures"}
    assert len(page.pictures()) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.pictures())
    source = (tmp_path / "report.html").read_text()
    assert not re.findall(r"url\((?!#)", source), "nothing outside the page is drawn"
    assert "@import" not in source
    policy = next(attributes["content"] for _, attributes in page.tags if "http-equiv" in attributes)
    assert policy == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    counts = {(HOSTILE, 1): PairCounts(5, 0, 0)}
    overlays = _write_overlays(tmp_path, [HOSTILE])

    _, page = _write(
        tmp_path, counts, class_names=(HOSTILE,), title=HOSTILE, facts={HOSTILE: HOSTILE}, overlays=overlays,
        warnings=(HOSTILE,),
    )  # fmt: skip

    tags = {tag for tag, _ in page.tags}
    assert "script" not in tags
    assert not [name for _, attributes in page.tags for name in attributes if name.startswith("on")]
    # Two titles, warning, image with its class and class of the advice, two tables, filter, image and class of the
    # caption and of the worst pair, name and value of the fact.
    assert page.text.count(HOSTILE) == 15
    assert len(page.pictures()) == 1
    assert ("img", {"src": page.pictures()[0], "alt": f"Overlay of {HOSTILE}"}) in page.tags


def test_wide_overlays_are_scaled_to_1600_px_and_others_left(tmp_path: Path) -> None:
    for width, shape in ((3200, (50, 1600, 3)), (1600, (100, 1600, 3))):
        _, page = _write(tmp_path, overlays=_write_overlays(tmp_path, ["a.jpg"], (100, width)))

        (source,) = page.pictures()
        jpeg = np.frombuffer(base64.b64decode(source.removeprefix("data:image/jpeg;base64,")), np.uint8)
        assert np.asarray(cv2.imdecode(jpeg, cv2.IMREAD_COLOR)).shape == shape


def test_pictures_stay_below_their_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "PICTURES_BYTES", 30_000)
    noise = np.random.default_rng(0).integers(0, 256, (400, 400, 3), np.uint8)
    counts: Counts = {(f"{number}.jpg", 1): PairCounts(9 + number, 0, 0) for number in range(4)}
    for image_id, _ in counts:
        (tmp_path / image_id).write_bytes(cv2.imencode(".jpg", noise)[1].tobytes())

    _, page = _write(tmp_path, counts, ("pits",), overlays={image_id: Path(image_id) for image_id, _ in counts})

    sizes = [len(base64.b64decode(source.removeprefix("data:image/jpeg;base64,"))) for source in page.pictures()]
    assert len(sizes) == 4
    assert 3_000 < min(sizes) <= max(sizes) <= 7_500


@pytest.mark.parametrize("pair", [PairCounts(5, 5, 5), PairCounts(0, 0, 0)], ids=["found", "without defects"])
def test_a_perfect_answer_has_no_worst_pairs_and_dashes_for_missing_figures(tmp_path: Path, pair: PairCounts) -> None:
    _, page = _write(tmp_path, {("a.jpg", 1): pair}, class_names=("pits",))

    assert "Every pair scores 1." in page.text
    assert not re.search("None|nan", page.text)
    assert "Nothing: no sheet was missed and none was stopped." in page.text
    assert ("How the defects score" in page.text) == bool(pair.true_px)


def test_table_has_headings_a_row_for_each_class_and_one_for_all() -> None:
    rows = metrics_table(summarise(COUNTS, ["pits", "cracks"]))

    assert rows == [
        ("class", "images", "Kaggle Dice", "all empty", "positive Dice", "IoU", "precision", "recall"),
        ("pits", "2", "0.5000", "0.3333", "0.2500", "0.1250", "1.0000", "0.1250"),
        ("cracks", "0", "0.6667", "1.0000", "–", "0.0000", "0.0000", "–"),
        ("all", "2", "0.5833", "0.6667", "0.2500", "0.1250", "", ""),
    ]


@pytest.mark.parametrize(
    ("gain", "low", "high", "told", "unproven"),
    [
        (0.05, 0.03, 0.07, r"Better .* \(\+0.0500, 95 % interval \+0.0300 to \+0.0700\)\.", False),
        (-0.05, -0.06, -0.04, r"Worse .* \(−0.0500, 95 % interval −0.0600 to −0.0400\)\.", False),
        (0.05, 0.0, 0.2, r"Better .* \(\+0.0500, 95 % interval \+0.0000 to \+0.2000\)\.", True),
        (-0.05, -0.1, 0.0, r"Worse .* \(−0.0500, 95 % interval −0.1000 to \+0.0000\)\.", True),
        (0.0, 0.0, 0.0, "No better and no worse than predicting nothing: .*", False),
    ],
)
def test_verdict_compares_with_empty_predictions(
    gain: float, low: float, high: float, told: str, unproven: bool
) -> None:
    figures: dict[str, Any] = {"kaggle_dice": 0.8 + gain, "all_empty": 0.8, "gain_over_empty": gain}
    metrics = summarise(COUNTS, ["pits", "cracks"])

    sentence = verdict(replace(metrics, gain_over_empty_interval=Interval(low, high), **figures))

    assert re.match(told, sentence)
    assert f"Kaggle Dice {0.8 + gain:.4f} against 0.8000" in sentence
    assert ("the 3 images do not prove it" in sentence) == unproven
