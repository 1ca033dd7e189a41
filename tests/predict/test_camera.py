import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from defectseg.files import size_and_time
from defectseg.predict import camera
from defectseg.predict.camera import Camera, Stamp

Poll = Callable[[], list[str]]


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(camera, "STEADY_S", 0.0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "in").mkdir()
    return tmp_path / "in"


def nothing(new: Mapping[str, Stamp]) -> set[str]:
    return set()


def watched(folder: Path, handled: Callable[[Mapping[str, Stamp]], set[str]] = nothing) -> tuple[Camera, Poll]:
    """A camera, and a function that polls it and handles at once what it gives."""
    made = Camera(folder, handled, pytest.fail)

    def poll() -> list[str]:
        found = made.poll()
        for image in found:
            made.done(image.image_id, size_and_time(image.file))
        return [image.image_id for image in found]

    return made, poll


def write(path: Path, content: str, *, minute: int = 0) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(content)
    os.utime(path, ns=(0, (1_800_000_000 + 60 * minute) * 10**9))


def test_a_file_is_given_once_when_size_and_time_are_the_same_in_two_looks(folder: Path) -> None:
    _, poll = watched(folder)
    write(folder / "a.png", "ab")
    assert poll() == []
    write(folder / "a.png", "abc")
    assert poll() == [], "it grew"
    write(folder / "a.png", "abc", minute=1)
    assert poll() == [], "it was written again"
    assert poll() == ["a.png"]
    assert poll() == []


def test_files_come_in_the_order_of_their_times_from_all_subfolders_and_only_images(folder: Path) -> None:
    _, poll = watched(folder)
    for minute, name in enumerate(["z.png", "deep/er/b.JPG", "deep/a.bmp", "c.tif"]):
        write(folder / name, "x", minute=minute)
    for name in (".hidden.png", ".dir/a.png", "a.png.tmp", "b.jpg.part", "notes.txt"):
        write(folder / name, "x")
    (folder / "nowhere.png").symlink_to(folder / "not yet")
    (folder / "loop").symlink_to(folder)
    assert poll() == []
    assert poll() == ["z.png", "deep/er/b.JPG", "deep/a.bmp", "c.tif"]
    write(folder / "not yet", "x")
    write(folder / "new/d.png", "x")
    poll()
    assert sorted(poll()) == ["new/d.png", "nowhere.png"]


def test_a_handled_file_that_changes_is_a_new_image_and_so_is_one_that_comes_back(folder: Path) -> None:
    _, poll = watched(folder)
    write(folder / "a.png", "old")
    poll(), poll()
    write(folder / "a.png", "longer")
    poll()
    assert poll() == ["a.png"]
    write(folder / "a.png", "longer", minute=1)
    poll()
    assert poll() == ["a.png"]
    (folder / "a.png").unlink()
    assert poll() == []
    write(folder / "a.png", "longer", minute=1)
    poll()
    assert poll() == ["a.png"]


def test_what_earlier_runs_handled_is_asked_once_and_left_alone(folder: Path) -> None:
    asked: list[dict[str, Stamp]] = []

    def handled(new: Mapping[str, Stamp]) -> set[str]:
        asked.append(dict(new))
        return {"a.png"} & new.keys()

    _, poll = watched(folder, handled)
    write(folder / "a.png", "abc", minute=2)
    write(folder / "b.png", "x")
    poll()
    assert poll() == ["b.png"]
    poll()
    assert asked == [{"a.png": (3, (1_800_000_000 + 120) * 10**9), "b.png": (1, 1_800_000_000 * 10**9)}]


def test_of_many_old_files_only_a_few_are_looked_at_in_each_poll(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[object] = []

    def counted(path: Path | str) -> Stamp:
        looks.append(path)
        return size_and_time(path)

    monkeypatch.setattr(camera, "size_and_time", counted)
    monkeypatch.setattr(camera, "LOOK_AGAIN", 7)
    for number in range(50):
        write(folder / f"{number}.png", "x")
    _, poll = watched(folder, lambda new: set(new))
    poll()
    looks.clear()
    for _ in range(8):
        poll()
    assert len(looks) <= 8 * 7
    assert len(set(looks)) == 50, "but all of them come round"


def test_a_broken_file_is_tried_again_for_a_minute_after_the_first_failure(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    made, _ = watched(folder)
    write(folder / "a.png", "half")
    made.poll()
    tries = []
    for second in range(100):
        now_s = 1000.0 + second
        for image in made.poll():
            tries.append(second)
            if not made.again(image.image_id):
                made.done(image.image_id, size_and_time(image.file))
    assert tries[:4] == [0, 1, 2, 3]
    assert 60 < tries[-1] <= 72
    assert len(tries) <= 14, "with longer and longer waits"
    write(folder / "a.png", "half more")
    made.poll()
    assert [image.image_id for image in made.poll()] == ["a.png"]
    assert made.again("a.png"), "another version has its own minute"


def test_a_file_with_a_bad_name_is_given_with_its_fault_and_not_tried_again(folder: Path) -> None:
    made, _ = watched(folder)
    write(folder / "a\n.png", "x")
    made.poll()
    (image,) = made.poll()
    assert image.image_id == "a%0A.png"
    assert "Rename it" in image.fault
    assert not made.again(image.image_id)


def test_a_file_that_goes_away_before_its_turn_is_told(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    _, poll = watched(folder)
    write(folder / "a.png", "x")
    poll()
    (folder / "a.png").unlink()
    assert poll() == []
    assert "a.png: went away before it was read" in caplog.text


def test_a_folder_that_is_away_is_an_error_and_nothing_is_lost(folder: Path) -> None:
    _, poll = watched(folder)
    write(folder / "a.png", "x")
    poll()
    folder.rename(folder.with_name("away"))
    for _ in range(3):
        with pytest.raises(FileNotFoundError):
            poll()
    folder.with_name("away").rename(folder)
    assert poll() == ["a.png"]


def test_a_folder_whose_time_did_not_change_is_not_listed_in_each_poll(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s, listed, real = 1000.0, list[str](), os.scandir

    def scandir(path: str) -> Any:
        listed.append(path)
        return real(path)

    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    monkeypatch.setattr(os, "scandir", scandir)
    write(folder / "old" / "a.png", "x")
    _, poll = watched(folder)
    for second in range(40):
        now_s = 1000.0 + second
        poll()
    assert 4 <= listed.count(str(folder / "old")) <= 9
    write(folder / "old" / "b.png", "x")
    poll()
    now_s += 0.25
    assert poll() == ["old/b.png"]
