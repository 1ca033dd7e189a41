#!/usr/bin/env python
"""Compare `train` with a plain segmentation-models-pytorch script, scripts/bench/rivals/plain_smp.py.

Both train a U-Net for as many steps on crops of 256x512, as many at a time, from the same images of 256x1600, which lie
decoded in memory. Times count from the first step on. The plain script flips its crops, and its loss is BCE + Dice.
defectseg also changes their light, learns a gate, clips gradients, and averages the weights; its data wait is the share
of the time in which it had no crops.
Prints a markdown table for each encoder, and how many crops a second one core prepares.
Usage: python scripts/bench/training.py DATA [--encoders resnet18,...] [--device cpu] [--batch 8] [--steps 6]
           [--rivals fp32,bf16]
DATA holds train_images/ and train.csv of Severstal. On a GPU, for 2,400 crops:
       python scripts/bench/training.py DATA --device cuda --encoders resnet34 --steps 300
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import torch

from defectseg.config import Recipe, load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.machine import machine_facts
from defectseg.train.augment import build_augment
from defectseg.train.curves import read_history
from defectseg.train.dataset import CropDataset, CropSampler, collate
from defectseg.train.images import read_images
from defectseg.train.train import train

RIVAL = Path(__file__).parent / "rivals" / "plain_smp.py"
CROPS_TIMED = 800


def rival_rate(options: argparse.Namespace, encoder: str, precision: str) -> float:
    """Images per second of the plain script, as it prints them."""
    named = {"device": options.device, "precision": precision, "encoder": encoder, "batch": options.batch}
    arguments = [word for name, value in named.items() for word in (f"--{name}", str(value))]
    command = [sys.executable, RIVAL, "severstal", options.data, options.data, "none", *arguments]
    done = subprocess.run([*command, "--steps", str(options.steps)], stdout=subprocess.PIPE, text=True, check=True)
    return float(json.loads(done.stdout.splitlines()[-1])["img_per_s"])


def our_recipe(options: argparse.Namespace, encoder: str) -> Recipe:
    settings = [
        *(f"model.encoder={encoder}", "model.encoder_weights=none", "data.folds=2", "data.fold=null"),
        *(f"training.batch_size={options.batch}", f"data.samples_per_epoch={options.batch * options.steps}"),
        *("training.epochs=1", "training.max_minutes=null", "training.threshold_folds=0", "training.trackers=[]"),
        *("training.second_stage.epochs=0", "data.crop_hw=[256,512]"),
    ]
    return load_recipe("severstal-small", settings)


def our_rate(options: argparse.Namespace, encoder: str) -> tuple[float, float]:
    """Images per second of `train`, and the share of the time that it waited for data."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        out = Path(folder) / "run"
        train(options.data, out, recipe=our_recipe(options, encoder), device=options.device)
        (epoch,) = read_history(out / "metrics.jsonl")
    seconds = epoch["data_s"] + epoch["step_s"]
    return options.batch * options.steps / seconds, epoch["data_s"] / seconds


def crops_rate(options: argparse.Namespace) -> float:
    """Crops per second that one core cuts, augments and stacks."""
    recipe, data = our_recipe(options, "resnet18"), open_data_folder(options.data)
    images = read_images(data, dict.fromkeys(data.image_ids, 0), keep=True)
    settings = recipe.data.model_copy(update={"samples_per_epoch": CROPS_TIMED})
    keys = list(CropSampler(data, data.image_ids, settings, 0))
    augment, limit = build_augment(recipe.augment), recipe.data.black_limit
    dataset = CropDataset(data, recipe.data.crop_hw, augment, 0, cache=images.cache, black_limit=limit)
    cv2.setNumThreads(1)
    torch.set_num_threads(1)
    begun = time.perf_counter()
    for first in range(0, CROPS_TIMED, options.batch):
        collate([dataset[key] for key in keys[first : first + options.batch]])
    return CROPS_TIMED / (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, metavar="DATA")
    parser.add_argument("--encoders", default="resnet18,tu-tf_efficientnet_lite0")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rivals", default="fp32,bf16", help="precisions of the plain script")
    options = parser.parse_args()
    facts = machine_facts()
    device = (
        torch.cuda.get_device_name()
        if options.device == "cuda"
        else f"{facts['cpu']}, {torch.get_num_threads()} threads"
    )
    print(f"{device}, torch {torch.__version__}; {options.steps} steps of {options.batch} crops of 256x512\n")
    for encoder in options.encoders.split(","):
        rivals = {precision: rival_rate(options, encoder, precision) for precision in options.rivals.split(",")}
        ours, waits = our_rate(options, encoder)
        print(
            f"| {encoder} | images/s | defectseg is so many times as fast | data wait |\n| --- | ---: | ---: | ---: |"
        )
        for precision, rate in rivals.items():
            print(f"| plain script, {precision} | {rate:.2f} | {ours / rate:.2f} | |")
        print(f"| defectseg | {ours:.2f} | | {waits:.1%} |\n", flush=True)
    print(f"The data path prepares {crops_rate(options):.0f} crops/s on one core.")


if __name__ == "__main__":
    main()
