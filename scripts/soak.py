#!/usr/bin/env python
"""Lets commands go wrong at random for some time, and checks after each fault what docs/reliability.md promises.

Each try runs a real command in a folder of its own, with one fault: a signal at a random time, SIGKILL at a random
system call (strace), a full disk (a small one is mounted where that is allowed, else files are limited), two runs at
once, an input that is replaced, a flipped byte in a model or a checkpoint. Then no file under a final name may be
half-written, and the same command must end with exactly the files of an undisturbed run. Some tries let all readers
read mutated files, see fuzz.py.

Prints a line for each failure, with its seed and the folder that is kept. At the end it prints the counts, and with
--record adds them to the tables of docs/reliability.md. The same seed draws the same faults, but they hit at other
moments. Usage: scripts/soak --minutes N [--seed S] [--only predict,train,...] [--keep DIR] [--record]
"""

import argparse
import dataclasses
import datetime
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from defectseg.errors import DefectsegError
from defectseg.model.info import read_model_info
from defectseg.model.locate import model_identity

ROOT = Path(__file__).resolve().parents[1]
COMMAND = (sys.executable, "-m", "defectseg")
LONGEST_RUN_S = 600
SYSTEM_CALLS = ("write,rename,mkdir,fsync,unlink", "openat")
COMMANDS = ("train", "predict", "tune", "export", "import")
READERS = "hostile files"
FAULTS = ("signal", "kill at a call", "disk full", "two at once", "input replaced", "flipped byte")
RECIPE = """
seed: 3
model:
  {architecture: Unet, encoder: tu-test_resnet, encoder_weights: none, options: {decoder_channels: [32, 16, 16, 8, 8]}}
data: {folds: 4, crop_hw: [64, 64], samples_per_epoch: 16}
optimizer: {encoder_lr: 5.0e-3, decoder_lr: 5.0e-3}
training: {epochs: 3, batch_size: 4, precision: fp32, trackers: []}
"""


class BrokenError(Exception):
    """A promise was not kept."""


@dataclasses.dataclass(frozen=True)
class Job:
    """A command in a folder, PLACE.

    Attributes:
        command: its arguments.
        copies: what is in the folder before -> from where.
        again: the arguments with which it goes on, if others.
        replaced: a file in the folder that may be replaced meanwhile.
        damaged: a file in the folder of which a byte may flip.
    """

    command: str
    copies: dict[str, Path]
    again: str = ""
    replaced: str = ""
    damaged: str = ""

    def fits(self, fault: str) -> bool:
        """Whether one of FAULTS can happen to it."""
        return bool({"input replaced": self.replaced, "flipped byte": self.damaged}.get(fault, True))

    def arguments(self, place: Path) -> list[str]:
        """To begin, or to go on with what has begun."""
        begun = self.again and (place / "run" / "request.json").exists()
        return (self.again if begun else self.command).replace("PLACE", str(place)).split()


def run(arguments: list[str], *, before: tuple[str, ...] = (), limit: int | None = None) -> subprocess.Popen[str]:
    """Start a command, perhaps with a limit on the size of the files that it writes."""

    def restrict() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return subprocess.Popen(
        [*before, *COMMAND, *arguments],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=restrict,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str]:
    """Exit code and output of a command. Raises BrokenError if it hangs, crashes or calls itself a bug."""
    try:
        said = process.communicate(timeout=LONGEST_RUN_S)[0]
    except subprocess.TimeoutExpired:
        process.kill()
        raise BrokenError(f"no end after {LONGEST_RUN_S} s") from None
    code = process.returncode
    if code == 1 or code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS):
        raise BrokenError(f"exit code {code}: {said[-2000:]}")
    return code, said


def content_of(path: Path) -> Any:
    """The content of a file without what tells times or the order of the work."""
    content = path.read_bytes()
    if path.name == "run.json":
        known = json.loads(content)
        return [known.get(key) for key in ("status", "class_names", "images_in_folder")]
    if path.name == "journal.jsonl":
        *lines, unfinished = content.split(b"\n")
        return {json.loads(line)["image"]["ImageId"]: line for line in lines} | ({"": unfinished} if unfinished else {})
    if path.name == "metrics.jsonl":
        entries = [json.loads(line) for line in content.splitlines()]
        return [{key: value for key, value in entry.items() if not key.endswith("_s")} for entry in entries]
    if path.suffix == ".safetensors":
        try:
            model = model_identity(path), read_model_info(path).thresholds.model_dump()
        except DefectsegError as error:
            raise BrokenError(str(error)) from None
        return None if path.name == "best.safetensors" else model  # it is gone when the training has ended
    return None if path.name in ("last.ckpt", "curves.png") else content  # these hold times


def left(place: Path) -> dict[str, Any]:
    """What stands in a folder; of hidden files, only their names."""
    names = {path.relative_to(place): path for path in place.rglob("*") if path.is_file()}
    return {name.as_posix(): None if is_hidden(name) else content_of(path) for name, path in names.items()}


def is_hidden(name: Path) -> bool:
    """Whether a file or a folder of it is hidden."""
    return any(part.startswith(".") for part in name.parts)


def check_partial(place: Path, *allowed: dict[str, Any]) -> None:
    """Raise BrokenError if a file under a final name is not as in one of these folders."""
    for name, content in left(place).items():
        path = Path(name)
        if is_hidden(path) or path.name in ("run.json", "metrics.jsonl"):
            continue
        known = [folder[name] for folder in allowed if name in folder]
        if path.name == "journal.jsonl":
            right = all(key == "" or any(line == one.get(key) for one in known) for key, line in content.items())
        else:
            right = content is None or content in known
        if not right:
            raise BrokenError(f"{name} is half-written or wrong")


class Soak:
    """The folder of all tries, the commands, and what was counted."""

    def __init__(self, folder: Path, luck: random.Random) -> None:
        self.folder, self.luck = folder, luck
        self.tries: Counter[str] = Counter()
        self.survived: Counter[str] = Counter()
        self.failures: list[str] = []
        self.may_mount = not subprocess.run(["mount", "-t", "tmpfs", "none", "/mnt"], capture_output=True).returncode
        self.may_trace = not subprocess.run(["strace", "-o", "/dev/null", "true"], capture_output=True).returncode
        self.jobs = self._jobs()
        self.whole: dict[str, dict[str, Any]] = {}
        self.lasts_s: dict[str, float] = {}
        self.calls: dict[tuple[str, str], int] = {}

    def _jobs(self) -> dict[str, Job]:
        """Make the inputs, and the commands."""
        given, size = self.folder / "given", "--size 64x128"
        longer = "--set training.epochs=16 --set data.samples_per_epoch=48"  # then it finds some of the defects
        given.mkdir()
        (given / "tiny.yaml").write_text(RECIPE)
        for command in (
            f"data synthesize --images 24 {size} --out {given}/data",
            f"train {given}/tiny.yaml --data {given}/data --out {given}/run {longer}",
            f"export {given}/run --format openvino {size} --out {given}/model.xml",
            f"export {given}/run --format onnx {size} --out {given}/model.onnx",
            f"data export coco {given}/data --out {given}/coco",
        ):
            code, said = finish(run(command.split()))
            if code:
                raise SystemExit(f"{command}: {said}")
        image = sorted((given / "data" / "train_images").iterdir())[3].name
        model = {name: given / name for name in ("model.xml", "model.bin")}
        train, resume = f"train {given}/tiny.yaml --data {given}/data --out PLACE/run", "train --resume --out PLACE/run"
        export = f"export PLACE/model.safetensors --format openvino {size} --overwrite --out PLACE/new.xml"
        predict, tune = "predict PLACE/model.xml PLACE/in --out PLACE/out", "tune PLACE/model.xml --subset all --data"
        images, bundle = given / "data" / "train_images", {"model.safetensors": given / "run" / "model.safetensors"}
        importing, coco = "data import PLACE/coco --out PLACE/out", {"coco": given / "coco"}
        return {
            "train": Job(train, {}, again=resume, damaged="run/last.ckpt"),
            "predict": Job(predict, {"in": images, **model}, replaced=f"in/{image}", damaged="model.bin"),
            "tune": Job(f"{tune} {given}/data", model, damaged="model.bin"),
            "export": Job(export, bundle, damaged="model.safetensors"),
            "import": Job(importing, coco, replaced=f"coco/images/{image}"),
        }

    def place(self, job: Job) -> Path:
        """A folder in which a command will run; always the same name, since files name it."""
        place = self.folder / "try"
        place.mkdir()
        for name, source in job.copies.items():
            shutil.copytree(source, place / name) if source.is_dir() else shutil.copy2(source, place / name)
        return place

    def undisturbed(self, name: str) -> dict[str, Any]:
        """What a command leaves if nothing goes wrong."""
        if name not in self.whole:
            place = self.place(self.jobs[name])
            begun = time.monotonic()
            code, said = finish(run(self.jobs[name].arguments(place)))
            if code not in (0, 3):
                raise BrokenError(f"undisturbed: exit code {code}: {said}")
            self.lasts_s[name], self.whole[name] = time.monotonic() - begun, left(place)
            shutil.rmtree(place)
        return self.whole[name]

    def count_calls(self, name: str, calls: str) -> int:
        """How many of these system calls one thread of an undisturbed command makes."""
        if (name, calls) not in self.calls:
            kept = (self.folder / "try").rename(self.folder / "kept")
            place, listed = self.place(self.jobs[name]), self.folder / "calls"
            trace = ("strace", "-f", "-qq", "-o", str(listed), "-e", f"trace={calls}")
            finish(run(self.jobs[name].arguments(place), before=trace))
            threads = (line.split()[0] for line in listed.read_text(errors="replace").splitlines())
            self.calls[name, calls] = max(Counter(threads).values())
            shutil.rmtree(place)
            kept.rename(place)
        return self.calls[name, calls]

    def attempt(self, name: str, fault: str) -> None:
        """One try. Raises BrokenError."""
        job, whole = self.jobs[name], self.undisturbed(name)
        place = self.place(job)
        before = left(place)
        other = getattr(self, "_" + fault.replace(" ", "_"))(name, job, place)
        check_partial(place, before, whole, other or {})
        code, said = finish(run(job.arguments(place)))
        if code not in (0, 2, 3):
            raise BrokenError(f"the next run: exit code {code}: {said}")
        ends, whole = left(place), other or whole
        if wrong := [key for key in ends.keys() | whole.keys() if ends.get(key) != whole.get(key)]:
            raise BrokenError(f"the next run (exit code {code}) left other files: {', '.join(sorted(wrong))}\n{said}")

    def _signal(self, name: str, job: Job, place: Path) -> None:
        number = self.luck.choice((signal.SIGKILL, signal.SIGTERM, signal.SIGINT))
        process = run(job.arguments(place))
        time.sleep(self.luck.uniform(0, 1.1) * self.lasts_s[name])
        process.send_signal(number)
        code, said = finish(process)
        if code not in (0, 3, 130, -number):
            raise BrokenError(f"exit code {code} after {number.name}: {said}")

    def _kill_at_a_call(self, name: str, job: Job, place: Path) -> None:
        if not self.may_trace:
            return self._signal(name, job, place)
        calls = self.luck.choice(SYSTEM_CALLS)
        most = self.count_calls(name, calls)
        count = self.luck.randrange(most // 2, most)  # Python and the libraries come first
        inject = ("-e", f"trace={calls}", "-e", f"inject={calls}:signal=KILL:when={count}")
        finish(run(job.arguments(place), before=("strace", "-f", "-qq", "-o", "/dev/null", *inject)))
        return None

    def _disk_full(self, name: str, job: Job, place: Path) -> None:
        size = int(2 ** self.luck.uniform(12, 22))
        if self.may_mount:
            inputs, spared = self.folder / "inputs", self.folder / "spared"
            shutil.copytree(place, inputs)
            of_inputs = sum(path.stat().st_size + 4096 for path in inputs.rglob("*"))
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={of_inputs + size}", "none", place], check=True)
            shutil.copytree(inputs, place, dirs_exist_ok=True)
            try:
                code, said = finish(run(job.arguments(place)))
            finally:
                shutil.copytree(place, spared, symlinks=True)
                subprocess.run(["umount", place], check=True)
                shutil.rmtree(place)
                spared.rename(place)
        else:
            code, said = finish(run(job.arguments(place), limit=size))
        if code not in (0, 3, 4) or (code == 4 and "no space" not in said and "File too large" not in said):
            raise BrokenError(f"exit code {code} with a disk of {size} bytes: {said}")

    def _two_at_once(self, name: str, job: Job, place: Path) -> None:
        first = run(job.arguments(place))
        time.sleep(self.luck.uniform(0, 1) * self.lasts_s[name])
        second = run(job.arguments(place))
        codes = sorted((finish(first)[0], finish(second)[0]))
        if codes[0] not in (0, 3) or codes[1] not in (0, 2, 3, 4):
            raise BrokenError(f"exit codes {codes}")

    def _input_replaced(self, name: str, job: Job, place: Path) -> dict[str, Any]:
        target = place / job.replaced
        new = next(path for path in sorted(target.parent.iterdir()) if path != target)
        process = run(job.arguments(place))
        time.sleep(self.luck.uniform(0, 1) * self.lasts_s[name])
        shutil.copy2(new, place / ".new")
        (place / ".new").replace(target)
        finish(process)
        if name == "import":  # the data folder is of the old image or of the new one, and is not made again
            return left(place)
        kept = place.rename(self.folder / "kept")
        again = self.place(job)
        shutil.copy2(new, again / job.replaced)
        finish(run(job.arguments(again)))
        whole = left(again)
        shutil.rmtree(again)
        kept.rename(place)
        return whole

    def _flipped_byte(self, name: str, job: Job, place: Path) -> None:
        path = place / job.damaged
        if name == "train":
            process = run(job.arguments(place))
            while not path.exists() and process.poll() is None:
                time.sleep(0.05)
            process.send_signal(signal.SIGTERM)
            finish(process)
            if (place / "run" / "model.safetensors").exists():
                return
        content = bytearray(path.read_bytes())
        # The text at the beginning of a bundle also holds thresholds, which may be changed.
        at = self.luck.randrange(len(content) // 2 if path.suffix == ".safetensors" else 0, len(content))
        content[at] ^= 1 << self.luck.randrange(8)
        good = path.rename(path.with_name(".good"))
        path.write_bytes(content)
        code, said = finish(run(job.arguments(place)))
        if code != 4:
            raise BrokenError(f"exit code {code} with a byte of {path.name} changed at {at}: {said}")
        good.replace(path)

    def read_hostile_files(self, seed: int, keep: Path) -> int:
        """Read mutated files in a process of its own; the number of files. Raises BrokenError."""
        fuzz, place = ROOT / "scripts" / "fuzz.py", keep / f"read-{seed}"
        command = (sys.executable, str(fuzz), str(self.folder / "given"), str(place), str(seed))
        code, said = finish(subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
        if code:
            raise BrokenError(f"exit code {code}: {said[-2000:]}")
        return int(said.split()[-1])


def record(soak: Soak, minutes: float) -> None:
    """Add the counts to the tables of docs/reliability.md."""
    path = ROOT / "docs" / "reliability.md"
    lines = path.read_text(encoding="utf-8").splitlines()
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, text=True, capture_output=True).stdout
    first = [datetime.datetime.now(datetime.UTC).date().isoformat(), commit.strip(), f"{minutes:g}"]
    for names in ((*COMMANDS, READERS), FAULTS):
        heading = f"| date | commit | minutes | {' | '.join(names)} |"
        end = lines.index(heading)
        while end < len(lines) and lines[end].startswith("|"):
            end += 1
        counts = [f"{soak.survived[name]:,} of {soak.tries[name]:,}" for name in names]
        lines.insert(end, f"| {' | '.join([*first, *counts])} |")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def try_once(soak: Soak, seed: int, only: list[str], keep: Path) -> None:
    """Draw a command and a fault, try, and count."""
    luck = soak.luck = random.Random(seed)
    name = luck.choice(only)
    job = soak.jobs.get(name)
    fault = luck.choice([one for one in FAULTS if job.fits(one)]) if job else ""
    tries, broken = 1, ""
    try:
        if job is None:
            tries = soak.read_hostile_files(seed, keep)
        else:
            soak.attempt(name, fault)
    except BrokenError as error:
        broken = str(error)
    for key in filter(None, (name, fault)):
        soak.tries[key] += tries
        soak.survived[key] += tries if not broken else 0
    place = soak.folder / "try"
    if broken:
        if place.exists():
            shutil.move(place, keep / f"try-{seed}")
        soak.failures.append(f"FAILED: {name}, {fault}, seed {seed}, kept in {keep}: {broken}")
        print(soak.failures[-1], flush=True)
    for folder in ("try", "inputs", "spared", "kept"):
        shutil.rmtree(soak.folder / folder, ignore_errors=True)


def main() -> None:
    """Try until the time is up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5)
    parser.add_argument("--seed", type=int, default=None, help="default: another one each time")
    parser.add_argument("--only", default=",".join((*COMMANDS, READERS)), help="some of these, separated by commas")
    parser.add_argument("--keep", type=Path, default=None, help="where the folders of failed tries go")
    parser.add_argument("--record", action="store_true", help="add the counts to docs/reliability.md")
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["PYTHONPATH"] = str(ROOT)
    mounts = ("unshare", "--user", "--map-root-user", "--mount")  # small disks, where that is allowed
    if "SOAK_MOUNTS" not in os.environ and not subprocess.run([*mounts, "true"], capture_output=True).returncode:
        os.environ["SOAK_MOUNTS"] = "1"
        os.execvp(mounts[0], [*mounts, sys.executable, *sys.argv])
    seed = random.randrange(10**6) if arguments.seed is None else arguments.seed
    keep = arguments.keep or Path(tempfile.mkdtemp(prefix="defectseg-soak-failed-"))
    with tempfile.TemporaryDirectory(prefix="defectseg-soak-") as folder:
        os.environ["DEFECTSEG_CACHE_DIR"] = f"{folder}/cache"
        soak = Soak(Path(folder), random.Random(seed))
        print(f"seed {seed}; small disks: {soak.may_mount}; strace: {soak.may_trace}", flush=True)
        ends_s = time.monotonic() + 60 * arguments.minutes
        while time.monotonic() < ends_s:
            try_once(soak, seed, arguments.only.split(","), keep)
            seed += 1
    for name, tries in sorted(soak.tries.items()):
        print(f"{name}: {soak.survived[name]} of {tries} survived")
    if arguments.record:
        record(soak, arguments.minutes)
    sys.exit(bool(soak.failures))


if __name__ == "__main__":
    main()
