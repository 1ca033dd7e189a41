"""The losses, with numbers worked by hand."""

import math
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defectseg.config import LossConfig
from defectseg.model import losses
from defectseg.model.losses import LossParts, pair_dice, pair_lovasz, pixel_bce, segmentation_loss

LOG2 = math.log(2.0)


def _pixels(*values: float) -> Tensor:
    """One image, one class, one row of pixels: float (1, 1, 1, W)."""
    return torch.tensor(values, dtype=torch.float32).reshape(1, 1, 1, -1)


def _logit(probability: float) -> float:
    return math.log(probability / (1 - probability))


def _gradient(loss: Tensor, logits: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(loss, logits)
    return gradient


def _all_valid(logits: Tensor) -> Tensor:
    return torch.ones((logits.shape[0], 1, *logits.shape[2:]), dtype=torch.bool)


@pytest.mark.parametrize(
    ("probabilities", "truth", "valid", "expected"),
    [
        ((0.5, 0.5), (0, 0), (1, 1), LOG2),
        ((0.8, 0.1), (1, 0), (1, 1), (-math.log(0.8) - math.log(0.9)) / 2),
        ((0.5, 0.99, 0.99), (0, 0, 0), (1, 0, 0), LOG2),
        ((0.9, 0.2), (0, 0), (0, 0), 0.0),
    ],
)
def test_bce_is_the_mean_over_valid_pixels(
    probabilities: tuple[float, ...], truth: tuple[int, ...], valid: tuple[int, ...], expected: float
) -> None:
    logits = _pixels(*map(_logit, probabilities))
    assert pixel_bce(logits, _pixels(*truth), _pixels(*valid).bool(), None).item() == pytest.approx(expected)


def test_bce_weighs_the_defect_pixels_of_each_class() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    truth = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    # Class 1: (3 + 1) ln 2 over two pixels, class 2: (1 + 1) ln 2; six ln 2 over four pixels.
    assert pixel_bce(logits, truth, _all_valid(logits), (3.0, 1.0)).item() == pytest.approx(6 * LOG2 / 4)


@pytest.mark.parametrize(
    ("probabilities", "truth", "expected"),
    [
        ((0.8, 0.4), (1, 0), 1 - (1.6 + 2) / (1.2 + 1 + 2)),
        ((0.2, 0.1), (0, 0), 0.5 * 0.3 / (0.3 + 2)),  # weighted by 0.5
    ],
)
def test_dice_of_a_pair_with_a_defect_and_of_a_clean_one(
    probabilities: tuple[float, ...], truth: tuple[int, ...], expected: float
) -> None:
    logits = _pixels(*map(_logit, probabilities))
    loss = pair_dice(logits, _pixels(*truth), _all_valid(logits), smooth_px=2.0, empty_weight=0.5)
    assert loss.item() == pytest.approx(expected, abs=1e-6)


def test_dice_averages_defective_and_clean_pairs_apart() -> None:
    # Every probability 1/2, two pixels a pair. With a defect: 1 - (1 + 1) / (1 + 1 + 1) = 1/3. Clean: 1/2.
    # One defective pair and three clean ones: 1/3 + 0.2 * 1/2, whatever their numbers.
    logits = torch.zeros(2, 2, 1, 2)
    truth = torch.zeros(2, 2, 1, 2)
    truth[1, 0, 0, 1] = 1
    loss = pair_dice(logits, truth, _all_valid(logits), smooth_px=1.0, empty_weight=0.2)
    assert loss.item() == pytest.approx(1 / 3 + 0.2 / 2, abs=1e-6)


@pytest.mark.parametrize(
    ("dice_over", "expected"),
    [
        ("batch", 1 - (2 * 1.5 + 1) / (2 + 3 + 1)),
        ("pair", ((1 - (2 * 0.5 + 1) / (1 + 1 + 1)) + (1 - (2 * 1 + 1) / (1 + 2 + 1))) / 2),
    ],
)
def test_dice_over_a_batch_adds_the_images_up_before_it_divides(
    dice_over: Literal["pair", "batch"], expected: float
) -> None:
    # Two images of two pixels. Together: true 3, predicted 4 * 0.5, overlap 1.5; of the pairs: 1 and 2 true pixels.
    logits, masks = torch.zeros(2, 1, 1, 2), torch.tensor([[True, False], [True, True]]).reshape(2, 1, 1, 2)
    config = LossConfig(dice_over=dice_over, smooth_px=1.0, empty_weight=0.2)
    parts = segmentation_loss(logits, None, masks, torch.zeros(2, 1, 2, dtype=torch.bool), config)
    assert parts.dice.item() == pytest.approx(expected)


def _some_loss(
    logits: Tensor,
    gate: Tensor | None,
    config: LossConfig | None = None,
    unknown: list[list[bool]] | None = None,
    *,
    hidden: bool = False,
) -> LossParts:
    """Two images, two classes, 6 x 6 px; the second image's left half is ignored, a part of its defect with it.

    Where `hidden`, all that is ignored is labelled as both classes.
    """
    masks = torch.zeros(2, 2, 6, 6, dtype=torch.bool)
    masks[0, 0, 1:3, 1:3] = True
    masks[1, 1, 2:4, 1:5] = True
    ignore = torch.zeros(2, 6, 6, dtype=torch.bool)
    ignore[1, :, :3] = True
    masks[1, :, :, :3] |= hidden
    pairs = None if unknown is None else torch.tensor(unknown)
    config = config or LossConfig(positive_weights=(2.0, 1.5))
    return segmentation_loss(logits, gate, masks, ignore, config, unknown=pairs)


@pytest.mark.parametrize("lovasz_from", [0.0, 1.0], ids=["Lovasz", "Dice"])
def test_neither_answers_nor_labels_under_ignored_pixels_have_an_influence(lovasz_from: float) -> None:
    config = LossConfig(positive_weights=(2.0, 1.5), lovasz_from=lovasz_from)
    generator = torch.Generator().manual_seed(1)
    logits, gate = (torch.randn(*shape, generator=generator) for shape in ((2, 2, 6, 6), (2, 2)))
    changed = logits.clone()
    changed[1, :, :, :3] = torch.randn(2, 6, 3, generator=generator) * 30
    changed.requires_grad_()
    before, after = _some_loss(logits, gate, config), _some_loss(changed, gate, config, hidden=True)
    for name in ("total", "bce", "dice", "lovasz", "gate"):
        assert getattr(before, name).item() == getattr(after, name).item(), name

    gradient = _gradient(after.total, changed)
    assert gradient[1, :, :, :3].abs().max().item() == 0.0
    assert (gradient[1, :, :, 3:] != 0).all()
    assert (gradient[0] != 0).all()


@pytest.mark.parametrize("lovasz_from", [0.0, 1.0], ids=["Lovasz", "Dice"])
def test_an_image_that_is_ignored_altogether_adds_no_gradient_to_its_masks(lovasz_from: float) -> None:
    logits = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    masks = torch.ones(1, 2, 4, 4, dtype=torch.bool)
    config = LossConfig(lovasz_from=lovasz_from)
    parts = segmentation_loss(logits, None, masks, torch.ones(1, 4, 4, dtype=torch.bool), config)
    assert math.isfinite(parts.total.item())
    assert _gradient(parts.total, logits).abs().max().item() == 0.0


@pytest.mark.parametrize(
    ("unknown", "shares"),
    [
        (None, [0.9, 0.8, 0.7, 0.6]),
        ([[False, False], [False, False]], [0.9, 0.8, 0.7, 0.6]),
        ([[False, False], [True, False]], [0.9, 0.8, 0.6]),
        ([[True, True], [True, True]], [1.0]),
    ],
)
def test_the_gate_learns_whether_a_class_is_in_the_image_but_nothing_where_that_is_unknown(
    unknown: list[list[bool]] | None, shares: list[float]
) -> None:
    # Truth: image 0 has class 1, image 1 has class 2 (a part of its defect is not ignored), and may have class 1.
    logits = torch.zeros(2, 2, 6, 6)
    gate = torch.tensor([[_logit(0.9), _logit(0.2)], [_logit(0.3), _logit(0.6)]], requires_grad=True)
    parts = _some_loss(logits, gate, unknown=unknown)
    assert parts.gate.item() == pytest.approx(-sum(map(math.log, shares)) / len(shares), abs=1e-6)
    assert (_gradient(parts.gate, gate) == 0).tolist() == (unknown or [[False, False]] * 2)
    for name in ("bce", "dice", "lovasz"):
        assert getattr(parts, name).item() == getattr(_some_loss(logits, gate), name).item()


def test_the_total_is_the_weighted_sum_of_its_parts_and_without_a_head_the_gate_is_none() -> None:
    config, logits = LossConfig(bce=2.0, dice=0.5, gate=3.0), torch.zeros(2, 2, 6, 6)
    parts, headless = _some_loss(logits, torch.ones(2, 2), config), _some_loss(logits, None, config)
    expected = 2.0 * parts.bce + 0.5 * parts.dice + 3.0 * parts.gate
    assert parts.total.item() == pytest.approx(expected.item())
    assert min(parts.bce.item(), parts.dice.item(), parts.gate.item()) > 0
    assert headless.gate.item() == 0.0
    assert headless.total.item() == pytest.approx((2.0 * parts.bce + 0.5 * parts.dice).item())


# Lovasz


def _slow_hinge(logits: list[float], truth: list[int]) -> float:
    """The Lovasz hinge of one class, as in Berman's own listing: pixel by pixel, from the worst error down."""
    ranked = sorted(
        ((1.0 - logit * (2 * true - 1), true) for logit, true in zip(logits, truth, strict=True)), reverse=True
    )
    area, missed, false, before, loss = sum(truth), 0, 0, 0.0, 0.0
    for error, true in ranked:
        missed, false = missed + true, false + (1 - true)
        jaccard_loss = 1.0 - (area - missed) / (area + false)
        loss += max(error, 0.0) * (jaccard_loss - before)
        before = jaccard_loss
    return loss


def _slow_symmetric(logits: list[float], truth: list[int]) -> float:
    inverted = _slow_hinge([-logit for logit in logits], [1 - true for true in truth])
    return (_slow_hinge(logits, truth) + inverted) / 2


pixels = st.tuples(st.floats(-3, 3, width=32), st.integers(0, 1), st.booleans())


@pytest.mark.parametrize("sorts_all", [False, True], ids=["as on a CPU", "as on a GPU"])
@given(pairs=st.lists(st.lists(pixels, min_size=6, max_size=6), min_size=1, max_size=4), empty_weight=st.floats(0, 2))
def test_lovasz_is_what_a_slow_loop_gives(
    sorts_all: bool, pairs: list[list[tuple[float, int, bool]]], empty_weight: float
) -> None:
    """Each pair is an image of six pixels: logit, label, and whether it counts."""
    logits, truth, valid = (
        torch.tensor([[pixel[index] for pixel in pair] for pair in pairs]).reshape(-1, 1, 2, 3) for index in range(3)
    )
    costs: dict[bool, list[float]] = {True: [], False: []}
    for pair in pairs:
        counted = [(logit, true) for logit, true, counts in pair if counts]
        cost = _slow_symmetric([logit for logit, _ in counted], [true for _, true in counted]) if counted else 0.0
        costs[any(true for _, true in counted)].append(cost)
    means = {defective: sum(values) / max(1, len(values)) for defective, values in costs.items()}
    with pytest.MonkeyPatch.context() as patch:
        if sorts_all:
            patch.setattr(losses, "_ranks_needed", lambda errors: errors.shape[1])
        loss = pair_lovasz(logits.float(), (truth * valid).float(), valid.bool(), empty_weight=empty_weight)
    assert loss.item() == pytest.approx(means[True] + empty_weight * means[False], rel=1e-6, abs=1e-6)


def test_lovasz_of_large_images_and_its_gradient_are_those_of_one_pair_after_the_other() -> None:
    generator = torch.Generator().manual_seed(5)
    logits = (torch.randn(3, 2, 64, 96, generator=generator) * 3 - 2).requires_grad_()
    truth = torch.zeros(3, 2, 64, 96)
    truth[0, 0, 10:40, 20:70] = truth[1, 1, :5] = truth[2] = 1
    valid = torch.ones(3, 1, 64, 96, dtype=torch.bool)
    valid[1:, :, :, :30] = False
    truth = truth * valid
    costs = [_hinge_of_a_pair(logits[i, c][valid[i, 0]], truth[i, c][valid[i, 0]]) for i in range(3) for c in range(2)]
    # Pairs with a defect: class 1 of image 0, class 2 of image 1, both of image 2.
    slow = sum(costs[index] for index in (0, 3, 4, 5)) / 4 + 0.3 * (costs[1] + costs[2]) / 2
    fast = pair_lovasz(logits, truth, valid, empty_weight=0.3)
    torch.testing.assert_close(fast, slow, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(_gradient(fast, logits), _gradient(slow, logits), rtol=1e-5, atol=1e-6)


def _hinge_of_a_pair(logits: Tensor, truth: Tensor) -> Tensor:
    """The symmetric hinge of the pixels that count, sorted alone and in full."""
    errors, order = (1.0 - logits * (2.0 * truth - 1.0)).sort(descending=True)
    steps = torch.zeros_like(errors)
    for ranked in (truth[order].double(), 1.0 - truth[order].double()):
        jaccard = 1.0 - (ranked.sum() - ranked.cumsum(0)) / (ranked.sum() + (1.0 - ranked).cumsum(0))
        steps = steps + torch.diff(jaccard, prepend=jaccard.new_zeros(1))
    return 0.5 * (errors.clamp(min=0) * steps).sum().float()


@pytest.mark.parametrize("values", [(1, 0, 0), (0, 0, 0), (1, 1, 1)])
def test_lovasz_of_an_answer_beyond_the_margin_is_zero_and_without_gradient(values: tuple[int, ...]) -> None:
    truth = _pixels(*values)
    logits = ((truth * 2 - 1) * 1.5).requires_grad_()
    loss = pair_lovasz(logits, truth, _all_valid(logits), empty_weight=1.0)
    assert loss.item() == 0.0
    assert _gradient(loss, logits).abs().max().item() == 0.0


def test_lovasz_pulls_every_pixel_within_the_margin_to_its_label() -> None:
    truth = _pixels(1, 1, 0, 0, 0)
    logits = _pixels(-0.5, 0.3, 0.1, -0.7, 2.0).requires_grad_()
    gradient = _gradient(pair_lovasz(logits, truth, _all_valid(logits), empty_weight=1.0), logits)
    assert (gradient.flatten().sign() == torch.tensor([-1, -1, 1, 1, 1])).all()


@pytest.mark.parametrize(
    ("begins", "share_done", "takes_over"),
    [(0.6, 0.0, False), (0.6, 0.59, False), (0.6, 0.6, True), (0.6, 1.0, True), (0.0, 0.0, True), (1.0, 1.0, False)],
)
def test_lovasz_takes_the_place_of_dice_late_in_the_training(
    begins: float, share_done: float, takes_over: bool
) -> None:
    logits = torch.randn(1, 2, 6, 6, generator=torch.Generator().manual_seed(3))
    masks = torch.zeros(1, 2, 6, 6, dtype=torch.bool)
    masks[0, 0, 1:3, 1:3] = True
    config = LossConfig(dice=0.5, lovasz=3.0, lovasz_from=begins, gate=0.0)
    ignore = torch.zeros(1, 6, 6, dtype=torch.bool)
    parts = segmentation_loss(logits, None, masks, ignore, config, share_done=share_done)
    assert (parts.dice.item() > 0, parts.lovasz.item() > 0) == (not takes_over, takes_over)
    expected = parts.bce + (3.0 * parts.lovasz if takes_over else 0.5 * parts.dice)
    assert parts.total.item() == pytest.approx(expected.item())


def test_small_logits_are_compared_with_the_mean_truth_of_the_pixels_they_cover() -> None:
    # 2x4 pixels, logits of 1x2, probability 1/2. Left: 3 of 4 pixels defective. Right: one is ignored: invalid.
    masks = torch.tensor([[1, 1, 0, 1], [1, 0, 1, 1]], dtype=torch.bool).reshape(1, 1, 2, 4)
    ignore = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool).reshape(1, 2, 4)
    config = LossConfig(smooth_px=4.0, empty_weight=0.0)
    parts = segmentation_loss(torch.zeros(1, 1, 1, 2), torch.zeros(1, 1), masks, ignore, config)
    assert parts.bce.item() == pytest.approx(LOG2)
    # Overlap 3/8, areas 1/2 and 3/4, smoothed by 4 * 2/8 = 1 px.
    assert parts.dice.item() == pytest.approx(1 - (2 * 3 / 8 + 1) / (1 / 2 + 3 / 4 + 1))
    assert parts.gate.item() == pytest.approx(LOG2)
