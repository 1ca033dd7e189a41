import errno
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.errors import DataError, ModelError, OutputExistsError, ResourceError, UsageError
from defectseg.files import folder_lock, resource_errors, write_bytes
from defectseg.image.find import find_images
from defectseg.predict import camera, days, health, journal, watch
from defectseg.predict.output import OutputFolder, read_results
from defectseg.predict.predict import Loaded, load, predict
from defectseg.predict.tables import OutputChoice, Record

STEEL, PIT = 60, 120  # grey levels, as GreyRuntime reads them
Scenario = Callable[[], Iterator[Any]]
NOON = datetime(2026, 3, 4, 12).astimezone()
DAY, DAY_BEFORE = "2026-03-04", "2026-03-03"


def content_of(*, pit: bool = False, suffix: str = ".png") -> bytes:
    sheet = np.full((16, 24), STEEL, np.uint8)
    sheet[-1] += 10
    if pit:
        sheet[2:6, 3:9] = PIT
    return cv2.imencode(suffix, sheet)[1].tobytes()


def put(path: Path, content: bytes, at: datetime = NOON) -> None:
    """Write a file as a careful camera does: under another name first."""
    hidden = path.with_name(".new")
    write_bytes(hidden, content)
    os.utime(hidden, (at.timestamp(), at.timestamp()))
    hidden.replace(path)


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for module, name, value in (
        *((camera, "POLL_S", 0.005), (camera, "STEADY_S", 0.0), (camera, "BROKEN_S", 0.1), (camera, "REST", 0)),
        *((days, "TABLES_S", 0.05), (health, "WRITE_S", 0.02), (watch, "FULL_S", 0.005), (watch, "NOTICE_S", 0.005)),
    ):
        monkeypatch.setattr(module, name, value)


@pytest.fixture
def runtime(grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    made = grey_runtime(parallel=2)
    monkeypatch.setattr("defectseg.predict.predict.load_runtime", lambda *_, **__: (made, made.info))
    return made


@pytest.fixture
def model(tmp_path: Path, write_model: Callable[..., Path]) -> Path:
    return write_model(tmp_path / "model.safetensors")


@pytest.fixture
def loaded(model: Path, runtime: Any) -> Loaded:
    nothing: dict[str, Any] = dict.fromkeys(("classes", "workers", "tta", "bit_depth"))
    return load(model, device="auto", runtime="auto", **nothing)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def follow(loaded: Loaded, folder: Path, out: Path) -> Callable[..., dict[str, Any]]:
    """Watches while a scenario goes on, which is asked for its next step again and again, and stops at its end."""

    def run(scenario: Scenario, **options: Any) -> dict[str, Any]:
        steps, end_s = scenario(), time.monotonic() + 30
        done = False

        def stopped() -> bool:
            nonlocal done
            assert time.monotonic() < end_s, "the scenario waits in vain"
            done = done or next(steps, "end") == "end"
            return done

        choice = options.pop("choice", OutputChoice())
        return watch.watch(loaded, folder, out, choice, stopped=stopped, **options)

    return run


def records(out: Path, day: str = DAY) -> list[tuple[str, str]]:
    """ImageId and status of each line of the journal of a day, in order."""
    path = out / day / "journal.jsonl"
    images = [json.loads(line)["image"] for line in path.read_text().splitlines()] if path.exists() else []
    return [(image["ImageId"], image["status"]) for image in images]


def until(condition: Callable[[], object]) -> Iterator[Any]:
    while not condition():
        yield


def told(out: Path) -> dict[str, Any]:
    path = out / "health.json"
    return dict(json.loads(path.read_text())) if path.exists() else {"state": ""}


Follow = Callable[..., dict[str, Any]]


def test_images_are_handled_as_they_come_and_the_result_is_that_of_predict(
    follow: Follow, folder: Path, out: Path, model: Path
) -> None:
    def scenario() -> Iterator[Any]:
        for number in range(3):
            put(folder / f"{number}.png", content_of(pit=number == 1))
            yield from until(lambda number=number: len(records(out)) > number)  # type: ignore[misc]  # one alone, too
            assert (out / DAY / "overlays" / f"{number}.jpg").exists()
        (folder / "sub").mkdir()
        for number in range(3, 40):
            put(folder / "sub" / f"{number:02}.png", content_of(pit=True))
        yield from until(lambda: len(records(out)) == 40)

    ended = follow(scenario)
    assert (ended["processed"], ended["with_defect"], ended["unreadable"], ended["backlog"]) == (40, 38, 0, 0)
    assert (ended["state"], told(out)) == ("stopped", {**ended, "heartbeat": told(out)["heartbeat"]})
    predict(model, find_images([folder]), out.with_name("batch"))
    batch = sorted(out.with_name("batch").rglob("*.*"))
    assert [path.relative_to(out.with_name("batch")) for path in batch] == [
        path.relative_to(out / DAY) for path in sorted((out / DAY).rglob("*.*"))
    ]
    for path in batch:
        if path.name not in ("journal.jsonl", "run.json"):
            assert path.read_bytes() == (out / DAY / path.relative_to(out.with_name("batch"))).read_bytes(), path
    assert {record.image_id for record in read_results(out / DAY)[2]} == {one[0] for one in records(out)}
    assert predict(model, find_images([folder]), out / DAY)["already_done"] == 40


def test_an_image_is_handled_once_also_after_a_restart_and_a_new_version_replaces_it(
    follow: Follow, folder: Path, out: Path, runtime: Any
) -> None:
    put(folder / "a.png", content_of())
    put(folder / "b.png", content_of())
    follow(lambda: until(lambda: len(records(out)) == 2))
    waits = iter(range(30))
    follow(lambda: until(lambda: next(waits, None) is None))
    assert len(runtime.calls) == 2

    def scenario() -> Iterator[Any]:
        put(folder / "a.png", content_of(pit=True), NOON + timedelta(minutes=1))
        yield from until(lambda: len(records(out)) == 3)

    follow(scenario)
    assert len(runtime.calls) == 3
    assert [(one.image_id, one.status) for one in read_results(out / DAY)[2]] == [
        ("a.png", "defect"),
        ("b.png", "clean"),
    ]


def test_a_half_written_file_is_waited_for_and_one_that_stays_broken_is_unreadable(
    follow: Follow, folder: Path, out: Path
) -> None:
    whole = content_of()

    def scenario() -> Iterator[Any]:
        (folder / "slow.png").touch()
        for end in range(0, len(whole) + 1, 9):
            (folder / "slow.png").write_bytes(whole[:end])
            os.utime(folder / "slow.png", (NOON.timestamp(), NOON.timestamp()))
            yield from iter(range(4))
            assert records(out) == []
        (folder / "slow.png").write_bytes(whole)
        os.utime(folder / "slow.png", (NOON.timestamp(), NOON.timestamp()))
        yield from until(lambda: records(out))
        assert records(out) == [("slow.png", "clean")]
        put(folder / "broken.png", whole[:-9])
        yield from until(lambda: len(records(out)) == 2)

    ended = follow(scenario)
    assert records(out)[1] == ("broken.png", "unreadable")
    assert "broken.png" in (out / DAY / "errors.csv").read_text()
    assert (ended["processed"], ended["unreadable"]) == (1, 1)
    assert "broken.png" in ended["last_error"]["message"]


def test_a_disk_that_is_full_is_waited_for_and_nothing_is_lost(
    follow: Follow, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    full = False
    real = OutputFolder.write

    def write(self: OutputFolder, record: Record, pictures: Any) -> None:
        with resource_errors(self.root):
            if full:
                raise OSError(errno.ENOSPC, "")
        real(self, record, pictures)

    monkeypatch.setattr(OutputFolder, "write", write)

    def scenario() -> Iterator[Any]:
        nonlocal full
        put(folder / "0.png", content_of())
        yield from until(lambda: records(out))
        full = True
        for number in range(1, 30):
            put(folder / f"{number}.png", content_of())
        yield from until(lambda: told(out)["state"] == "waiting for room on the disk")
        yield from iter(range(10))
        assert len(records(out)) == 1
        full = False
        yield from until(lambda: len(records(out)) == 30)
        yield from until(lambda: told(out)["state"] == "running")
        full = True
        put(folder / "last.png", content_of())
        yield from until(lambda: told(out)["state"] == "waiting for room on the disk")

    with pytest.raises(ResourceError, match="no space left"):
        follow(scenario)
    assert sorted(records(out)) == sorted((f"{number}.png", "clean") for number in range(30))
    assert caplog.text.count("no space left") <= 5, "told once a minute for each thing that waits"
    assert told(out)["state"] == "failed"
    full = False
    follow(lambda: until(lambda: len(records(out)) == 31))


def test_a_folder_that_is_away_is_waited_for(follow: Follow, folder: Path, out: Path) -> None:
    def scenario() -> Iterator[Any]:
        put(folder / "a.png", content_of())
        yield from until(lambda: records(out))
        folder.rename(folder.with_name("away"))
        yield from until(lambda: told(out)["state"] == "waiting for the folder")
        assert "No such file" in told(out)["last_error"]["message"]
        put(folder.with_name("away") / "b.png", content_of())
        folder.with_name("away").rename(folder)
        yield from until(lambda: len(records(out)) == 2)
        yield from until(lambda: told(out)["state"] == "running")

    follow(scenario)
    assert records(out) == [("a.png", "clean"), ("b.png", "clean")]


def test_results_are_sorted_by_the_local_date_of_the_files_time(
    follow: Follow, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(days, "IDLE_S", 0.05)
    midnight = datetime(2026, 3, 4).astimezone()

    def status(day: str) -> str:
        return str(json.loads((out / day / "run.json").read_text())["status"])

    def scenario() -> Iterator[Any]:
        put(folder / "late.png", content_of(), midnight - timedelta(milliseconds=1))
        put(folder / "early.png", content_of(pit=True), midnight)
        yield from until(lambda: records(out, DAY_BEFORE) and records(out))
        yield from until(lambda: status(DAY) == status(DAY_BEFORE) == "finished")  # idle, and not today
        put(folder / "late2.png", content_of(), midnight - timedelta(hours=1))
        put(folder / "odd.png", content_of(), datetime(2101, 1, 1).astimezone())
        yield from until(lambda: len(records(out, DAY_BEFORE)) == 2 and records(out, "2101-01-01"))

    follow(scenario)
    assert records(out) == [("early.png", "defect")]
    assert records(out, DAY_BEFORE) == [("late.png", "clean"), ("late2.png", "clean")]
    counts = json.loads((out / DAY_BEFORE / "run.json").read_text())["images_in_folder"]
    assert counts == {"defect": 0, "clean": 2, "blank": 0, "unreadable": 0}
    assert status(DAY_BEFORE) == "finished"


def test_tables_are_written_while_it_runs_but_not_for_each_image(
    follow: Follow, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    real = OutputFolder.finish

    def finish(self: OutputFolder, run: dict[str, Any]) -> dict[str, Any]:
        written.append(len(records(out)))
        return real(self, run)

    monkeypatch.setattr(OutputFolder, "finish", finish)

    def rows() -> int:
        return len((out / DAY / "images.csv").read_text().splitlines()) - 1

    def scenario() -> Iterator[Any]:
        put(folder / "first.png", content_of())
        yield from until(lambda: (out / DAY / "images.csv").exists())
        monkeypatch.setattr(days, "TABLES_S", 60.0)
        for number in range(20):
            put(folder / f"{number}.png", content_of())
            yield from until(lambda number=number: len(records(out)) > number + 1)  # type: ignore[misc]

    follow(scenario)
    assert rows() == 21
    assert 2 <= len(written) <= 3, "when it began, perhaps once more, and at the end"


def test_a_day_that_was_left_without_tables_gets_them_by_the_next_start(
    follow: Follow, folder: Path, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(folder / "a.png", content_of())
    with monkeypatch.context() as patched:
        patched.setattr(days.Days, "finish", lambda self: None)  # as if it were killed
        patched.setattr(days.Days, "tend", lambda self: None)
        follow(lambda: until(lambda: records(out)))
    assert not (out / DAY / "images.csv").exists()
    follow(lambda: until(lambda: (out / DAY / "images.csv").exists()))
    assert [one.image_id for one in read_results(out / DAY)[2]] == ["a.png"]


def test_what_is_done_is_known_from_the_days_of_the_files_alone(
    follow: Follow, folder: Path, out: Path, runtime: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in range(1, 9):
        put(folder / f"{day}.png", content_of(), datetime(2026, 1, day).astimezone())
    follow(lambda: until(lambda: len(runtime.calls) == 8))
    for day in range(2, 9):
        (folder / f"{day}.png").unlink()
    opened: list[str] = []
    real = journal.Journal.__init__

    def note(self: journal.Journal, path: Path, *, read_only: bool = False) -> None:
        opened.append(path.parent.name)
        real(self, path, read_only=read_only)

    monkeypatch.setattr(journal.Journal, "__init__", note)
    waits = iter(range(30))
    follow(lambda: until(lambda: next(waits, None) is None))
    assert (opened, len(runtime.calls)) == (["2026-01-01"], 8)


def test_pictures_of_one_name_keep_apart_whenever_they_come(follow: Follow, folder: Path, out: Path) -> None:
    def scenario() -> Iterator[Any]:
        for number, name in enumerate(["a.png", "b.png", "a.jpg", "A.bmp"]):
            put(folder / name, content_of(pit=name == "a.jpg", suffix=name[-4:]))
            yield from until(lambda number=number: len(records(out)) > number)  # type: ignore[misc]

    follow(scenario)
    masks = {path.name: int(cv2.imread(str(path), 0).max()) for path in (out / DAY / "masks").iterdir()}  # type: ignore[union-attr]
    assert masks == {"a.png.png": 0, "a.jpg.png": 1, "A.bmp.png": 0, "b.png": 0}


def test_sheets_that_meet_the_rule_are_told_to_the_webhook(
    follow: Follow, folder: Path, out: Path, address: Any
) -> None:
    address.answers = [500]

    def scenario() -> Iterator[Any]:
        put(folder / "clean.png", content_of())
        put(folder / "pit.png", content_of(pit=True))
        yield from until(lambda: address.got)

    follow(scenario, fail_on="2,pits:area_px=24", webhook=address.url)
    (message,) = address.got
    stat = (folder / "pit.png").stat()
    assert message["sheets"] == [
        {
            "day": DAY,
            "ImageId": "pit.png",
            "classes": "pits",
            "regions": 1,
            "defect_area_px": 24,
            "top_score": "0.9000",
            "size_bytes": stat.st_size,
            "modified_ns": stat.st_mtime_ns,
        }
    ]
    left = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file())
    assert b"SECRET" not in left


def test_latency_is_from_the_files_time_to_its_result(follow: Follow, folder: Path, out: Path) -> None:
    for number in range(100):
        put(folder / f"{number}.png", content_of(), datetime.now().astimezone() - timedelta(minutes=number + 1))
    ended = follow(lambda: until(lambda: told(out).get("processed") == 100))
    assert ended["latency_s"]["p50"] == pytest.approx(60 * 51, abs=30)
    assert ended["latency_s"]["p95"] == pytest.approx(60 * 96, abs=30)


def test_an_error_of_the_network_ends_it(follow: Follow, folder: Path, out: Path, runtime: Any) -> None:
    put(folder / "a.png", content_of())
    runtime.levels[:] = np.nan
    with pytest.raises(ModelError, match="not a number"):
        follow(lambda: until(lambda: False))
    assert told(out)["state"] == "failed"
    assert "not a number" in told(out)["last_error"]["message"]


def test_each_day_counts_its_groups(follow: Follow, folder: Path, out: Path) -> None:
    def scenario() -> Iterator[Any]:
        for number in range(3):
            put(folder / f"coil{number // 2}_{number}.png", content_of(pit=True))
        yield from until(lambda: len(records(out)) == 3)

    follow(scenario, choice=OutputChoice(group="coil[0-9]"))

    assert (out / DAY / "by_group.csv").read_text().splitlines()[1:] == ["coil0,2,0,2,2,0", "coil1,1,0,1,1,0"]


def test_wrong_folders_are_refused(follow: Follow, folder: Path, out: Path, loaded: Loaded, tmp_path: Path) -> None:
    for source, target in ((folder, folder), (folder, folder / "out"), (folder / "sub", folder)):
        source.mkdir(exist_ok=True)
        with pytest.raises(UsageError, match="outside of the watched folder"):
            watch.watch(loaded, source, target, OutputChoice())
    with pytest.raises(DataError, match="no such folder"):
        watch.watch(loaded, folder / "nowhere", out, OutputChoice())
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").touch()
    with pytest.raises(OutputExistsError, match=r"thesis\.txt, not written by watch"):
        watch.watch(loaded, folder, tmp_path / "full", OutputChoice())
    assert [path.name for path in (tmp_path / "full").iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"webhook": "http://host/SECRET"}, "webhook: needs fail_on"),
        ({"fail_on": "any"}, "fail_on: needs webhook"),
        ({"fail_on": "any", "webhook": "host/SECRET"}, "webhook: expected an address such as https://host/path"),
        ({"fail_on": "pots", "webhook": "http://host/SECRET"}, "fail_on: pots"),
    ],
)
def test_a_webhook_and_its_rule_are_checked_before_anything_is_written(
    follow: Follow, out: Path, options: dict[str, Any], told: str
) -> None:
    with pytest.raises(UsageError, match=told) as caught:
        follow(lambda: iter(()), **options)
    assert "SECRET" not in str(caught.value)
    assert not out.exists()


def test_results_of_other_settings_are_refused_and_so_is_a_second_watch(
    follow: Follow, folder: Path, out: Path
) -> None:
    follow(lambda: iter(()))
    with pytest.raises(OutputExistsError, match=r"another model or other settings .*overlays"):
        follow(lambda: iter(()), choice=OutputChoice(("masks",)))
    with folder_lock(out), pytest.raises(ResourceError, match="another defectseg writes there"):
        follow(lambda: iter(()))
    shutil.copy(folder.parent / "model.safetensors", out / "watch.json")
    with pytest.raises(OutputExistsError, match="not as watch writes it"):
        follow(lambda: iter(()))
