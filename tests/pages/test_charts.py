import re
import xml.etree.ElementTree as ET

import pytest

from defectseg.pages.charts import bars, chart


def _texts(svg: str) -> list[str]:
    return [element.text or "" for element in ET.fromstring(svg).iter("text")]


def _bars(svg: str) -> list[tuple[str, float]]:
    """Colour and length of each bar, in px."""
    found = re.findall(r'<path d="M ([\d.]+) [\d.]+ \nL ([\d.]+) [^"]*" [^>]*style="fill: var\(--(\w+)\)', svg)
    return [(colour, float(right) - float(left)) for left, right, colour in found]


def test_bars_are_as_long_as_their_counts_and_one_may_be_marked() -> None:
    svg = bars({"none": 0, "few": 100, "many": 1500}, "Sheets", marked="few")
    assert _texts(svg) == ["none", "few", "many", "0", "100", "1,500"]
    (first, nothing), (second, few), (third, many) = _bars(svg)
    assert (first, second, third) == ("first", "second", "first")
    assert nothing == pytest.approx(0)
    assert few / many == pytest.approx(1 / 15, rel=1e-3)


@pytest.mark.filterwarnings("error")
def test_text_is_shown_as_it_is_whatever_it_holds() -> None:
    names = ["$\\frac$", "<b>&amp;", "鋼\"'", "{{ 7 }}"]
    svg = bars(dict.fromkeys(names, 1), "\"><script>'")
    assert _texts(svg)[:4] == names
    assert ET.fromstring(svg).get("aria-label") == "\"><script>'"
    assert _texts(bars({"a" * 40: 1}, ""))[0] == "a" * 21 + "…"


def test_the_same_chart_has_the_same_bytes_and_nothing_from_elsewhere() -> None:
    svg = bars({"a": 3, "b": 4}, "Sheets")
    assert svg == bars({"a": 3, "b": 4}, "Sheets")
    assert "http" not in svg
    assert not re.search(r"#[0-9a-f]{6}\b", svg), "all colours are the page's"


def test_a_chart_of_nothing_is_empty() -> None:
    assert _texts(bars({}, "Nothing")) == []
    assert 'viewBox="0 0 30 20"' in chart(lambda axes: axes.set_axis_off(), "", width_px=30, height_px=20)
