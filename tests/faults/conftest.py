"""Fixtures of the fault tests: commands in which something goes wrong, and what they leave."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

import defectseg

collect_ignore_glob = [] if sys.platform == "linux" else ["test_*.py"]  # they need /proc, and forks of large processes

INJECT = Path(__file__).with_name("inject.py")
WRITING = ("mkdir", "create", "write", "fsync", "rename")
# With its own namespace of mounts, the process may mount small disks. Not every container allows it.
OWN_MOUNTS = ("unshare", "--user", "--map-root-user", "--mount")


@dataclass(frozen=True)
class Done:
    """How a command ended.

    Attributes:
        code: exit code; negative: the signal that killed it; None: it stopped itself and can go on.
        events: number of the events that were counted.
        pid: its process.
        said: stdout and stderr together.
    """

    code: int | None
    events: int
    pid: int
    said: str


class Commands:
    """Runs commands in forks of a process that has loaded the libraries; see inject.py."""

    def __init__(self, kind: str) -> None:
        self.warm: set[str] = set()
        trial = [*OWN_MOUNTS, "mount", "-t", "tmpfs", "none", "/mnt"]
        self.may_mount = bool(shutil.which("unshare")) and not subprocess.run(trial, capture_output=True).returncode
        self._server = subprocess.Popen(
            [*(OWN_MOUNTS if self.may_mount else ()), sys.executable, str(INJECT), kind],
            env={**os.environ, "PYTHONPATH": str(Path(defectseg.__file__).parents[1])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
        )

    def _ask(self, **task: Any) -> Done:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        print(json.dumps(task), file=self._server.stdin, flush=True)
        return Done(**json.loads(self._server.stdout.readline()))

    def __call__(self, *argv: object, grey: bool = False, **fault: Any) -> Done:
        """Run a command. A fault has `under`, a folder; `at`; `events`; and what happens, as inject.py says."""
        fault = {"under": "/dev/null", "events": WRITING, **fault}
        fault["under"] = str(fault["under"])
        return self._ask(argv=[str(one) for one in argv], grey=grey, fault=fault)

    def warm_up(self, *argv: object, grey: bool = False) -> None:
        """Run a command once where all others are forked from, which makes them quick. It must leave no threads."""
        done = self._ask(argv=[str(one) for one in argv], grey=grey, warm_up=True)
        assert done.code in (0, 3), done.said

    def go_on(self, stopped: Done) -> Done:
        """Let a command go on that has stopped itself."""
        return self._ask(go_on=stopped.pid)

    def mount(self, folder: Path, options: str) -> None:
        """Mount a small disk in memory, or with "remount" give it other options. Only the commands see it."""
        enter = ["nsenter", f"--target={self._server.pid}", "--user", "--mount", "--preserve-credentials"]
        subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", options, "none", str(folder)], check=True)

    def seen(self, folder: Path) -> Path:
        """A folder as the commands see it, with the disks that are mounted in it."""
        return Path(f"/proc/{self._server.pid}/root{folder}")

    def close(self) -> None:
        """End the process."""
        self._server.communicate(timeout=60)


@pytest.fixture(scope="session")
def commands() -> Iterator[Commands]:
    """Commands without torch."""
    made = Commands("light")
    yield made
    made.close()


@pytest.fixture(scope="session")
def torch_commands() -> Iterator[Commands]:
    """Commands with torch."""
    made = Commands("torch")
    yield made
    made.close()


STATUSES = ("running", "merging", "interrupted", "failed", "finished")  # of run.json
# What of run.json does not tell times, or how many runs it took.
LASTING = ("status", "key", "class_names", "images_in_folder")


def content_of(path: Path) -> Any:
    """The content of a file, without what times and the order of the processing change."""
    content = path.read_bytes()
    if path.name == "health.json":
        return json.loads(content)["state"]
    if path.name == "run.json":
        run = json.loads(content)
        return {key: run.get(key) for key in LASTING}
    if path.name == "journal.jsonl":
        # A later record of an image replaces an earlier one: unreadable images are tried again.
        *lines, unfinished = content.split(b"\n")
        return {json.loads(line)["image"]["ImageId"]: line for line in lines} | ({"": unfinished} if unfinished else {})
    return content


@dataclass(frozen=True)
class Work:
    """A command and its undisturbed result.

    Attributes:
        name: for messages.
        arguments: the command line. PLACE stands for a new folder, in which the command writes.
        folder: where these folders are made.
        commands: see the class.
        inputs: what the command reads.
        prepare: makes what is in the folder before.
        grey: the network is a GreyRuntime.
    """

    name: str
    arguments: str
    folder: Path
    commands: Commands
    inputs: Path
    prepare: Callable[[Path], object] = lambda place: None
    grey: bool = True

    def place(self, name: object) -> Path:
        """A new folder with nothing in it but what the command needs there."""
        place = self.folder / str(name)
        place.mkdir(parents=True)
        self.prepare(place)
        return place

    def run(self, place: Path, **fault: Any) -> Done:
        """Run the command; the events are those in its place, unless the fault names another folder."""
        arguments = self.arguments.replace("PLACE", str(place)).split()
        return self.commands(*arguments, grey=self.grey, **{"under": place, **fault})

    def left(self, place: Path) -> dict[str, Any]:
        """Every file and folder in a place, hidden ones too, with the content."""
        return {
            path.relative_to(place).as_posix(): content_of(path) if path.is_file() else None
            for path in sorted(place.rglob("*"))
        }

    def undisturbed(self) -> tuple[Done, dict[str, Any]]:
        """How the command ends where nothing goes wrong, and what it leaves."""
        place = self.place("undisturbed")
        done = self.run(place)
        assert done.code in (0, 3), done.said
        return done, self.left(place)

    def check_partial(self, place: Path, before: dict[str, Any], whole: dict[str, Any], told: str) -> None:
        """Every file is as before or as in the end, none half-written; no row is doubled or made up."""
        for path in place.rglob("*"):
            name = path.relative_to(place).as_posix()
            if not path.is_file() or any(part.startswith(".") for part in name.split("/")):
                continue
            assert name in whole or name in before, f"{told}: {name} does not belong there"
            if path.name == "journal.jsonl":
                lines = path.read_bytes().split(b"\n")[:-1]
                assert len(lines) == len(set(lines)), f"{told}: doubled rows"
                assert set(lines) <= {*whole[name].values(), *before.get(name, {}).values()}, f"{told}: wrong rows"
            elif path.name == "run.json":
                assert json.loads(path.read_bytes())["status"] in STATUSES, told
            elif self.name == "watch" and path.suffix == ".csv":  # written now and then
                assert set(path.read_bytes().split(b"\n")) <= set(whole[name].split(b"\n")), told
            elif self.name == "watch" and path.name == "index.html":  # written with the tables
                assert path.read_text().startswith("<!doctype"), told
                assert path.read_text().endswith("</html>\n"), told
            elif path.name == "health.json":
                assert json.loads(path.read_bytes())["heartbeat"], told
            else:
                content = path.read_bytes()
                assert content in (whole.get(name), before.get(name)), f"{told}: {name} is half-written"

    def check_next(self, place: Path, undisturbed: Done, whole: dict[str, Any], told: str) -> None:
        """The same command again ends with exactly the files of an undisturbed one."""
        before = self.left(place)
        done = self.run(place)
        if done.code == 2:  # the result was whole, and is not replaced unasked
            assert before == whole, f"{told}: {done.said}"
        else:
            assert (done.code, self.left(place)) == (undisturbed.code, whole), f"{told}: {done.said}"


STEEL, PIT, CRACK, BOTH = 60, 120, 160, 200  # grey levels, as GreyRuntime reads them


def write_images(folder: Path, count: int = 3) -> Path:
    """Sheets of 16 x 24 px: a pit, a crack, both at once, and nothing."""
    folder.mkdir(parents=True)
    for number in range(count):
        sheet = np.full((16, 24), STEEL, np.uint8)
        sheet[-1] += 10
        sheet[2 : 6 + number, 3:9] = (PIT, CRACK, BOTH, STEEL)[number]
        assert cv2.imwrite(str(folder / f"{number}.png"), sheet)
    return folder


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Three sheets, and one whose file is cut short."""
    folder = write_images(tmp_path / "in")
    (folder / "3.png").write_bytes((folder / "2.png").read_bytes()[:-20])
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A data folder of four sheets, one of them without a label."""
    folder = tmp_path / "data"
    write_images(folder / "train_images", 4)
    with (folder / "train.csv").open("w", newline="") as handle:
        csv.writer(handle).writerows(
            [
                ["ImageId", "ClassId", "EncodedPixels"],
                *([f"{number}.png", 1 + number % 2, "51 6"] for number in range(3)),
            ]
        )
    (folder / "classes.txt").write_text("pits\ncracks\n")
    (folder / "split.csv").write_text("ImageId,fold\n" + "".join(f"{number}.png,{number % 2}\n" for number in range(4)))
    return folder


@pytest.fixture
def work(
    tmp_path: Path, images: Path, data: Path, commands: Commands, write_model: Callable[..., Path]
) -> Callable[[str], Work]:
    """Makes a Work by its name."""
    model = write_model(tmp_path / "model.safetensors", fold=0)

    def predict_on_two(place: Path) -> None:
        earlier = tmp_path / "earlier"
        if not earlier.exists():
            some = [images / "0.png", images / "2.png"]
            assert commands("predict", model, *some, "--out", earlier, "--overlays=none", grey=True).code == 0
        shutil.copytree(earlier, place / "out")

    shards = [tmp_path / "shards" / str(index) for index in (1, 2, 3)]

    def make(name: str) -> Work:
        nothing, source = Work.prepare, tmp_path / "coco"
        for index, shard in enumerate(shards if name.startswith("merge") else (), start=1):
            assert commands("predict", model, images, "--out", shard, f"--shard={index}/3", grey=True).code in (0, 3)
        if name.startswith("import"):
            assert commands("data", "export", "coco", data, "--out", source).code == 0
            shutil.make_archive(str(tmp_path / "coco"), "zip", source)
        kinds: dict[str, tuple[str, Path, Callable[[Path], object]]] = {
            "predict": (f"predict {model} {images} --out PLACE/out", images, nothing),
            "watch": (f"watch {model} {images} --out PLACE/out", images, nothing),
            "predict over": (f"predict {model} {images} --out PLACE/out --overwrite", images, predict_on_two),
            "merge": (f"merge {' '.join(map(str, shards))} --out PLACE/out", shards[0].parent, nothing),
            "merge over": (
                f"merge {' '.join(map(str, shards))} --out PLACE/out --overwrite",
                shards[0].parent,
                predict_on_two,
            ),
            "import": (f"data import {source} --out PLACE/out", source, nothing),
            "import into": (
                f"data import {source}.zip --out PLACE",
                tmp_path / "coco.zip",
                nothing,
            ),
            "export": (f"data export labelme {data} --out PLACE/out", data, nothing),
            "evaluate": (f"evaluate {model} --data {data} --subset all --out PLACE/out --overwrite", data, nothing),
            "tune": (
                f"tune PLACE/model.safetensors --data {data} --subset all --folds 2",
                data,
                lambda place: shutil.copy(model, place),
            ),
        }
        arguments, inputs, prepare = kinds[name]
        made = Work(name, arguments, tmp_path / "places", commands, inputs, prepare)
        if name not in commands.warm:
            commands.warm.add(name)
            commands.warm_up(*arguments.replace("PLACE", str(made.place("warm"))).split(), grey=True)
        return made

    return make
