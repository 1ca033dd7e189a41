#!/usr/bin/env python
"""Predict as textbooks do it: PIL, albumentations, eager float32 torch, run-lengths in a Python loop, PNG from PIL.

Like `defectseg predict` with the same network, it writes overlays, class maps and a table of run-lengths; it only
leaves out the minimum area. `scripts/bench/predict.py` compares the two.
Usage: python scripts/bench/textbook.py MODEL.safetensors IMAGES OUT [--images N]
"""

import argparse
import csv
import os
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
import albumentations as A  # noqa: N812
from albumentations.pytorch import ToTensorV2

from defectseg.model.bundle import load_bundle

RED = np.array([255, 0, 0])


class Textbook:
    """The plain segmentation-models-pytorch network of a bundle."""

    def __init__(self, model: Path) -> None:
        network, self.info = load_bundle(model)
        if self.info.recipe.model.input_scale != 1.0:
            raise SystemExit(f"{model}: its input is scaled, which textbooks do not do. Take another model.")
        self.network = network.net.eval()
        self.channels = self.info.recipe.model.in_channels
        mean, std = self.info.normalization.mean, self.info.normalization.std
        pad = A.PadIfNeeded(None, None, pad_height_divisor=32, pad_width_divisor=32, position="top_left")
        self.transform = A.Compose([pad, A.Normalize((mean,) * 3, (std,) * 3), ToTensorV2()])

    def masks(self, image: NDArray[np.uint8]) -> NDArray[np.bool_]:
        """Masks bool (C, H, W) of an image uint8 (H, W, 3)."""
        x = self.transform(image=image)["image"][None, : self.channels]
        with torch.no_grad():
            output = self.network(x)
        logits, gate = output if isinstance(output, tuple) else (output, None)
        probabilities = torch.sigmoid(logits)[0, :, : image.shape[0], : image.shape[1]].numpy()
        present = probabilities.max(axis=(1, 2)) if gate is None else torch.sigmoid(gate)[0].numpy()
        thresholds = self.info.thresholds
        above = probabilities >= np.array(thresholds.pixel)[:, None, None]
        return above & (present >= np.array(thresholds.gate))[:, None, None]

    def run(self, images: Sequence[Path], out: Path) -> None:
        """Write overlays, class maps and predictions.csv to a folder."""
        out.mkdir(parents=True, exist_ok=True)
        rows = []
        for path in images:
            image = np.array(Image.open(path).convert("RGB"))
            overlay, class_map = image.astype(np.float32), np.zeros(image.shape[:2], np.uint8)
            for class_id, mask in enumerate(self.masks(image), start=1):
                rows.append((path.name, class_id, encode(mask)))
                overlay[mask] = overlay[mask] * 0.6 + RED * 0.4
                class_map[mask] = class_id
            Image.fromarray(overlay.astype(np.uint8)).save(out / f"{path.stem}.png")
            Image.fromarray(class_map).save(out / f"{path.stem}_mask.png")
        with (out / "predictions.csv").open("w", newline="") as handle:
            csv.writer(handle).writerows([("ImageId", "ClassId", "EncodedPixels"), *rows])


def encode(mask: NDArray[np.bool_]) -> str:
    words: list[str] = []
    start = length = 0
    for number, pixel in enumerate(mask.T.flatten(), start=1):
        if pixel:
            start, length = start or number, length + 1
        elif length:
            words += [str(start), str(length)]
            start = length = 0
    if length:
        words += [str(start), str(length)]
    return " ".join(words)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=20)
    options = parser.parse_args()
    suffixes = (".jpg", ".jpeg", ".png")
    images = sorted(path for path in options.folder.rglob("*") if path.suffix.lower() in suffixes)[: options.images]
    textbook = Textbook(options.model)
    textbook.run(images[:1], options.out)
    begun = time.perf_counter()
    textbook.run(images, options.out)
    print(f"{len(images) / (time.perf_counter() - begun):.3f} images/s")


if __name__ == "__main__":
    main()
