#!/usr/bin/env python
"""Lets all readers read mutated files for a while, with limited memory and time: one of the tries of scripts/soak.

Labels of every kind are those of tests/formats/test_import_fuzz.py. A data folder, a recipe, an image, a bundle, a
checkpoint and models for ONNX Runtime and OpenVINO are taken from the folder GIVEN. A reader may refuse a file with a
DefectsegError. Anything else, more than 2.2 GB of memory at the peak, or more than a minute, ends the program with an
error; the files are then in the folder PLACE. Prints the number of files that were read.
Usage: python scripts/fuzz.py GIVEN PLACE SEED [--seconds 20]
"""

import argparse
import contextlib
import hashlib
import importlib.util
import random
import resource
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from defectseg.config import load_recipe
from defectseg.data.folder import open_data_folder
from defectseg.errors import DefectsegError
from defectseg.formats.data_import import import_labels
from defectseg.image.read import decode
from defectseg.model.bundle import load_bundle
from defectseg.runtime.load import load_runtime
from defectseg.train.checkpoint import read_checkpoint

Kind = tuple[dict[str, bytes], Callable[[Path], object]]

MOST_BYTES = 2_200_000_000  # see SECURITY.md
MOST_ADDRESSES_BYTES = 2**34  # libraries reserve many more than they use
LONGEST_S = 60


def corpus() -> Any:
    """The module with small label files of every kind, and with functions that mutate files."""
    path = Path(__file__).resolve().parents[1] / "tests" / "formats" / "test_import_fuzz.py"
    spec = importlib.util.spec_from_file_location("test_import_fuzz", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def kinds_of(given: Path, labels: Any) -> list[Kind]:
    """Files of each kind, by name, and the function that reads them from a folder."""

    def import_all(src: Path) -> None:
        import_labels(src, src.with_name("out"), labels.GOING_ON)

    def kind(read: Callable[[Path], object], *names: str) -> Kind:
        return {Path(name).name: (given / name).read_bytes() for name in names}, read

    kinds: list[Kind] = [
        ({name: one.encode() if isinstance(one, str) else one for name, one in files.items()}, import_all)
        for files in labels.SEEDS.values()
    ]
    picture = min((given / "data" / "train_images").iterdir())
    table, read = kind(open_data_folder, "data/train.csv", "data/classes.txt")
    kinds.append(({**table, f"train_images/{picture.name}": picture.read_bytes()}, read))
    kinds.append(kind(lambda src: load_recipe(str(src / "tiny.yaml"), ()), "tiny.yaml"))
    kinds.append(kind(lambda src: decode(src / picture.name), f"data/train_images/{picture.name}"))
    kinds.append(kind(lambda src: load_bundle(src / "model.safetensors"), "run/model.safetensors"))
    kinds.append(kind(read_checkpoint, "run/last.ckpt"))
    for runtime, *names in (("onnx", "model.onnx"), ("openvino", "model.xml", "model.bin")):
        kinds.append(kind(lambda src, name=names[0], kind=runtime: load_runtime(src / name, "cpu", kind), *names))  # type: ignore[misc]
    return kinds


def peak_bytes() -> int:
    """The most memory that this process has had."""
    lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def main() -> None:
    """Read until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("given", type=Path)
    parser.add_argument("place", type=Path)
    parser.add_argument("seed", type=int)
    parser.add_argument("--seconds", type=float, default=20)
    arguments = parser.parse_args()
    ends_s, place = time.monotonic() + arguments.seconds, arguments.place
    labels = corpus()
    kinds, luck, count = kinds_of(arguments.given, labels), random.Random(arguments.seed), 0
    resource.setrlimit(resource.RLIMIT_AS, (MOST_ADDRESSES_BYTES, MOST_ADDRESSES_BYTES))
    while time.monotonic() < ends_s:
        files, read = luck.choice(kinds)
        mutated = labels.mutated(files, luck)
        if "last.ckpt" in mutated and luck.random() < 0.5:  # with the right checksum it comes further
            whole = mutated["last.ckpt"][:-32]
            mutated["last.ckpt"] = whole + hashlib.sha256(whole).digest()
        labels.write(place / "src", mutated)
        signal.alarm(LONGEST_S)
        with contextlib.suppress(DefectsegError):
            read(place / "src")
        signal.alarm(0)
        if peak_bytes() > MOST_BYTES:
            raise MemoryError(f"{peak_bytes() / 1e9:.1f} GB for the files in {place}")
        shutil.rmtree(place)
        count += 1
    print(count)


if __name__ == "__main__":
    main()
