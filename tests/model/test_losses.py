"""The losses, with numbers worked by hand."""

import math
from typing import Literal

import pytest
import segmentation_models_pytorch as smp
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from defectseg.config import LossConfig
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


def test_bce_of_undecided_pixels_is_log_2() -> None:
    logits = torch.zeros(2, 3, 4, 5)
    assert pixel_bce(logits, torch.zeros_like(logits), _all_valid(logits), None).item() == pytest.approx(LOG2)


def test_bce_is_the_mean_over_pixels() -> None:
    # -ln 0.8 for the defect found at 0.8, -ln 0.9 for the sound pixel at 0.1.
    logits, truth = _pixels(_logit(0.8), _logit(0.1)), _pixels(1, 0)
    expected = (-math.log(0.8) - math.log(0.9)) / 2
    assert pixel_bce(logits, truth, _all_valid(logits), None).item() == pytest.approx(expected)


def test_bce_weighs_the_defect_pixels_of_each_class() -> None:
    logits = torch.zeros(1, 2, 1, 2)
    truth = torch.tensor([[[[1.0, 0.0]], [[1.0, 0.0]]]])
    # Class 1: (3 + 1) ln 2 over two pixels, class 2: (1 + 1) ln 2; six ln 2 over four pixels.
    assert pixel_bce(logits, truth, _all_valid(logits), (3.0, 1.0)).item() == pytest.approx(6 * LOG2 / 4)


def test_bce_leaves_invalid_pixels_out_of_sum_and_count() -> None:
    logits, truth = _pixels(0.0, 50.0, 50.0), _pixels(0, 0, 0)
    valid = torch.tensor([True, False, False]).reshape(1, 1, 1, 3)
    assert pixel_bce(logits, truth, valid, None).item() == pytest.approx(LOG2)


def test_bce_of_no_valid_pixel_is_zero() -> None:
    logits = _pixels(3.0, -2.0)
    assert pixel_bce(logits, torch.zeros_like(logits), ~_all_valid(logits), None).item() == 0.0


def test_dice_of_a_pair_with_a_defect() -> None:
    # Overlap 0.8, areas 0.8 + 0.4 and 1; 1 - (1.6 + 2) / (1.2 + 1 + 2) = 1 - 3.6 / 4.2.
    logits, truth = _pixels(_logit(0.8), _logit(0.4)), _pixels(1, 0)
    loss = pair_dice(logits, truth, _all_valid(logits), smooth_px=2.0, empty_weight=0.5)
    assert loss.item() == pytest.approx(1 - 3.6 / 4.2, abs=1e-6)


def test_dice_of_a_clean_pair() -> None:
    # Predicted area 0.2 + 0.1; 0.3 / (0.3 + 2), weighted by 0.5.
    logits = _pixels(_logit(0.2), _logit(0.1))
    loss = pair_dice(logits, torch.zeros_like(logits), _all_valid(logits), smooth_px=2.0, empty_weight=0.5)
    assert loss.item() == pytest.approx(0.5 * 0.3 / 2.3, abs=1e-6)


def test_dice_averages_defective_and_clean_pairs_apart() -> None:
    # Every probability 1/2, two pixels a pair. With a defect: 1 - (1 + 1) / (1 + 1 + 1) = 1/3. Clean: 1/2.
    # One defective pair and three clean ones: 1/3 + 0.2 * 1/2, whatever their numbers.
    logits = torch.zeros(2, 2, 1, 2)
    truth = torch.zeros(2, 2, 1, 2)
    truth[1, 0, 0, 1] = 1
    loss = pair_dice(logits, truth, _all_valid(logits), smooth_px=1.0, empty_weight=0.2)
    assert loss.item() == pytest.approx(1 / 3 + 0.2 / 2, abs=1e-6)


def test_dice_over_a_batch_adds_the_images_up_before_it_divides() -> None:
    # Two images of two pixels. Together: true 3, predicted 4 * 0.5, overlap 1.5; of the pairs: 1 and 2 true pixels.
    logits = torch.zeros(2, 1, 1, 2)
    truth = torch.tensor([[1.0, 0.0], [1.0, 1.0]]).reshape(2, 1, 1, 2)
    valid = _all_valid(logits)
    together = pair_dice(logits, truth, valid, smooth_px=1.0, empty_weight=0.2, over_batch=True)
    apart = pair_dice(logits, truth, valid, smooth_px=1.0, empty_weight=0.2)
    assert together.item() == pytest.approx(1 - (2 * 1.5 + 1) / (2 + 3 + 1))
    assert apart.item() == pytest.approx(((1 - (2 * 0.5 + 1) / (1 + 1 + 1)) + (1 - (2 * 1 + 1) / (1 + 2 + 1))) / 2)


@pytest.mark.parametrize("dice_over", ["pair", "batch"])
def test_the_recipe_says_what_dice_is_over(dice_over: Literal["pair", "batch"]) -> None:
    logits, masks = torch.zeros(2, 1, 1, 2), torch.tensor([[True, False], [True, True]]).reshape(2, 1, 1, 2)
    config = LossConfig(dice_over=dice_over)
    dice = segmentation_loss(logits, None, masks, torch.zeros(2, 1, 2, dtype=torch.bool), config).dice
    expected = pair_dice(
        logits,
        masks.float(),
        _all_valid(logits),
        smooth_px=config.smooth_px,
        empty_weight=config.empty_weight,
        over_batch=dice_over == "batch",
    )
    assert dice.item() == expected.item()


def test_a_perfect_answer_costs_nothing() -> None:
    masks = torch.zeros(1, 2, 8, 8, dtype=torch.bool)
    masks[0, 0, 2:5, 3:6] = True
    gates = torch.tensor([[60.0, -60.0]])
    parts = segmentation_loss((masks.float() * 2 - 1) * 60, gates, masks, torch.zeros(1, 8, 8).bool(), LossConfig())
    assert parts.total.item() == pytest.approx(0.0, abs=1e-6)


def test_false_alarms_on_clean_images_are_punished_where_the_usual_dice_loss_is_silent() -> None:
    logits = torch.full((2, 4, 16, 16), 0.3, requires_grad=True)
    truth = torch.zeros(2, 4, 16, 16)

    usual = smp.losses.DiceLoss("multilabel")(logits, truth)
    assert _gradient(usual, logits).abs().max().item() == 0.0

    ours = pair_dice(logits, truth, _all_valid(logits), smooth_px=100.0, empty_weight=0.2)
    assert (_gradient(ours, logits) > 0).all(), "less probability must mean less loss at every pixel"


def test_without_weight_for_clean_pairs_their_gradient_is_zero() -> None:
    logits = torch.full((1, 1, 4, 4), 0.3, requires_grad=True)
    loss = pair_dice(logits, torch.zeros(1, 1, 4, 4), _all_valid(logits), smooth_px=1.0, empty_weight=0.0)
    assert _gradient(loss, logits).abs().max().item() == 0.0


def _some_loss(
    logits: Tensor, gate: Tensor | None, config: LossConfig | None = None, unknown: list[list[bool]] | None = None
) -> LossParts:
    """Two images, two classes, 6 x 6 px; the second image's left half is ignored, a part of its defect with it."""
    masks = torch.zeros(2, 2, 6, 6, dtype=torch.bool)
    masks[0, 0, 1:3, 1:3] = True
    masks[1, 1, 2:4, 1:5] = True
    ignore = torch.zeros(2, 6, 6, dtype=torch.bool)
    ignore[1, :, :3] = True
    pairs = None if unknown is None else torch.tensor(unknown)
    config = config or LossConfig(positive_weights=(2.0, 1.5))
    return segmentation_loss(logits, gate, masks, ignore, config, unknown=pairs)


@pytest.mark.parametrize("lovasz_from", [0.0, 1.0], ids=["Lovasz", "Dice"])
def test_ignored_pixels_have_no_influence(lovasz_from: float) -> None:
    config = LossConfig(positive_weights=(2.0, 1.5), lovasz_from=lovasz_from)
    generator = torch.Generator().manual_seed(1)
    logits = torch.randn(2, 2, 6, 6, generator=generator)
    gate = torch.randn(2, 2, generator=generator)
    changed = logits.clone()
    changed[1, :, :, :3] = torch.randn(2, 6, 3, generator=generator) * 30
    changed.requires_grad_()
    before, after = _some_loss(logits, gate, config), _some_loss(changed, gate, config)
    for name in ("total", "bce", "dice", "lovasz", "gate"):
        assert getattr(before, name).item() == getattr(after, name).item()

    gradient = _gradient(after.total, changed)
    assert gradient[1, :, :, :3].abs().max().item() == 0.0
    assert (gradient[1, :, :, 3:] != 0).all()
    assert (gradient[0] != 0).all()


@pytest.mark.parametrize("lovasz_from", [0.0, 1.0], ids=["Lovasz", "Dice"])
def test_labels_under_ignored_pixels_have_no_influence(lovasz_from: float) -> None:
    config = LossConfig(lovasz_from=lovasz_from)
    generator = torch.Generator().manual_seed(1)
    logits, gate = torch.randn(1, 2, 4, 4, generator=generator), torch.randn(1, 2, generator=generator)
    ignore = torch.zeros(1, 4, 4, dtype=torch.bool)
    ignore[0, :2] = True
    sound = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    sound[0, 1, 3, 3] = True
    hidden = sound.clone()
    hidden[0, :, :2] = True
    for name in ("total", "bce", "dice", "lovasz", "gate"):
        without, with_hidden = (
            getattr(segmentation_loss(logits, gate, masks, ignore, config), name) for masks in (sound, hidden)
        )
        assert without.item() == with_hidden.item(), name


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


def test_without_a_head_the_gate_costs_nothing() -> None:
    assert _some_loss(torch.zeros(2, 2, 6, 6), None).gate.item() == 0.0


def test_the_total_is_the_weighted_sum_of_its_parts() -> None:
    config = LossConfig(bce=2.0, dice=0.5, gate=3.0)
    parts = _some_loss(torch.randn(2, 2, 6, 6, generator=torch.Generator().manual_seed(3)), torch.ones(2, 2), config)
    expected = 2.0 * parts.bce + 0.5 * parts.dice + 3.0 * parts.gate
    assert parts.total.item() == pytest.approx(expected.item())
    assert min(parts.bce.item(), parts.dice.item(), parts.gate.item()) > 0


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


@given(st.lists(st.lists(pixels, min_size=6, max_size=6), min_size=1, max_size=4), st.floats(0, 2))
def test_lovasz_is_what_a_slow_loop_gives(pairs: list[list[tuple[float, int, bool]]], empty_weight: float) -> None:
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
    loss = pair_lovasz(logits.float(), (truth * valid).float(), valid.bool(), empty_weight=empty_weight)
    assert loss.item() == pytest.approx(means[True] + empty_weight * means[False], abs=1e-4)


def test_lovasz_of_a_pair_by_hand() -> None:
    # Errors: 1 - 0.5 for the defect, 1 + 0.2 and 1 - 2 for the sound pixels; the last is beyond the margin.
    # From the worst down, seen from the defect (area 1): a false alarm makes 1 - 1/2, the miss then 1 - 0/2.
    # Seen from the sound steel (area 2): one lost makes 1 - 1/2, then one too many 1 - 1/3.
    logits, truth = _pixels(0.5, 0.2, -2.0), _pixels(1, 0, 0)
    defect = 1.2 * 0.5 + 0.5 * 0.5
    sound = 1.2 * 0.5 + 0.5 * (2 / 3 - 1 / 2)
    loss = pair_lovasz(logits, truth, _all_valid(logits), empty_weight=0.3)
    assert loss.item() == pytest.approx((defect + sound) / 2)


def test_lovasz_weighs_clean_pairs() -> None:
    # Nothing to find: the first false alarm makes 1 - 0/1 at once; of the sound steel a half is lost.
    logits = _pixels(0.2, -2.0)
    expected = (1.2 * 1.0 + 1.2 * 0.5) / 2
    for weight in (0.0, 0.3, 1.0):
        loss = pair_lovasz(logits, torch.zeros_like(logits), _all_valid(logits), empty_weight=weight)
        assert loss.item() == pytest.approx(weight * expected)


def test_lovasz_averages_defective_and_clean_pairs_apart() -> None:
    logits = torch.cat([_pixels(0.2, -2.0), _pixels(0.2, -2.0), _pixels(0.2, -2.0)])
    truth = torch.cat([_pixels(0, 0), _pixels(1, 0), _pixels(0, 0)])
    parts = [
        pair_lovasz(logits[chosen], truth[chosen], _all_valid(logits[chosen]), empty_weight=0.4).item()
        for chosen in ([1], [0], [0, 1, 2])
    ]
    assert parts[2] == pytest.approx(parts[0] + parts[1])


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
