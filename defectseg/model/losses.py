"""Losses that penalise false alarms on clean steel."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from defectseg.config import LossConfig


class LossParts(NamedTuple):
    """Scalars: the weighted total, and its unweighted parts."""

    total: Tensor
    bce: Tensor
    dice: Tensor
    lovasz: Tensor
    gate: Tensor


def segmentation_loss(
    mask_logits: Tensor,
    gate_logits: Tensor | None,
    masks: Tensor,
    ignore: Tensor,
    config: LossConfig,
    *,
    unknown: Tensor | None = None,
    share_done: float = 0.0,
) -> LossParts:
    """BCE and Dice over the pixels, and BCE over the image-level head. Lovasz replaces Dice late in the training.

    Args:
        mask_logits: float (N, C, H, W), or smaller (N, C, h, w): each is compared with the mean truth of the pixels
            that it covers. It counts if all of them are valid. smooth_px shrinks with the area.
        gate_logits: float (N, C), or None without a head.
        masks: bool (N, C, H, W), the truth.
        ignore: bool (N, H, W), pixels that do not count.
        config: weights of the parts, and when Lovasz begins.
        unknown: bool (N, C), pairs in which ignored pixels may hide the class. The gate has no target there; the other
            pixels are known to be sound and count.
        share_done: the share of the training that is done, 0..1.
    """
    valid = ~ignore[:, None]
    truth = (masks & valid).float()
    full_truth, smooth_px = truth, config.smooth_px
    height, width = mask_logits.shape[-2:]
    if (height, width) != truth.shape[-2:]:
        smooth_px *= height * width / truth.shape[-2:].numel()
        valid = F.adaptive_avg_pool2d(valid.float(), (height, width)) == 1
        truth = F.adaptive_avg_pool2d(truth, (height, width)) * valid
    bce = pixel_bce(mask_logits, truth, valid, config.positive_weights)
    dice = lovasz = gate = mask_logits.new_zeros(())
    if config.lovasz_from < 1.0 and share_done >= config.lovasz_from:
        lovasz = pair_lovasz(mask_logits, truth.round(), valid, empty_weight=config.lovasz_empty_weight)
    else:
        dice = pair_dice(
            mask_logits,
            truth,
            valid,
            smooth_px=smooth_px,
            empty_weight=config.empty_weight,
            over_batch=config.dice_over == "batch",
        )
    if gate_logits is not None:
        known = torch.ones_like(gate_logits) if unknown is None else (~unknown).float()
        weight = known * (known.numel() / known.sum().clamp(min=1))  # makes the mean that of the known pairs
        gate = F.binary_cross_entropy_with_logits(gate_logits, full_truth.amax(dim=(2, 3)), weight=weight)
    total = config.bce * bce + config.dice * dice + config.lovasz * lovasz + config.gate * gate
    return LossParts(total, bce, dice, lovasz, gate)


def pixel_bce(logits: Tensor, truth: Tensor, valid: Tensor, positive_weights: tuple[float, ...] | None) -> Tensor:
    """Mean binary cross-entropy over valid pixels and classes; shapes as in `segmentation_loss`."""
    weights = None
    if positive_weights is not None:  # not new_tensor, which would wait for a GPU
        weights = torch.stack([logits.new_full((1, 1), weight) for weight in positive_weights])
    weight = valid.to(logits.dtype)
    count = (valid.sum() * logits.shape[1]).clamp(min=1)
    return F.binary_cross_entropy_with_logits(logits, truth, weight, pos_weight=weights, reduction="sum") / count


def pair_dice(
    logits: Tensor, truth: Tensor, valid: Tensor, *, smooth_px: float, empty_weight: float, over_batch: bool = False
) -> Tensor:
    """Dice loss of each (image, class) pair, averaged over pairs with a defect, plus that over clean pairs.

    One pair costs 1 - (2 tp + s) / (p + t + s) with p and t the predicted and true areas in px. If t is 0, this is
    p / (p + s): with `s` about as large as a small defect, false alarms have a gradient. The usual Dice loss gives them
    none, because it leaves out classes that do not occur in the batch.

    Args:
        empty_weight: weight of the mean over clean pairs; 0.2 was the best of 0.01 to 0.4 in the winners' report
            for the corresponding term of the Lovasz loss.
        over_batch: treat all images of a class as one.
    """
    dim = (0, 2, 3) if over_batch else (2, 3)
    probabilities = logits.sigmoid() * valid
    overlap = (probabilities * truth).sum(dim=dim)
    predicted, true = probabilities.sum(dim=dim), truth.sum(dim=dim)
    loss = 1.0 - (2.0 * overlap + smooth_px) / (predicted + true + smooth_px)
    positive = true > 0
    return _mean_where(loss, positive) + empty_weight * _mean_where(loss, ~positive)


def pair_lovasz(logits: Tensor, truth: Tensor, valid: Tensor, *, empty_weight: float) -> Tensor:
    """Symmetric Lovasz hinge of each (image, class) pair: the mean of the hinge for the defect and for the sound steel.

    It is the Lovasz extension of the Jaccard loss (Berman et al., CVPR 2018), a convex surrogate for 1 - IoU. Averaged
    over pairs with a defect, plus `empty_weight` times the mean over clean pairs. Shapes as in `segmentation_loss`.
    """
    logits, truth, counts = (pixels.expand_as(logits).flatten(2).flatten(0, 1) for pixels in (logits, truth, valid))
    errors = 1.0 - logits * (2.0 * truth - 1.0)
    errors = torch.where(counts & (errors > 0), errors, 0.0)  # pixels beyond the margin cost nothing
    errors, order = errors.topk(_ranks_needed(errors), dim=1)
    ranked, total = truth.gather(1, order), truth.sum(dim=1, keepdim=True)
    defect = _jaccard_steps(ranked, total)
    sound = _jaccard_steps(1.0 - ranked, counts.sum(dim=1, keepdim=True) - total)
    loss = 0.5 * (errors * (defect + sound)).sum(dim=1)
    positive = total[:, 0] > 0
    return _mean_where(loss, positive) + empty_weight * _mean_where(loss, ~positive)


def _ranks_needed(errors: Tensor) -> int:
    """How many pixels of a pair to sort. On a GPU all, because counting would have to wait for it."""
    return int((errors > 0).sum(dim=1).amax().clamp(min=1)) if errors.device.type == "cpu" else errors.shape[1]


def _jaccard_steps(ranked: Tensor, total: Tensor) -> Tensor:
    """How much each pixel in turn adds to 1 - IoU of its pair once it is wrong; `total` is the true area in px."""
    missed = ranked.cumsum(dim=1)
    union = (total + (1.0 - ranked).cumsum(dim=1)).clamp(min=1.0)  # 0 only at pixels that cost nothing
    return torch.diff(1.0 - (total - missed) / union, dim=1, prepend=torch.zeros_like(total))


def _mean_where(values: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(chosen, values, 0.0).sum() / chosen.sum().clamp(min=1)
