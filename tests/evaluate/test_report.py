import base64
import csv
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from defectseg.evaluate.bootstrap import Interval
from defectseg.evaluate.metrics import Counts, Metrics, PairCounts, summarise
from defectseg.evaluate.report import metrics_table, verdict, write_evaluation

UNPROVEN = " The interval holds zero, so the 3 images do not prove it."
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
            self.text += data

    def pictures(self) -> list[str]:
        return [attributes["src"] or "" for tag, attributes in self.tags if tag == "img"]


def _write(
    out: Path,
    counts: Counts = COUNTS,
    *,
    class_names: tuple[str, ...] = ("pits", "cracks"),
    title: str = "Evaluation",
    facts: dict[str, str] | None = None,
    overlays: dict[str, Path] | None = None,
    warnings: tuple[str, ...] = (),
) -> tuple[Metrics, _Page]:
    metrics = summarise(counts, class_names)
    write_evaluation(out, metrics, counts, title=title, facts=facts or {}, overlays=overlays or {}, warnings=warnings)
    return metrics, _Page(out / "report.html")


def _write_overlays(out: Path, names: list[str], size_hw: tuple[int, int] = (20, 100)) -> dict[str, Path]:
    (out / "overlays").mkdir(parents=True)
    overlays: dict[str, Path] = {}
    for name in names:
        red = np.full((*size_hw, 3), (0, 0, 255), np.uint8)
        overlays[name] = Path("overlays") / f"{len(overlays)}.jpg"
        (out / overlays[name]).write_bytes(cv2.imencode(".jpg", red)[1].tobytes())
    return overlays


def _decode(data_uri: str) -> NDArray[np.uint8]:
    prefix = "data:image/jpeg;base64,"
    assert data_uri.startswith(prefix)
    picture = cv2.imdecode(np.frombuffer(base64.b64decode(data_uri.removeprefix(prefix)), np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    return np.asarray(picture, np.uint8)


def test_three_files_are_written_and_metrics_json_holds_the_figures_and_what_they_are_of(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "out"

    metrics, _ = _write(out, title="Night shift", facts={"seed": "3"}, warnings=("few images",))

    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "pairs.csv", "report.html"]
    content = json.loads((out / "metrics.json").read_text())
    assert content["kaggle_dice"] == metrics.kaggle_dice
    assert set(content["kaggle_dice_interval"]) == {"low", "high"}
    assert [one["name"] for one in content["classes"]] == ["pits", "cracks"]
    assert (content["title"], content["facts"], content["warnings"]) == ("Night shift", {"seed": "3"}, ["few images"])


def test_pairs_csv_has_every_pair_in_order(tmp_path: Path) -> None:
    _write(tmp_path)

    with (tmp_path / "pairs.csv").open(newline="") as handle:
        rows = list(csv.reader(handle))
    assert rows[:3] == [
        ["ImageId", "ClassId", "true_px", "predicted_px", "both_px", "dice"],
        ["a.jpg", "1", "6", "2", "2", "0.5"],
        ["a.jpg", "2", "0", "5", "0", "0"],
    ]
    assert rows[-1] == ["c, d.jpg", "2", "0", "0", "0", "1"]
    assert len(rows) == 1 + len(COUNTS)


def test_pairs_csv_gives_the_kaggle_dice_back(tmp_path: Path) -> None:
    counts = {(f"{index}.jpg", 1): PairCounts(7 + index, 9 + 3 * index, 7) for index in range(50)}

    metrics, _ = _write(tmp_path, counts, class_names=("pits",))

    with (tmp_path / "pairs.csv").open(newline="") as handle:
        dice = [float(row["dice"]) for row in csv.DictReader(handle)]
    assert sum(dice) / len(dice) == pytest.approx(metrics.kaggle_dice, abs=1e-9)


def test_unknown_pairs_are_told_and_no_faults(tmp_path: Path) -> None:
    hidden = {(f"{image}.jpg", 1): PairCounts(0, 9, 0, unknown=True) for image in "xyz"}
    counts = COUNTS | hidden | {(f"{image}.jpg", 2): PairCounts(0, 0, 0) for image in "xyz"}

    metrics, page = _write(tmp_path, counts)

    assert "3 unknown" in page.text
    assert "x.jpg" not in page.text
    assert json.loads((tmp_path / "metrics.json").read_text())["unknown_pairs"] == 3
    assert "\nx.jpg,1,0,9,0,\n" in (tmp_path / "pairs.csv").read_text()
    assert [row[:3] for row in metrics_table(metrics)] == [
        ("class", "images", "unknown"), ("pits", "2", "3"), ("cracks", "0", "0"), ("all", "2", "3"),
    ]  # fmt: skip


def test_a_class_that_is_unknown_in_all_images_has_dashes(tmp_path: Path) -> None:
    counts = {("a.jpg", 1): PairCounts(4, 4, 4), ("a.jpg", 2): PairCounts(0, 0, 0, unknown=True)}

    metrics, page = _write(tmp_path, counts)

    assert re.search(r"cracks\s+0\s+–\s+–\s+–\s+–", page.text)
    assert metrics_table(metrics)[2][:5] == ("cracks", "0", "1", "–", "–")


def test_page_shows_the_headline_beside_the_all_empty_baseline(tmp_path: Path) -> None:
    # Dice 0.5, 0, 0, 1, 1, 1; predicting nothing scores 4 of 6.
    _, page = _write(tmp_path, warnings=("Only three images.",), facts={"Split": "fold 0"})

    for text in ("0.5833", "0.6667", "−0.0833", "Only three images.", "Split", "fold 0", "missed", "false alarm"):
        assert text in page.text
    assert "Worse than predicting nothing" in page.text


def test_page_needs_nothing_from_elsewhere(tmp_path: Path) -> None:
    overlays = _write_overlays(tmp_path, ["a.jpg", "b.jpg"])

    _, page = _write(tmp_path, overlays=overlays)  # a.jpg has two faults and is shown once

    assert {tag for tag, _ in page.tags}.isdisjoint({"script", "link", "iframe", "object", "a", "form"})
    assert len(page.pictures()) == 2
    assert all(source.startswith("data:image/jpeg;base64,") for source in page.pictures())
    source = (tmp_path / "report.html").read_text()
    assert "url(" not in source
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
    # Two titles, warning, two tables, image and class of the caption and of the worst pair, name and value of the fact.
    assert page.text.count(HOSTILE) == 11
    assert len(page.pictures()) == 1
    assert ("img", {"src": page.pictures()[0], "alt": f"Overlay of {HOSTILE}"}) in page.tags


def test_text_that_is_not_unicode_does_not_stop_the_report(tmp_path: Path) -> None:
    _, page = _write(tmp_path, facts={"Data": "/mill/\udcff"})

    assert "\\udcff" in page.text


def test_wide_overlays_are_scaled_to_1600_px_and_others_left(tmp_path: Path) -> None:
    overlays = _write_overlays(tmp_path, ["a.jpg"], (100, 3200))
    overlays |= {"b.jpg": Path("small.jpg")}
    (tmp_path / "small.jpg").write_bytes(cv2.imencode(".jpg", np.zeros((30, 1600, 3), np.uint8))[1].tobytes())

    _, page = _write(tmp_path, overlays=overlays)

    assert sorted(_decode(source).shape for source in page.pictures()) == [(30, 1600, 3), (50, 1600, 3)]


def test_at_most_24_overlays_are_embedded_and_the_kinds_of_fault_take_turns(tmp_path: Path) -> None:
    counts: Counts = {(f"m{index:02}.jpg", 1): PairCounts(100 + index, 0, 0) for index in range(40)}
    counts |= {(f"f{index}.jpg", 1): PairCounts(0, 9, 0) for index in range(3)}
    counts |= {("p.jpg", 1): PairCounts(10, 10, 4)}
    overlays = _write_overlays(tmp_path, [image_id for image_id, _ in counts], (8, 8))

    _, page = _write(tmp_path, counts, class_names=("pits",), overlays=overlays)

    shown = [re.sub("Overlay of ", "", attributes["alt"] or "") for tag, attributes in page.tags if tag == "img"]
    largest_misses = [f"m{index:02}.jpg" for index in range(39, 19, -1)]
    assert shown == [*largest_misses, "f0.jpg", "f1.jpg", "f2.jpg", "p.jpg"]


def test_an_overlay_that_cannot_be_read_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"no picture")

    _, page = _write(tmp_path, overlays={"a.jpg": Path("absent.jpg"), "b.jpg": Path("broken.jpg")})

    assert page.pictures() == []
    assert page.text.count("The overlay could not be read.") == 2


@pytest.mark.parametrize("pair", [PairCounts(5, 5, 5), PairCounts(0, 0, 0)], ids=["found", "without defects"])
def test_a_perfect_answer_has_no_worst_pairs_and_what_does_not_exist_a_dash(tmp_path: Path, pair: PairCounts) -> None:
    _, page = _write(tmp_path, {("a.jpg", 1): pair}, class_names=("pits",))

    assert "Every pair scores 1." in page.text
    assert not re.search("None|nan", page.text)
    assert ("–" not in page.text) == ("How the defects score" in page.text) == bool(pair.true_px)


def test_table_has_headings_a_row_for_each_class_and_one_for_all() -> None:
    rows = metrics_table(summarise(COUNTS, ["pits", "cracks"]))

    assert rows == [
        ("class", "images", "Kaggle Dice", "all empty", "positive Dice", "IoU", "precision", "recall"),
        ("pits", "2", "0.5000", "0.3333", "0.2500", "0.1250", "1.0000", "0.1250"),
        ("cracks", "0", "0.6667", "1.0000", "–", "0.0000", "0.0000", "–"),
        ("all", "2", "0.5833", "0.6667", "0.2500", "0.1250", "", ""),
    ]


@pytest.mark.parametrize(
    ("gain", "low", "high", "sentence"),
    [
        (0.05, 0.03, 0.07, "Better than predicting nothing: {} (+0.0500, 95 % interval +0.0300 to +0.0700)."),
        (-0.05, -0.06, -0.04, "Worse than predicting nothing: {} (−0.0500, 95 % interval −0.0600 to −0.0400)."),
        (0.05, -0.1, 0.2, "Better than predicting nothing: {} (+0.0500, 95 % interval −0.1000 to +0.2000)." + UNPROVEN),
        (0.0, 0.0, 0.0, "No better and no worse than predicting nothing: {}."),
    ],
    ids=["better", "worse", "unproven", "equal"],
)  # fmt: skip
def test_verdict_says_whether_predicting_nothing_is_beaten(gain: float, low: float, high: float, sentence: str) -> None:
    metrics = replace(
        summarise(COUNTS, ["pits", "cracks"]),
        kaggle_dice=0.8 + gain,
        all_empty=0.8,
        gain_over_empty=gain,
        gain_over_empty_interval=Interval(low, high),
    )

    assert verdict(metrics) == sentence.format(f"Kaggle Dice {0.8 + gain:.4f} against 0.8000 for an empty answer")
