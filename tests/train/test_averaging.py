"""Averages of weights, by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from defectseg.train.weights import average, make_ema


def _norm() -> Any:
    """A layer with weights, batch statistics and a counter."""
    return nn.BatchNorm1d(2)


def _set(layer: Any, value: float, count: int) -> None:
    with torch.no_grad():
        layer.weight.fill_(value)
        layer.running_mean.fill_(10 * value)
        layer.num_batches_tracked.fill_(count)


def _values(layer: Any) -> tuple[float, float, int]:
    return layer.weight[0].item(), layer.running_mean[1].item(), layer.num_batches_tracked.item()


@pytest.mark.parametrize(
    ("decay", "second", "third"),
    [
        # Step 1: a copy, 1. Step 2: 2/11 of the old and 9/11 of the new value 2. Step 3: 3/12 of that, 9/12 of 4.
        (0.9, (2 * 1 + 9 * 2) / 11, (3 * (20 / 11) + 9 * 4) / 12),
        # The decay itself, where it is the smaller one: 0.1 at both steps.
        (0.1, 0.1 * 1 + 0.9 * 2, 0.1 * 1.9 + 0.9 * 4),
        # Of 2/11 and 0.2 the former at step 2, of 3/12 and 0.2 the latter at step 3.
        (0.2, (2 * 1 + 9 * 2) / 11, 0.2 * (20 / 11) + 0.8 * 4),
    ],
)
def test_the_first_steps_of_a_moving_average_count_for_more(decay: float, second: float, third: float) -> None:
    layer = _norm()
    ema = make_ema(layer, decay)
    for value, count, expected in ((1.0, 5, 1.0), (2.0, 7, second), (4.0, 8, third)):
        _set(layer, value, count)
        ema.update_parameters(layer)
        assert _values(ema.module) == pytest.approx((expected, 10 * expected, count))
    assert _values(layer) == (4.0, 40.0, 8), "the weights that learn stay as they are"


def test_the_mean_of_several_epochs_takes_counters_from_the_first() -> None:
    parts: list[dict[str, Tensor]] = []
    for value, count in ((1.0, 5), (2.0, 6), (6.0, 9)):
        layer = _norm()
        _set(layer, value, count)
        parts.append(layer.state_dict())
    mean = average(parts)
    assert mean["weight"].tolist() == [3.0, 3.0]
    assert mean["running_mean"].tolist() == [30.0, 30.0]
    assert mean["num_batches_tracked"].item() == 5
    assert mean["num_batches_tracked"].dtype == torch.int64
    assert parts[0]["weight"].tolist() == [1.0, 1.0]
