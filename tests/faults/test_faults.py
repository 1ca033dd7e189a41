"""A fault at a file operation of a command: nothing half-written, nothing lost, and the next run ends well."""

import errno
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Make = Callable[[str], Any]
READING = ("open", "read")
NAMES = [
    "predict",
    "predict over",
    "merge",
    "merge over",
    "watch",
    "import",
    "import into",
    "export",
    "evaluate",
    "tune",
]
# Every so many operations will do.
COSTLY = {"predict over": 6, "merge over": 3, "watch": 4, "import into": 2, "export": 3, "evaluate": 8}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("fault", "every", "codes", "told"),
    [
        ({"signal": signal.SIGKILL}, 1, {-signal.SIGKILL}, ""),
        ({"signal": signal.SIGTERM}, 9, {130, None}, ""),
        ({"errno": errno.ENOSPC, "lasting": True, "end_s": 1}, 4, {4}, "no space left"),
        ({"errno": errno.EROFS, "lasting": True}, 19, {4}, "cannot be written"),
        ({"errno": errno.EACCES, "lasting": True}, 23, {4}, "cannot be written"),
        ({"errno": errno.EIO}, 13, {4, None}, ""),
    ],
    ids=["kill -9", "SIGTERM", "disk full", "read-only", "no permission", "disk fails once"],
)
def test_a_fault_at_any_write_leaves_nothing_half_done(
    work: Make, name: str, fault: dict[str, Any], every: int, codes: set[int | None], told: str
) -> None:
    one = work(name)
    undisturbed, whole = one.undisturbed()
    last = undisturbed.events - (10 if name == "watch" else 0)  # whose last write of health.json may fail
    for at in range(1, last + 1, every * COSTLY.get(name, 1)):
        place, where = one.place(at), f"{name}, operation {at} of {undisturbed.events}, {fault}"
        before = one.left(place)
        done = one.run(place, at=at, **fault)
        assert done.code in codes or (None in codes and done.code == undisturbed.code), f"{where}: {done.said}"
        assert told in done.said, f"{where}: {done.said}"
        one.check_partial(place, before, whole, where)
        one.check_next(place, undisturbed, whole, where)
        shutil.rmtree(place)


@pytest.mark.parametrize("name", ["predict", "merge", "import", "export", "evaluate"])
@pytest.mark.parametrize(
    "fault",
    [
        {"events": READING, "errno": errno.EIO, "lasting": True},
        {"events": ["open"], "errno": errno.ESTALE},
        {"events": ["open"], "unlink": True},
    ],
    ids=["the share goes away", "one stale handle", "a file vanishes"],
)
def test_an_input_that_cannot_be_read_is_named_and_costs_nothing_else(
    work: Make, name: str, fault: dict[str, Any], tmp_path: Path
) -> None:
    one = work(name)
    undisturbed, whole = one.undisturbed()
    kept = shutil.copytree(one.inputs, tmp_path / "kept")
    reads = one.run(one.place("counted"), under=one.inputs, events=fault["events"]).events
    assert reads >= len(list(one.inputs.rglob("*.png")))
    for at in range(1, reads + 1, 7 if name == "evaluate" else 3):
        place, where = one.place(at), f"{name}, read {at} of {reads}, {fault}"
        done = one.run(place, under=one.inputs, at=at, **fault)
        assert done.code in (3, 4, undisturbed.code), f"{where}: {done.said}"
        assert done.code == undisturbed.code or str(one.inputs) in done.said, f"{where}: {done.said}"
        assert "cannot be written" not in done.said, f"{where}: {done.said}"
        if done.code == 4 and name != "evaluate":
            one.check_partial(place, {}, whole, where)
        shutil.copytree(kept, one.inputs, dirs_exist_ok=True)  # with the times that it had
        one.check_next(place, undisturbed, whole, where)
        shutil.rmtree(place)


@pytest.mark.parametrize("name", ["predict", "merge", "watch", "import"])
def test_a_really_full_disk_is_told_and_costs_nothing(work: Make, name: str, tmp_path: Path) -> None:
    one = work(name)
    if not one.commands.may_mount:
        pytest.skip("this machine lets nobody mount a small disk")
    undisturbed, whole = one.undisturbed()
    for pages in range(1, 100, 2):
        place = one.folder / str(pages)
        place.mkdir()
        one.commands.mount(place, f"size={4 * pages}k")
        done = one.run(place, end_s=1 if name == "watch" and pages < 60 else 60)
        seen = one.commands.seen(place)
        if done.code == undisturbed.code:
            break
        assert (done.code, "no space left" in done.said) == (4, True), done.said
        one.check_partial(seen, {}, whole, f"{pages} pages")
        one.commands.mount(place, "remount,size=16m")
        assert one.run(place).code == undisturbed.code
        assert one.left(seen) == whole, f"{pages} pages"
    assert pages > 5


@pytest.mark.parametrize("name", ["predict", "merge", "watch", "import", "export", "evaluate"])
def test_short_reads_change_nothing(work: Make, name: str) -> None:
    one = work(name)
    undisturbed, whole = one.undisturbed()
    place = one.place("short")
    done = one.run(place, under=one.inputs, events=["read"], short=True, at=1, lasting=True)
    assert done.code == undisturbed.code
    assert one.left(place) == whole


@pytest.mark.parametrize("name", ["predict", "merge", "watch", "import", "import into", "export", "evaluate"])
def test_of_two_runs_at_once_one_is_refused_and_the_other_undisturbed(work: Make, name: str) -> None:
    one = work(name)
    undisturbed, whole = one.undisturbed()
    for at in (undisturbed.events // 4, undisturbed.events // 2, undisturbed.events - 1):
        place = one.place(at)
        first = one.run(place, at=at, signal=signal.SIGSTOP)
        second = one.run(place)
        assert second.code == 4, second.said
        assert "another defectseg writes there" in second.said
        done = one.commands.go_on(first)
        assert (done.code, one.left(place)) == (undisturbed.code, whole), done.said


@pytest.mark.parametrize("name", ["predict", "merge", "watch", "import", "import into", "export", "evaluate"])
def test_a_folder_deleted_under_a_run_ends_it_with_a_message(work: Make, name: str) -> None:
    one = work(name)
    undisturbed, whole = one.undisturbed()
    for at in range(2, undisturbed.events, 11):
        place, where = one.place(at), f"{name}, operation {at} of {undisturbed.events}"
        stopped = one.run(place, at=at, signal=signal.SIGSTOP)
        for path in place.iterdir():
            shutil.rmtree(path)
        done = one.commands.go_on(stopped)
        assert done.code in (4, undisturbed.code), f"{where}: {done.said}"
        shutil.rmtree(place)
        one.check_next(one.place(at), undisturbed, whole, where)


def test_an_image_replaced_while_it_is_read_has_the_result_of_the_new_one(work: Make, images: Path) -> None:
    def put(number: int) -> None:
        shutil.copy2(images / f"{number}.png", images.parent / "new")  # with its time, which the rows tell
        (images.parent / "new").replace(images / "0.png")

    shutil.copy2(images / "0.png", images / "2.png")
    one = work("predict")
    reads = one.run(one.place("counted"), under=images / "0.png", events=READING).events
    put(1)
    undisturbed, whole = one.undisturbed()
    for at in range(1, reads + 1):
        put(2)
        place = one.place(at)
        stopped = one.run(place, under=images / "0.png", events=READING, at=at, signal=signal.SIGSTOP)
        put(1)
        done = one.commands.go_on(stopped)
        assert done.code == undisturbed.code, done.said
        one.check_next(place, undisturbed, whole, f"read {at} of {reads}")


def test_a_disk_that_is_full_for_a_moment_makes_a_watch_wait_and_costs_nothing(work: Make) -> None:
    one = work("watch")
    undisturbed, whole = one.undisturbed()
    waited = 0
    for at in range(1, undisturbed.events - 9, 4):  # not the last write of health.json
        place = one.place(at)
        done = one.run(place, at=at, errno=errno.ENOSPC)
        if done.code == 4:  # it had not begun to watch, or was stopped already
            one.check_next(place, undisturbed, whole, f"operation {at}")
        else:
            waited += "Waiting for that" in done.said
            assert (done.code, one.left(place)) == (0, whole), f"operation {at}: {done.said}"
    assert waited > 3


def test_ctrl_c_ends_a_watch_with_130_after_its_tables(work: Make) -> None:
    one = work("watch")
    undisturbed, whole = one.undisturbed()
    place = one.place("stopped")
    done = one.run(place, at=undisturbed.events // 2, signal=signal.SIGINT)
    assert done.code == 130
    assert "images processed" in done.said
    assert list(place.glob("out/*/images.csv"))
    one.check_next(place, undisturbed, whole, "Ctrl-C")
