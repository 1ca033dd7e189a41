"""What `drift` tells: a table and a page with charts over time."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np
from markupsafe import Markup

from defectseg.drift.history import History
from defectseg.image.appearance import Readable, readable
from defectseg.pages.charts import over_time
from defectseg.pages.page import render_page

PAGE, CONTENT = "drift.html", "drift.json"
OWN_ENTRIES = frozenset({PAGE, CONTENT})
ROWS_SHOWN = 20
_MOST_POINTS = 300  # of a chart
_HEADINGS = ("time", "group", "images", "new", *Readable._fields, "defective_percent")
_FIGURES = _HEADINGS[4:]


@dataclass(frozen=True)
class Result:
    """A verdict, to be shown.

    Attributes:
        content: of drift.json; `sentences` are the verdict in words.
        is_alarm: whether somebody has to look.
        history: the groups.
    """

    content: Mapping[str, Any]
    is_alarm: bool
    history: History

    @property
    def table(self) -> list[tuple[str, ...]]:
        """Rows of text: headings, and the last groups."""
        rows = [tuple(_cell(row[name]) for name in _HEADINGS) for row in self.content["table"][-ROWS_SHOWN:]]
        return [tuple(heading(name) for name in _HEADINGS), *rows] if rows else []


def rows_of(history: History) -> list[dict[str, Any]]:
    """A row of figures for each group, in the order of time."""
    rows = []
    for one in history.groups:
        figures = {**readable(one.all.mean)._asdict(), "defective_percent": 100 * one.all.share}
        row = {"time": when(one.time_ns), "time_ns": one.time_ns, "group": one.name, "images": one.all.images}
        rows.append({**row, "new": one.new.images, **{name: round(value, 2) for name, value in figures.items()}})
    return rows


def heading(name: str) -> str:
    """The name of a figure for people."""
    return name.replace("_percent", " %").replace("_", " ")


def _cell(value: Any) -> str:
    return f"{value:.1f}" if isinstance(value, float) else str(value)


def when(time_ns: int) -> str:
    """A time for people, local; "unknown" for one that the calendar does not have."""
    try:
        return f"{datetime.fromtimestamp(time_ns / 1e9):%Y-%m-%d %H:%M}"  # noqa: DTZ006
    except (OSError, OverflowError, ValueError):
        return "unknown"


def render(result: Result) -> str:
    """The page drift.html."""
    return render_page("defectseg.drift", {"heading": heading}, title="Drift", result=result, charts=_charts(result))


def _charts(result: Result) -> list[tuple[str, Markup]]:
    """A chart over time of each figure; runs of neighbouring groups are averaged if there are very many."""
    rows = [row for row in result.content["table"] if row["time"] != "unknown"]
    if not rows:
        return []
    parts = np.array_split(np.arange(len(rows)), min(len(rows), _MOST_POINTS))
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in ("time_ns", "new", *_FIGURES)}
    of = {name: [float(column[part].mean()) for part in parts] for name, column in columns.items()}
    usual = _usual(result)
    return [
        (heading(name), over_time(of["time_ns"], of[name], [one > 0 for one in of["new"]], usual.get(name), name))
        for name in _FIGURES
    ]


def _usual(result: Result) -> dict[str, tuple[float, float]]:
    """The range of two standard deviations between training groups, for figures that have one."""
    trained, groups = result.history.trained, result.history.groups
    if trained is None:
        return {}
    images = len(groups) / sum(1 / one.all.images for one in groups)
    expected, spread = trained.expected(has_defect=trained.defective), np.sqrt(np.diag(trained.covariance(images)))
    bounds = zip(*(readable(expected + sign * 2 * spread) for sign in (-1, 1)), strict=True)
    return {name: (min(pair), max(pair)) for name, pair in zip(Readable._fields, bounds, strict=True)}
