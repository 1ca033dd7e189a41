#!/usr/bin/env python
"""Compare a training step of defectseg with a plain one (float32, default memory layout, default AdamW).

Both train the same U-Net on the same crops, without data loading, and take turns, so that they meet the same load on
the machine. Prints a markdown table of medians in milliseconds and their ratio.
Usage: python scripts/bench/training.py [--encoders resnet18,...] [--size 256x256] [--batch 8] [--steps 7]
"""

import argparse
import statistics
import time
from collections.abc import Callable

import segmentation_models_pytorch as smp
import torch
from torch import Tensor, nn

from defectseg.config import LossConfig, ModelConfig, OptimizerConfig
from defectseg.model.devices import half_precision
from defectseg.model.losses import segmentation_loss
from defectseg.model.network import build_network
from defectseg.train.schedule import make_optimizer

CLASSES = 4


def plain_step(encoder: str, grey: Tensor, masks: Tensor) -> Callable[[], None]:
    network = smp.Unet(encoder, encoder_weights=None, in_channels=3, classes=CLASSES)
    optimizer = torch.optim.AdamW(network.parameters(), 1e-3)
    bce, dice = nn.BCEWithLogitsLoss(), smp.losses.DiceLoss("multilabel")
    images, truth = (grey.float() / 255.0 - 0.5).expand(-1, 3, -1, -1).contiguous(), masks.float()

    def step() -> None:
        logits = network(images)
        loss = bce(logits, truth) + dice(logits, truth)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def our_step(encoder: str, grey: Tensor, masks: Tensor) -> Callable[[], None]:
    config = ModelConfig(encoder=encoder, encoder_weights="none", classification_head=False)
    network = build_network(config, CLASSES, "none").to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, OptimizerConfig())
    dtype = half_precision(torch.device("cpu"))
    ignore = torch.zeros(masks[:, 0].shape, dtype=torch.bool)

    def step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype is not None):
            logits, _ = network(grey.contiguous(memory_format=torch.channels_last))
        optimizer.zero_grad()
        torch.autograd.backward(segmentation_loss(logits.float(), None, masks, ignore, LossConfig()).total)
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()

    return step


def milliseconds(step: Callable[[], None]) -> float:
    begun = time.perf_counter()
    step()
    return 1000 * (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--encoders", default="resnet18,tu-tf_efficientnet_lite0")
    parser.add_argument("--size", default="256x256")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=7)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    height, width = map(int, arguments.size.split("x"))
    grey = torch.randint(0, 256, (arguments.batch, 1, height, width), dtype=torch.uint8)
    masks = torch.rand(arguments.batch, CLASSES, height, width) > 0.97
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {threads} threads, {arguments.batch} crops of {arguments.size}\n")
    print("| encoder | plain, ms | defectseg, ms | times as fast |\n| --- | ---: | ---: | ---: |")
    for encoder in arguments.encoders.split(","):
        steps = [plain_step(encoder, grey, masks), our_step(encoder, grey, masks)]
        for step in steps:
            step()  # the first chooses kernels and allocates
        times = [[milliseconds(step) for step in steps] for _ in range(arguments.steps)]
        plain, ours = (statistics.median(column) for column in zip(*times, strict=True))
        print(f"| {encoder} | {plain:.0f} | {ours:.0f} | {plain / ours:.2f} |", flush=True)


if __name__ == "__main__":
    main()
