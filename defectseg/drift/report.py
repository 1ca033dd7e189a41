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
ROWS_SHOWN, _MOST_POINTS = 20, 300  # of the table, of a chart
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
        rows = [[row[name] for name in _HEADINGS] for row in self.content["table"][-ROWS_SHOWN:]]
        cells = [tuple(f"{one:.1f}" if isinstance(one, float) else str(one) for one in row) for row in rows]
        return [tuple(map(_heading, _HEADINGS)), *cells] if cells else []


def rows_of(history: History) -> list[dict[str, Any]]:
    """A row of figures for each group, in the order of time."""
    rows = []
    for one in history.groups:
        figures = {**readable(one.all.mean)._asdict(), "defective_percent": 100 * one.all.share}
        row = {"time": when(one.time_ns), "time_ns": one.time_ns, "group": one.name, "images": one.all.images}
        rows.append({**row, "new": one.new.images, **{name: round(value, 2) for name, value in figures.items()}})
    return rows


def _heading(name: str) -> str:
    return name.replace("_percent", " %").replace("_", " ")


def when(time_ns: int) -> str:
    """A time for people, local."""
    return f"{datetime.fromtimestamp(time_ns / 1e9):%Y-%m-%d %H:%M}"  # noqa: DTZ006


def render(result: Result) -> str:
    """The page drift.html."""
    return render_page("defectseg.drift", {}, title="Drift", result=result, charts=_charts(result))


def _charts(result: Result) -> list[tuple[str, Markup]]:
    """A chart over time of each figure; runs of neighbouring groups are averaged if there are very many."""
    rows, usual = result.content["table"], _usual(result)
    parts = np.array_split(np.arange(len(rows)), min(len(rows), _MOST_POINTS) or 1)
    columns = {name: np.array([row[name] for row in rows], np.float64) for name in ("time_ns", "new", *_FIGURES)}
    of = {name: [float(column[part].mean()) for part in parts if rows] for name, column in columns.items()}
    return [
        (_heading(name), over_time(of["time_ns"], of[name], [one > 0 for one in of["new"]], usual.get(name), name))
        for name in _FIGURES
        if rows
    ]


def _usual(result: Result) -> dict[str, tuple[float, float]]:
    """The range of two standard deviations between training groups, for figures that have one."""
    trained = result.history.trained
    if trained is None or not result.history.groups:
        return {}
    images = result.content["images"] / result.content["groups"]
    expected, spread = trained.expected(has_defect=trained.defective), np.sqrt(np.diag(trained.covariance(images)))
    bounds = zip(*(readable(expected + sign * 2 * spread) for sign in (-1, 1)), strict=True)
    return {name: (min(pair), max(pair)) for name, pair in zip(Readable._fields, bounds, strict=True)}
