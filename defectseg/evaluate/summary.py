"""What the report says to people who read nothing else, and its chart of operating points."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from markupsafe import Markup

from defectseg.evaluate.gallery import Fault
from defectseg.evaluate.metrics import Counts
from defectseg.evaluate.rates import Point, Rate, Rates
from defectseg.pages.charts import FIRST, INK, SECOND, chart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NEIGHBOURS = 3  # of the shipped operating point, on either side


def percent(share: float | None) -> str:
    """A share in percent; a dash for None."""
    return "–" if share is None else f"{100 * share:.1f} %"


def certainty(rate: Rate) -> str:
    """A share, and where the true one lies."""
    if rate.low is None or rate.high is None:
        return f"{percent(rate.share)}; how sure that is cannot be told from so few." if rate.of else "There is none."
    between = f"between {percent(rate.low)} and {percent(rate.high)}"
    thousand = f"{1000 * rate.low:.0f} to {1000 * rate.high:.0f} of 1,000 sheets"
    return f"{percent(rate.share)}. With 95 % confidence, the true share is {between}: {thousand}."


def look_first(
    rates: Rates, counts: Counts, faults: Sequence[Fault], names: Mapping[int, str]
) -> list[tuple[str, str]]:
    """The images and classes that are worth a look first, up to four, each with the reason."""
    flagged = {image_id for (image_id, _), pair in counts.items() if pair.predicted_px}
    not_sound = {image_id for (image_id, _), pair in counts.items() if pair.true_px or pair.unknown}
    missed = [fault for fault in faults if fault.pixels.true_px and fault.image_id not in flagged]
    alarms = [fault for fault in faults if fault.image_id not in not_sound]
    advice = [
        (fault.image_id, f"{what}: {fault.wrong_px:,} px of {names[fault.class_id]}")
        for some, what in ((missed, "the largest defect that slipped through"), (alarms, "the largest false alarm"))
        for fault in sorted(some, key=lambda fault: -fault.wrong_px)[:1]
    ]
    worst = max(rates.classes, key=lambda one: one.missed.count)
    if worst.missed.count:
        advice.append((worst.name, f"missed on {worst.missed.count:,} of the {worst.missed.of:,} sheets that have it"))
    worst = max(rates.classes, key=lambda one: one.stopped.count)
    if worst.stopped.count:
        advice.append(
            (worst.name, f"reported on {worst.stopped.count:,} of the {worst.stopped.of:,} sheets without it")
        )
    return advice


def neighbours(rates: Rates) -> list[Point]:
    """The shipped operating point and up to three on either side, by rising number of missed sheets."""
    points = sorted([*rates.points, rates.shipped], key=lambda point: (point.missed, -point.stopped))
    shipped = points.index(rates.shipped)
    return points[max(0, shipped - NEIGHBOURS) : shipped + NEIGHBOURS + 1]


def operating_points(rates: Rates) -> Markup:
    """The chart of missed against stopped sheets, with the shipped point and its intervals."""
    missed, stopped = rates.all.missed, rates.all.stopped

    def paint(axes: "Axes") -> None:
        points = sorted((point.stopped, point.missed) for point in rates.points)
        x, y = 100 * np.array(points).T / [[stopped.of], [missed.of]]
        axes.step(x, y, where="post", color=FIRST, linewidth=2, label="other thresholds")
        (x, xerr), (y, yerr) = (_with_bounds(rate) for rate in (stopped, missed))
        label = "shipped thresholds, with 95 % intervals"
        axes.errorbar(x, y, yerr, xerr, fmt="D", markersize=9, color=SECOND, elinewidth=1.5, capsize=4, label=label)
        axes.set(xlabel="sound sheets stopped, %", ylabel="defective sheets missed, %", xlim=(0, None), ylim=(0, None))
        axes.grid(linewidth=0.7)
        axes.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False, labelcolor=INK)

    label = "Defective sheets missed against sound sheets stopped, at the shipped and at other thresholds"
    return chart(paint, label, width_px=520, height_px=340)


def _with_bounds(rate: Rate) -> tuple[float, list[list[float]]]:
    """The share in percent, and how far the bounds are below and above; 0 where they are unknown."""
    share = 100 * (rate.share or 0)
    return share, [[0 if bound is None else abs(100 * bound - share)] for bound in (rate.low, rate.high)]
