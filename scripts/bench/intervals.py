#!/usr/bin/env python
"""How often 95 % intervals miss the truth, by method and number of groups, in simulated data.

First of a mean paired difference. `even`: half of the differences are 0, most others small, a tenth a whole class of
three. `rare losses`: a small gain on many, a large loss on few. The true mean is 0. Columns: intervals that lie above
0, and below, in %. Then of a rate, such as that of missed sheets, in groups of a few sheets: intervals that end below
the truth, and that begin above it, in %.
Usage: python scripts/bench/intervals.py [--trials 1500]
"""

import argparse
from collections import Counter

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from defectseg.evaluate.rates import resampled

RESAMPLES = 2000
TAILS = (0.025, 0.975)

Values = NDArray[np.float64]


def intervals_of(values: Values, weights: Values) -> dict[str, tuple[float, float]]:
    """The intervals of the mean by each method; weights float64 (R, G) of the groups in resamples."""
    groups, mean = len(values), float(values.mean())
    error = float(values.std(ddof=1)) / groups**0.5
    resampled = weights @ values / groups
    squares = weights @ (values**2) / groups - resampled**2
    errors = np.sqrt(np.maximum(0, squares) / (groups - 1))
    with np.errstate(all="ignore"):
        studentised = (resampled - mean) / errors
    low, high = np.quantile(resampled, TAILS)
    t = stats.t.ppf(0.975, groups - 1) * error
    lowest, highest = np.quantile(studentised[np.isfinite(studentised)], TAILS)
    bias = stats.norm.ppf(np.clip(((resampled < mean).mean() + (resampled <= mean).mean()) / 2, 1e-6, 1 - 1e-6))
    left_out = (values.sum() - values) / (groups - 1)
    influence = left_out.mean() - left_out
    skew = (influence**3).sum() / (6 * (influence**2).sum() ** 1.5)
    shifted = bias + stats.norm.ppf(TAILS)
    bca = np.quantile(resampled, stats.norm.cdf(bias + shifted / (1 - skew * shifted)))
    return {
        "percentile": (low, high),
        "BCa": (bca[0], bca[1]),
        "bootstrap-t": (mean - highest * error, mean - lowest * error),
        "t": (mean - t, mean + t),
        "wider of percentile and t": (min(low, mean - t), max(high, mean + t)),
    }


def draw(kind: str, count: int, generator: np.random.Generator) -> Values:
    """Differences of groups, of a mean that is not 0 for `rare losses`."""
    share = generator.random(count)
    if kind == "even":
        large = generator.choice([-1 / 3, 1 / 3], count)
        return np.where(share < 0.5, 0, np.where(share < 0.9, generator.normal(0, 0.05, count), large))
    return np.where(share < 0.06, -1 / 3, np.where(share < 0.5, generator.gamma(2, 0.0227, count), 0))


def bounds_of_rates(groups: int, sheets: int, rate: float, alike: float, trials: int) -> dict[str, tuple[int, int]]:
    """How many 95 % bounds of a rate end below it, and begin above it, by method.

    Args:
        groups, sheets: how many groups, of how many sheets each.
        rate: the true one, the mean over groups.
        alike: correlation of the sheets of a group.
        trials: data sets.
    """
    generator, wrong = np.random.default_rng(5), {"percentile": [0, 0], "widened": [0, 0]}
    group, of = np.repeat(np.arange(groups), sheets), float(groups * sheets)
    for _ in range(trials):
        own = generator.beta(rate * (1 / alike - 1), (1 - rate) * (1 / alike - 1), groups) if alike else rate
        faults = generator.binomial(sheets, own, groups)
        weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=1000).astype(float)
        shares = weights @ faults / of
        widened = resampled(float(faults.sum()), of, shares, np.bincount(group) > 0)
        low, high = np.quantile(shares, TAILS)
        if faults.sum() in (0, of):  # no resample varies
            low, high = widened.low, widened.high
        for method, bounds in {"percentile": (low, high), "widened": (widened.low, widened.high)}.items():
            wrong[method][0] += bounds[1] < rate
            wrong[method][1] += bounds[0] > rate
    return {method: (ends, begins) for method, (ends, begins) in wrong.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=1500)
    options = parser.parse_args()
    generator = np.random.default_rng(1)
    for kind in ("even", "rare losses"):
        true = draw(kind, 2_000_000, generator).mean()
        for groups in (20, 40, 80, 200):
            above, below = Counter[str](), Counter[str]()
            for _ in range(options.trials):
                values = draw(kind, groups, generator) - true
                weights = generator.multinomial(groups, np.full(groups, 1 / groups), size=RESAMPLES).astype(float)
                for method, (low, high) in intervals_of(values, weights).items():
                    above[method] += low > 0
                    below[method] += high < 0
            shares = {one: (100 * above[one] / options.trials, 100 * below[one] / options.trials) for one in above}
            told = "; ".join(f"{one} {up:.1f} + {down:.1f}" for one, (up, down) in shares.items())
            print(f"{kind}, {groups} groups: {told}", flush=True)
    for groups in (25, 60):
        for sheets in (2, 5):
            for rate in (0.02, 0.05, 0.1):
                for alike in (0.0, 0.3):
                    wrong = bounds_of_rates(groups, sheets, rate, alike, options.trials)
                    shares = {one: tuple(100 * count / options.trials for count in both) for one, both in wrong.items()}
                    told = "; ".join(f"{one} {ends:.1f} + {begins:.1f}" for one, (ends, begins) in shares.items())
                    print(f"rate {rate:g}, {groups} groups of {sheets}, alike {alike:g}: {told}", flush=True)


if __name__ == "__main__":
    main()
