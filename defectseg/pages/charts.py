"""Charts for pages: matplotlib draws them, and they are embedded as SVG that follows the page's colours and fonts."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from io import StringIO
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that stand for variables of base.html.j2, so that a chart is dark on a dark page and black on paper.
INK, SOFT, LINE, FIRST, SECOND = "#01f001", "#01f002", "#01f003", "#01f004", "#01f005"
_VARIABLES = {INK: "--ink", SOFT: "--soft", LINE: "--line", FIRST: "--first", SECOND: "--second"}
_STYLE: Any = {
    "axes.edgecolor": LINE, "axes.labelcolor": SOFT, "axes.spines.right": False, "axes.spines.top": False,
    "font.family": "sans-serif", "font.sans-serif": ["DejaVu Sans"], "font.size": 12, "grid.color": LINE,
    "svg.fonttype": "none", "svg.hashsalt": "defectseg",  # text stays text; the same chart has the same bytes
    "text.color": INK, "text.parse_math": False, "xtick.color": SOFT, "ytick.color": SOFT,
}  # fmt: skip
_BAR_WIDTH_PX, _BAR_PX, _LONGEST_LABEL = 340, 21, 22
_PLOT_WIDTH_PX, _PLOT_HEIGHT_PX = 340, 170


def chart(paint: Callable[["Axes"], object], label: str, *, width_px: int, height_px: int) -> Markup:
    """What `paint` draws on empty axes, as an <svg> that says `label` to those who cannot see it.

    Only the colours of this module follow the page; all text is plain, whatever it holds.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE), warnings.catch_warnings(), StringIO() as file:
        # The browser chooses the font: it does not matter what matplotlib's own font lacks.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        figure = Figure(figsize=(width_px / 72, height_px / 72), layout="constrained")
        paint(figure.add_subplot())
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, metadata=metadata)
        svg = file.getvalue()
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    size = Markup('<svg role="img" aria-label="{}" viewBox="0 0 {} {}">').format(label, width_px, height_px)
    return size + Markup(re.sub(r"\A.*?<svg[^>]*>", "", svg, flags=re.DOTALL))  # noqa: S704 - matplotlib escapes text


def bars(counts: Mapping[str, int], label: str, *, marked: str | None = None) -> Markup:
    """A row for each count, from above: its name, a bar and the number; the bar of `marked` in the second colour."""

    def paint(axes: "Axes") -> None:
        names = [name if len(name) <= _LONGEST_LABEL else f"{name[: _LONGEST_LABEL - 1]}…" for name in counts]
        colours = [SECOND if name == marked else FIRST for name in counts]
        drawn = axes.barh(range(len(names)), list(counts.values()), height=0.5, color=colours)
        axes.bar_label(drawn, [f"{count:,}" for count in counts.values()], padding=4)
        axes.set(yticks=range(len(names)), yticklabels=names, xticks=[], xlim=(0, 1.25 * max([1, *counts.values()])))
        axes.set_position((0.42, 0, 0.58, 1))  # faster than a layout, and bars of several charts begin at one place
        axes.tick_params("y", length=0)
        axes.invert_yaxis()
        axes.spines[:].set_visible(False)

    return chart(paint, label, width_px=_BAR_WIDTH_PX, height_px=_BAR_PX * max(1, len(counts)) + 8)


def over_time(
    times_ns: Sequence[float],
    values: Sequence[float],
    marked: Sequence[bool],
    usual: tuple[float, float] | None,
    label: str,
) -> Markup:
    """Dots over time, of values from 0 on; in the second colour if marked, on a band of what is usual."""

    def paint(axes: "Axes") -> None:
        if usual is not None:
            axes.axhspan(*usual, color=LINE, alpha=0.6, linewidth=0)
        colours = [SECOND if one else FIRST for one in marked]
        axes.scatter(times_ns, values, s=9 if len(values) > 100 else 30, c=colours, linewidths=0)
        axes.set_position((0.13, 0.22, 0.77, 0.73))  # faster than a layout
        axes.set_ylim(bottom=max(0.0, axes.get_ylim()[0]))
        first, last = min(times_ns), max(times_ns)
        ticks = sorted({first, (first + last) / 2, last})
        axes.set_xticks(ticks, [f"{datetime.fromtimestamp(tick / 1e9):%Y-%m-%d\n%H:%M}" for tick in ticks])  # noqa: DTZ006

    return chart(paint, label, width_px=_PLOT_WIDTH_PX, height_px=_PLOT_HEIGHT_PX)
