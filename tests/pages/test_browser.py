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
from defectseg.evaluate.sheets import Sheet, sheet_of

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
    """A page that is loaded from a file; whatever it asks for, runs or complains about is a fault."""
    events: list[str] = []
    context = browser.new_context(**options)
    page = context.new_page()
    page.on("console", lambda message: events.append(message.text))
    page.on("pageerror", lambda error: events.append(str(error)))
    page.on("dialog", lambda dialog: events.append(dialog.dismiss() or dialog.message))
    page.on("request", lambda request: None if request.url.startswith("data:") else events.append(request.url))
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
    write_evaluation(
        out, summarise(counts, NAMES), counts, sheets, rates_of(counts, sheets, NAMES),
        title=HOSTILE, facts={HOSTILE: HOSTILE}, warnings=(HOSTILE,),
        overlays={image_id: Path(f"{number}.jpg") for number, image_id in enumerate(IMAGES)},
    )  # fmt: skip
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
        (("poor overlap", "1. pits"), []),  # both.png has both, but not of one class
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
