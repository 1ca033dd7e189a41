"""The pages in a browser: Debian's Chromium, without a window."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.check.check import check_data_folder
from defectseg.check.report import output_folder, write_check
from defectseg.data.synthetic import write_data_folder
from defectseg.evaluate.metrics import Counts, count_pairs, summarise
from defectseg.evaluate.rates import rates_of
from defectseg.evaluate.report import write_evaluation
from defectseg.evaluate.score import Evaluation, Score
from defectseg.evaluate.sheets import Sheet, sheet_of
from defectseg.predict.output import output_folder as results_folder
from defectseg.predict.tables import IMAGE_COLUMNS, OutputChoice, Record

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pages are not looked at")
CHROMIUM = shutil.which("chromium") or ""
if not CHROMIUM:
    pytest.skip("chromium is not installed: pages are not looked at in a browser", allow_module_level=True)

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7 * 7 }}$\\frac$"
NAMES = ("pits", HOSTILE)
# ImageId -> for each class: rows of 10 px that are labelled, and that are predicted, of an image of 100 rows.
IMAGES = {
    "both.png": (((0, 20), ()), ((20, 40), (30, 60))),
    "swapped.png": (((0, 8), ()), ((), (0, 8))),
    "alarm.png": (((), (0, 50)), ((), ())),
    HOSTILE: (((), ()), ((5, 6), ())),
    "fine.png": (((1, 9), (1, 9)), ((), ())),
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as engines:
        # A container has no user namespaces and little shared memory.
        options = ["--no-sandbox", "--disable-dev-shm-usage"]
        chromium = engines.chromium.launch(executable_path=CHROMIUM, args=options)
        yield chromium
        chromium.close()


@contextmanager
def _opened(browser: Any, path: Path, **options: Any) -> Iterator[Any]:
    """A page that is loaded from a file; what it asks for, runs or complains about is a fault, but for its overlays."""
    events: list[str] = []
    harmless = "data:", f"{path.parent.as_uri()}/overlays/"
    context = browser.new_context(**options)
    page = context.new_page()
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: events.append(dialog.dismiss() or dialog.message))
    page.on("request", lambda request: None if request.url.startswith(harmless) else events.append(request.url))
    page.goto(path.as_uri())
    yield page
    context.close()
    assert events == [path.as_uri()]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("evaluation")
    counts: Counts = {}
    sheets: dict[str, Sheet] = {}
    for number, (image_id, rows) in enumerate(IMAGES.items()):
        truth, predicted = np.zeros((2, 2, 100, 10), np.bool_)
        for index, (labelled, found) in enumerate(rows):
            truth[index, slice(*labelled or (0, 0))] = True
            predicted[index, slice(*found or (0, 0))] = True
        counts |= count_pairs(image_id, predicted, truth)
        sheets[image_id] = sheet_of(predicted, truth, np.zeros((100, 10), np.bool_))
        cv2.imwrite(str(out / f"{number}.jpg"), np.full((100, 250, 3), 90, np.uint8))
    evaluation = Evaluation(summarise(counts, NAMES), rates_of(counts, sheets, NAMES), (HOSTILE,))
    overlays = {image_id: Path(f"{number}.jpg") for number, image_id in enumerate(IMAGES)}
    score = Score(counts, sheets)
    write_evaluation(out, evaluation, score, title=HOSTILE, facts={HOSTILE: HOSTILE}, overlays=overlays)
    return out / "report.html"


def test_hostile_names_are_shown_and_not_run_and_pictures_and_charts_appear(browser: Any, report: Path) -> None:
    with _opened(browser, report) as page:
        assert page.title() == HOSTILE
        assert page.locator("h1").inner_text() == HOSTILE
        assert page.locator("figcaption .id").all_inner_texts().count(HOSTILE) == 1
        assert page.evaluate("[...document.images].map(one => one.naturalWidth)") == [250] * 4
        widths = page.evaluate("[...document.querySelectorAll('svg')].map(one => one.getBBox().width)")
        assert widths
        assert min(widths) > 100


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ((), ["both.png", HOSTILE, "swapped.png", "alarm.png"]),  # the worst kinds first, then the largest
        (("missed",), ["both.png", HOSTILE]),
        (("missed", "1. pits"), ["both.png"]),
        (("inexact", "1. pits"), []),  # both.png has both, but not of one class
        (("wrong class",), ["swapped.png"]),
        (("false alarm",), ["alarm.png"]),
        (("below 100 px",), [HOSTILE, "swapped.png"]),
        (("below 100 px", "1. pits"), ["swapped.png"]),
        (("100 to 999 px", "1. pits", "false alarm"), ["alarm.png"]),
    ],
)
def test_filters_show_the_pictures_with_such_a_fault(
    browser: Any, report: Path, choices: tuple[str, ...], shown: list[str]
) -> None:
    with _opened(browser, report) as page:
        for choice in choices:
            page.locator("label").get_by_text(choice, exact=True).click()
        visible = [one.locator(".id").inner_text() for one in page.locator("figure").all() if one.is_visible()]
        assert visible == shown
        tree = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")
        texts = [node.get("name", {}).get("value") for node in tree["nodes"]]
        assert texts[texts.index(" of 4 pictures") - 1] == str(len(shown)), "the number of pictures is told"


def test_a_page_fits_a_telephone_is_dark_at_night_and_white_on_paper(browser: Any, report: Path) -> None:
    colours = (
        "[getComputedStyle(document.body).backgroundColor, getComputedStyle(document.querySelector('svg text')).fill]"
    )
    with _opened(browser, report, viewport={"width": 390, "height": 800}, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        ground, text = page.evaluate(colours)
        assert (ground, text) == ("rgb(20, 24, 28)", "rgb(154, 166, 177)")
        page.emulate_media(media="print")
        assert page.evaluate(colours) == ["rgb(255, 255, 255)", "rgb(68, 68, 68)"]
        assert page.pdf().startswith(b"%PDF")


def test_the_page_of_a_check_opens_without_a_fault(browser: Any, tmp_path: Path) -> None:
    write_data_folder(tmp_path / "data", images=6, seed=1)
    (tmp_path / "data/train_images" / "broken <b>.png").write_bytes(b"?")
    with output_folder(tmp_path / "out"):
        write_check(tmp_path / "out", tmp_path / "data", check_data_folder(tmp_path / "data"))
    with _opened(browser, tmp_path / "out/report.html", viewport={"width": 390, "height": 800}) as page:
        assert page.locator("tr", has_text="broken <b>.png").locator("td").first.inner_text() == "Error"
        assert page.locator("svg").count() >= 3
        assert page.evaluate("document.documentElement.scrollWidth") == 390


# The page of `predict`: ImageId -> its status, sheet score, and the ClassId and area in px of each region.
SHEETS: dict[str, tuple[str, float, tuple[tuple[int, int], ...]]] = {
    "coil1/a #1 50%.png": ("defect", 0.9, ((1, 2000),)),
    "coil1/ü & <b>.png": ("defect", 0.8, ((2, 50), (2, 60))),
    "coil2/c.png": ("clean", 0.3, ()),
    "coil2/d.png": ("clean", 0.4, ()),
    "coil2/dark.png": ("blank", 0.0, ()),
    "coil2/gone.png": ("unreadable", 0.0, ()),
}
WORST_FIRST = ["coil1/a #1 50%.png", "coil1/ü & <b>.png", "coil2/dark.png", "coil2/d.png", "coil2/c.png"]


def _results(root: Path, image_ids: list[str], choice: OutputChoice) -> Path:
    jpeg = cv2.imencode(".jpg", np.full((40, 250, 3), 90, np.uint8))[1].tobytes()
    with results_folder(root, {"only_classes": None}, choice) as output:
        output.name_pictures(image_ids)
        for image_id in image_ids:
            status, score, areas = SHEETS.get(image_id, ("clean", 0.1, ()))
            image: dict[str, Any] = dict.fromkeys(IMAGE_COLUMNS, "") | {"ImageId": image_id, "status": status}
            image |= {"notes": f"/in/{image_id}: it is {HOSTILE}"} if status == "unreadable" else {"notes": ""}
            image |= {"size_bytes": 1, "modified_ns": 1}
            if status != "unreadable":
                image |= {"height": 40, "width": 250, "sheet_score": f"{score:.4f}", "unlike": "0.5000"}
            image |= {"defect_area_px": sum(area for _, area in areas), "differs": "darker" * (status == "clean")}
            regions = [[image_id, one, "?", area, 0, 0, 1, 1, "0.0", "0.0", "0.5000"] for one, area in areas]
            errors = [[image_id, "?", "?"]] if status == "unreadable" else []
            has_overlay = status != "unreadable" and choice.has_overlay(with_defect=status == "defect")
            output.write(Record(image, [], regions, errors), {"overlays": jpeg} if has_overlay else {})
        output.finish({"status": "finished", "class_names": NAMES, "warnings": [HOSTILE]})
    return root / "index.html"


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    choice = OutputChoice(("overlays", "regions", "page"), group="coil[0-9]")
    return _results(tmp_path_factory.mktemp("results") / "night 1", list(SHEETS), choice)


def _shown(page: Any) -> list[str]:
    return list(page.locator("#gallery .id").all_text_contents())


def test_the_results_show_the_worst_image_first_and_why_one_could_not_be_read(browser: Any, results: Path) -> None:
    with _opened(browser, results, viewport={"width": 1280, "height": 3000}) as page:
        assert page.title() == "Results: night 1"
        verdict = page.locator("#verdict > *").all_inner_texts()
        assert verdict[:2] == ["2 of 6 images have a defect.", "1 image could not be read."]
        assert _shown(page) == WORST_FIRST
        page.wait_for_load_state("networkidle")
        assert page.evaluate("[...document.images].map(one => one.naturalWidth)") == [250] * 5
        assert page.locator("#warnings li").all_inner_texts()[0] == HOSTILE
        assert page.locator("#unreadable td").all_inner_texts() == ["coil2/gone.png", f"it is {HOSTILE}"]
        assert page.locator("#classes tr").all_inner_texts() == ["pits\t1\t1\t", f"{HOSTILE}\t1\t2\t"]
        links = page.evaluate("[...document.querySelectorAll('#files a')].map(one => one.href)")
        assert links == [
            (results.parent / name).as_uri()
            for name in ("images.csv", "regions.csv", "errors.csv", "by_group.csv", "run.json")
        ]
        assert all((results.parent / link.rpartition("/")[2]).is_file() for link in links)


@pytest.mark.parametrize(
    ("choices", "shown"),
    [
        ({"status": "=clean"}, ["coil2/d.png", "coil2/c.png"]),
        ({"class": f"={HOSTILE}"}, ["coil1/ü & <b>.png"]),
        ({"size": "=1,000 to 10,000 px"}, ["coil1/a #1 50%.png"]),
        ({"group": "=coil2", "status": "=blank"}, ["coil2/dark.png"]),
        ({"unlike": "=unlike these"}, ["coil2/d.png", "coil2/c.png"]),
        ({"part": "=3"}, ["coil2/c.png"]),
        ({"class": "=pits", "group": "=coil2"}, []),
        ({"group": "=coil2", "order": "in the order of files"}, ["coil2/c.png", "coil2/d.png", "coil2/dark.png"]),
    ],
)
def test_filters_leave_the_images_that_were_asked_for(
    browser: Any, results: Path, choices: dict[str, str], shown: list[str]
) -> None:
    with _opened(browser, results) as page:
        for name, value in choices.items():
            page.select_option(f"#{name}", value)
        assert _shown(page) == shown
        assert page.locator("[role=status]").inner_text() == f"{len(shown)} of 5 images"
        page.get_by_text("Show all").click()
        assert _shown(page) == WORST_FIRST


def test_one_key_steps_through_the_images_that_are_shown(browser: Any, results: Path) -> None:
    with _opened(browser, results) as page:
        page.fill("#text", "COIL2/D")
        page.keyboard.type("j")
        assert not page.locator("dialog").is_visible(), "who types a name does not step"
        page.fill("#text", "coil")
        page.locator("#text").blur()
        seen = []
        for key in ("j", "j", "ArrowRight", "k", "ArrowLeft", "k", "k"):
            page.keyboard.press(key)
            seen.append(page.locator("#large-name").inner_text())
        assert seen == [WORST_FIRST[at] for at in (0, 1, 2, 1, 0, 0, 0)]
        assert page.locator("#details").inner_text().count("line 2 of images.csv") == 1
        page.keyboard.press("Escape")
        assert not page.locator("dialog").is_visible()
        assert page.evaluate("document.activeElement.textContent") == WORST_FIRST[0], "the place is kept"


def test_many_images_come_as_one_scrolls_and_a_page_without_pictures_shows_none(browser: Any, tmp_path: Path) -> None:
    images = [f"{number:04}.png" for number in range(300)]
    with _opened(browser, _results(tmp_path / "many", images, OutputChoice(("regions", "page")))) as page:
        assert len(_shown(page)) < 200
        while page.locator("#more").is_visible():
            page.keyboard.press("End")
        assert _shown(page) == images
        assert page.locator("img").count() == 0
        assert page.locator("#verdict").inner_text() == "No defect found in 300 images."


def test_an_overlay_that_is_gone_is_told(browser: Any, tmp_path: Path) -> None:
    path = _results(tmp_path / "out", ["a.png"], OutputChoice())
    (tmp_path / "out/overlays/a.jpg").unlink()
    page = browser.new_context().new_page()
    page.goto(path.as_uri())
    page.get_by_text("overlays/a.jpg is not there").wait_for()
    assert page.locator("img").count() == 0
    page.context.close()


def test_the_results_fit_a_telephone_and_paper(browser: Any, results: Path) -> None:
    with _opened(browser, results, viewport={"width": 390, "height": 800}, color_scheme="dark") as page:
        assert page.evaluate("document.documentElement.scrollWidth") == 390
        page.keyboard.press("j")
        assert page.evaluate("document.querySelector('dialog').scrollWidth <= innerWidth")
        page.keyboard.press("Escape")
        page.emulate_media(media="print")
        assert not page.locator("#filters").is_visible()
        assert page.pdf().startswith(b"%PDF")
