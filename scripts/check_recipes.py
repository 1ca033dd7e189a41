#!/usr/bin/env python
"""Trains shipped recipes as the head of their file says, and compares the score with the one that is written there.

The head of each file in configs/ is the one place for the commands, the data, the expected score with its 95 %
interval, and the time. The commands are run as they stand, the last one with --json, in a folder that holds the data as
links; without split.csv, since the scores are those of the recipe's own folds.

Prints a line for each recipe: expected, found, inside or outside the interval, minutes. Exit code 1 if a score is
outside or a command fails; a recipe that cannot be run here is told with the reason, and changes nothing.
Usage: scripts/check_recipes [NAME...] --data-root DIR, which holds a data folder for each name after `Data:`
"""

import argparse
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from defectseg.cli.show import print_rows
from defectseg.config import load_recipe, shipped_recipes

SPLIT_NAME = "split.csv"
FIELDS = ("Command", "Data", "Score", "Time")
SCORE = re.compile(r"([A-Za-z ]+) (\d\.\d+) \(95 % interval (\d\.\d+) to (\d\.\d+)\)")
DATA = re.compile(r"([a-z0-9]+), ([\d,]+) images")


@dataclass(frozen=True)
class Head:
    """What the first lines of a recipe say.

    Attributes:
        commands: the words of each command, without `defectseg`.
        data, time: as they stand.
        folder, images: the data folder and its number of images; None where the commands make their data.
        figure: the name of the score.
        expected, low, high: the score and its interval; None where none was measured, as of `figure`.
    """

    commands: tuple[tuple[str, ...], ...]
    data: str
    time: str
    folder: str | None
    images: int | None
    figure: str | None
    expected: float | None
    low: float | None
    high: float | None


def read_head(text: str) -> Head:
    """Parse the head of a recipe. Raises ValueError if it has another layout."""
    lines: dict[str, list[str]] = {}
    name = ""
    for line in text.split("\nseed:")[0].splitlines():
        if found := re.fullmatch(rf"# ({'|'.join(FIELDS)}): +(\S.*)", line):
            name = found[1]
            lines[name] = [found[2]]
        elif name and line.startswith("#" + " " * 10):
            lines[name].append(line[1:].strip())
        else:
            name = ""
    if tuple(lines) != FIELDS:
        raise ValueError(f"has {', '.join(lines) or 'nothing'}; expected {', '.join(FIELDS)}, in this order")
    commands = [shlex.split(line) for line in lines["Command"]]
    if not all(command[0] == "defectseg" for command in commands):
        raise ValueError("Command: expected a command of defectseg on each line")
    data, score = DATA.match(lines["Data"][0]), SCORE.match(lines["Score"][0])
    if score is None and lines["Score"][0] != "not measured":
        raise ValueError("Score: expected a name, a score and (95 % interval LOW to HIGH), or 'not measured'")
    return Head(
        commands=tuple(tuple(command[1:]) for command in commands),
        data=" ".join(lines["Data"]),
        time=" ".join(lines["Time"]),
        folder=data and data[1],
        images=data and int(data[2].replace(",", "")),
        figure=score and score[1],
        expected=score and float(score[2]),
        low=score and float(score[3]),
        high=score and float(score[4]),
    )


def score_of(told: dict[str, Any], figure: str | None) -> float:
    """The score that a command told. Without a name, the Kaggle Dice."""
    if figure == "sum of Kaggle and positive Dice":
        return float(told["validated"]["kaggle_dice"] + told["validated"]["positive_dice"])
    return float(told[(figure or "Kaggle Dice").lower().replace(" ", "_")])


def why_not(head: Head, root: Path) -> str | None:
    """The reason why a recipe cannot be run here, or None."""
    if head.folder is not None:
        folder = root / head.folder / "train_images"
        images = len(list(folder.iterdir())) if folder.is_dir() else 0
        if images != head.images:
            return f"{root / head.folder} has {images} of {head.images} images"
    if "GPU" in head.time:
        from defectseg.model.devices import available_devices

        if not any(device.startswith("cuda") for device in available_devices()):
            return "needs a GPU"
    return None


def run(head: Head, root: Path, work: Path, more: list[str]) -> float:
    """Run the commands of a recipe in a new folder; `more` goes to train. The score."""
    work.mkdir(parents=True)
    if head.folder is not None:
        (work / head.folder).mkdir()
        for entry in (root / head.folder).resolve().iterdir():
            if entry.name != SPLIT_NAME:
                (work / head.folder / entry.name).symlink_to(entry)
    for command in head.commands:
        last = command is head.commands[-1]
        words = ["defectseg", *command, *(more if command[0] == "train" else ()), *(["--json"] if last else ())]
        print(f"$ {shlex.join(words)}", file=sys.stderr, flush=True)
        done = subprocess.run(words, cwd=work, stdout=subprocess.PIPE, text=True, encoding="utf-8", check=True)
    return score_of(json.loads(done.stdout), head.figure)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train shipped recipes and compare the scores with those they tell.")
    parser.add_argument("names", nargs="*", metavar="NAME", help="recipes; all if there is none")
    parser.add_argument("--data-root", type=Path, required=True, metavar="DIR", help="folder of the data folders")
    parser.add_argument("--encoder-weights", type=Path, metavar="FILE", help="for recipes that download them")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a change, to try this script")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="folder for the runs; absent. Else they are deleted")
    asked = parser.parse_args()
    recipes = shipped_recipes()
    if unknown := {*asked.names} - {*recipes}:
        parser.error(f"no recipe {', '.join(sorted(unknown))}; there are {', '.join(sorted(recipes))}")
    rows, good = [["recipe", "expected", "found", "", "minutes"]], True
    with tempfile.TemporaryDirectory() as temporary:
        for name in asked.names or sorted(recipes):
            head = read_head(recipes[name].read_text(encoding="utf-8"))
            expected = "not measured" if head.figure is None else f"{head.figure} {head.expected}"
            if reason := why_not(head, asked.data_root):
                rows.append([name, expected, "", f"not run: {reason}", ""])
                continue
            more = [word for change in asked.set for word in ("--set", change)]
            if asked.encoder_weights and load_recipe(name).model.encoder_weights != "none":
                more += ["--encoder-weights", str(asked.encoder_weights.resolve())]
            start_s = time.monotonic()
            try:
                found = run(head, asked.data_root, (asked.keep or Path(temporary)).resolve() / name, more)
            except subprocess.CalledProcessError as error:
                told, verdict, inside = "", f"failed: {shlex.join(error.cmd[:3])} (exit code {error.returncode})", False
            else:
                inside = head.low is None or head.high is None or head.low <= found <= head.high
                limits = "no interval" if head.low is None else f"{head.low} to {head.high}"
                told, verdict = f"{found:.3f}", f"{'inside' if inside else 'OUTSIDE'}: {limits}"
            rows.append([name, expected, told, verdict, f"{(time.monotonic() - start_s) / 60:.1f}"])
            good = good and inside
    print_rows(rows, align_right=False)
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
