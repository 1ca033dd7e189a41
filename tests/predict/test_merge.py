import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from defectseg.errors import CannotContinueError, DataError, DefectsegError, OutputExistsError, UsageError
from defectseg.formats.predictions import predictions_to_coco
from defectseg.image.find import find_images
from defectseg.predict import predict as predicting
from defectseg.predict.merge import merge
from defectseg.predict.output import read_results
from defectseg.predict.predict import predict
from defectseg.predict.shards import Shard
from defectseg.predict.tables import OutputChoice

STEEL, PIT, CRACK, BLACK = 60, 120, 160, 0  # grey levels, as GreyRuntime reads them
LONG = "x" * 248
NAMES = (
    *(f"{number:02}.png" for number in range(12)),
    *("a.jpg", "a.png", "a.bmp", "a.jpg.bmp", "line 1/a.jpg", "line 1/b.png", "b.jpg/c.png", "B.png"),
    *(f"{LONG}.jpg", f"{LONG}.png", f"{LONG}y.png"),
)
Predict = Callable[..., dict[str, Any]]


@pytest.fixture
def sheets(tmp_path: Path) -> Path:
    """Sheets with a pit, a crack or nothing, a black one and one cut short; many of their names clash."""
    for number, name in enumerate(NAMES):
        _write(tmp_path / "in" / name, (STEEL, PIT, CRACK)[number % 3])
    cv2.imwrite(str(tmp_path / "in" / "black.png"), np.full((16, 24), BLACK, np.uint8))
    (tmp_path / "in" / "broken.png").write_bytes((tmp_path / "in" / "00.png").read_bytes()[:-20])
    return tmp_path / "in"


def _write(path: Path, level: int) -> Path:
    sheet = np.full((16, 24), STEEL, np.uint8)
    sheet[-1] += 10
    sheet[2:8, 8:16] = level
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, sheet)[1].tobytes())
    return path


@pytest.fixture
def run(
    tmp_path: Path, write_model: Callable[..., Path], grey_runtime: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> Predict:
    """Predicts on the images below a folder, into a folder of the test."""
    model, runtime = write_model(tmp_path / "model.safetensors"), grey_runtime()
    monkeypatch.setattr(predicting, "load_runtime", lambda *asked, workers: (runtime, runtime.info))

    def process(images: Path, out: str, shard: str = "", **options: Any) -> dict[str, Any]:
        options["shard"] = Shard(*map(int, shard.split("/"))) if shard else None
        return predict(model, find_images([images], keep_faulty=True), tmp_path / out, **options)

    return process


def _predict_shards(run: Predict, images: Path, count: int = 3, **options: Any) -> list[Path]:
    for index in range(1, count + 1):
        run(images, f"shard {index}", f"{index}/{count}", **options)
    return [images.parent / f"shard {index}" for index in range(1, count + 1)]


def _tree(root: Path) -> dict[str, bytes]:
    """Every file with its content, but for run.json, which tells times."""
    paths = [path for path in root.rglob("*") if path.is_file() and path.name != "run.json"]
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in paths}


@pytest.mark.parametrize("count", [1, 3, 40], ids=lambda count: f"{count} shards")
@pytest.mark.parametrize(
    "choice",
    [OutputChoice(), OutputChoice(overlays="defects"), OutputChoice(("rle",)), OutputChoice(group="^[0-9]")],
    ids=["all", "defects", "rle", "groups"],
)
def test_shards_merged_equal_one_run_byte_for_byte(
    run: Predict, sheets: Path, tmp_path: Path, count: int, choice: OutputChoice
) -> None:
    one = run(sheets, "one", choice=choice)
    folders = _predict_shards(run, sheets, count, choice=choice)

    merged = merge(folders[::-1], tmp_path / "merged")

    assert _tree(tmp_path / "merged") == _tree(tmp_path / "one")
    assert read_results(tmp_path / "merged")[0] == merged
    assert list(merged["shards"].items()) == [(f"{n}/{count}", str(folder)) for n, folder in enumerate(folders, 1)]
    assert sum(len(_tree(folder / "masks")) for folder in folders) == len(_tree(tmp_path / "one" / "masks"))
    (series,) = merged["runs"]
    assert series["computed_by"] == one["runs"][0]["computed_by"]
    assert ("by_group.csv" in _tree(tmp_path / "merged")) == (choice.group is not None)
    same = ("key", "status", "class_names", "images_in_folder", "processed", "with_defect", "blank", "unreadable")
    assert [merged[name] for name in same] == [one[name] for name in same]


def test_rules_look_at_the_images_of_all_shards(run: Predict, sheets: Path, tmp_path: Path) -> None:
    folders = _predict_shards(run, sheets)
    one = run(sheets, "one", fail_on="cracks,pits:area_px=1000")

    merged = merge(folders, tmp_path / "merged", fail_on="cracks,pits:area_px=1000")

    assert merged["fail_on"] == one["fail_on"]
    assert 0 < merged["fail_on"]["images"] < one["with_defect"]
    with pytest.raises(UsageError, match="fail_on: rust: "):
        merge(folders, tmp_path / "other", fail_on="rust")
    assert not (tmp_path / "other").exists()


def test_pictures_are_links_and_where_that_cannot_be_copies(
    run: Predict, sheets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = _predict_shards(run, sheets)
    merge(folders, tmp_path / "links")

    def refuse(*paths: Any, **options: Any) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    merge(folders, tmp_path / "copies")

    assert _tree(tmp_path / "links") == _tree(tmp_path / "copies")
    pictures = [path for path in tmp_path.glob("links/*/**/*") if path.is_file()]
    assert len(pictures) == 2 * (len(NAMES) + 1)
    assert {path.stat().st_nlink for path in pictures} == {2}
    assert {path.stat().st_nlink for path in tmp_path.glob("copies/*/**/*") if path.is_file()} == {1}
    for folder in folders:
        shutil.rmtree(folder)
    assert _tree(tmp_path / "links") == _tree(tmp_path / "copies"), "they do not depend on the shards"


def test_predict_goes_on_with_what_was_merged_and_leaves_the_shards_as_they_were(
    run: Predict, sheets: Path, tmp_path: Path
) -> None:
    folders = _predict_shards(run, sheets)
    merge(folders, tmp_path / "merged")
    before = [_tree(folder) for folder in folders]
    _write(sheets / "new.jpg", PIT)
    _write(sheets / "01.png", CRACK)

    done = run(sheets, "merged")

    assert (done["processed"], done["already_done"]) == (2, len(NAMES))
    run(sheets, "one")
    merged, one = (_tree(tmp_path / name) for name in ("merged", "one"))
    lines = [sorted(tree.pop("journal.jsonl").splitlines()) for tree in (merged, one)]
    assert merged == one
    assert len({json.loads(line)["image"]["ImageId"] for line in lines[0]}) == len(lines[1])
    assert [_tree(folder) for folder in folders] == before


def test_merged_results_become_labels_to_correct_as_those_of_one_run_do(
    run: Predict, sheets: Path, tmp_path: Path
) -> None:
    run(sheets, "one")
    merge(_predict_shards(run, sheets), tmp_path / "merged")

    files = [tmp_path / f"{name}.json" for name in ("one", "merged")]
    reports = [predictions_to_coco(tmp_path / file.stem, file) for file in files]

    assert reports[0] == reports[1]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_shards_that_were_continued_with_new_images_equal_one_run(run: Predict, sheets: Path, tmp_path: Path) -> None:
    locked = sheets / "line 2"
    later = [(locked / "0.png", PIT), (sheets / "00.bmp", CRACK), (sheets / f"{LONG}.tiff"[-250:], PIT)]
    images = find_images([sheets], keep_faulty=True)
    fault = find_images([sheets / "00.png"])[0].__class__("line 2", str(locked), f"{locked}: cannot be listed.")
    for index in (1, 2, 3):  # a subfolder that nobody could list, whose images come later, in other shards
        predict(tmp_path / "model.safetensors", [*images, fault], tmp_path / f"shard {index}", shard=Shard(index, 3))
    for path, level in later:
        _write(path, level)
    folders = _predict_shards(run, sheets)
    run(sheets, "one")

    merge(folders, tmp_path / "merged")

    assert _tree(tmp_path / "merged") == _tree(tmp_path / "one")


def test_a_shard_belongs_to_its_folder(run: Predict, sheets: Path) -> None:
    run(sheets, "out", "1/3")
    for other in ("2/3", "1/4", ""):
        with pytest.raises(OutputExistsError, match=rf"shard 1/3 -> {other or 'none'}\b"):
            run(sheets, "out", other)
    run(sheets, "one")
    with pytest.raises(OutputExistsError, match="shard none -> 1/3"):
        run(sheets, "one", "1/3")


def test_a_shard_without_an_image_is_a_finished_result(run: Predict, tmp_path: Path) -> None:
    _write(tmp_path / "in" / "a.jpg", PIT)
    empty = "2/2" if "a.jpg" in Shard(1, 2) else "1/2"

    done = run(tmp_path / "in", "empty", empty)

    assert (done["status"], done["processed"], done["already_done"]) == ("finished", 0, 0)
    assert list(read_results(tmp_path / "empty")[2]) == []


def _remove(*names: str) -> Callable[[list[Path]], object]:
    def change(folders: list[Path]) -> None:
        for name in names:
            (path,) = [folder / name for folder in folders if (folder / name).exists()]
            path.unlink()

    return change


def _edit(name: str, pattern: str, replacement: str) -> Callable[[list[Path]], object]:
    def change(folders: list[Path]) -> None:
        path = folders[1] / name
        path.write_text(re.sub(pattern, replacement, path.read_text(), count=1))

    return change


def _drop(index: int) -> Callable[[list[Path]], object]:
    return lambda folders: folders.pop(index)


def _instead(folder: str) -> Callable[[list[Path]], object]:
    return lambda folders: folders.__setitem__(1, folders[1].parent / folder)


@pytest.mark.parametrize(
    ("change", "kind", "told"),
    [
        (_drop(1), DataError, r"^shards are missing: 2/3\. Give the folders of all 3, or .* with shard='2/3' first"),
        (lambda folders: folders.__delitem__(slice(0, 2)), DataError, "missing: 1/3, 2/3"),
        (lambda folders: folders.append(folders[0]), UsageError, "shard 1: given twice"),
        (lambda folders: folders.append(folders[0].parent / "link"), UsageError, "link: given twice"),
        (lambda folders: folders.append(folders[0].parent / "copy"), DataError, "copy: holds shard 1/3, as .*shard 1 "),
        (_instead("in"), DataError, "in: has no run.json"),
        (_instead("nothing"), DataError, "nothing: has no run.json"),
        (_instead("one"), DataError, r"one: holds no shard.*shard='i/n'"),
        (_instead("quarter"), DataError, r"quarter: does not fit .*shard 1, .*\(shard i/3 -> i/4\)"),
        (_instead("one class"), DataError, r"one class: does not fit .*\(only_classes none -> \[1\]\)"),
        (_instead("other list"), DataError, "other list: is a shard of another list of images than .*shard 1"),
        (_edit("run.json", "finished", "interrupted"), DataError, "shard 2: the run is interrupted"),
        (_edit("run.json", '"own_images_sha256"', '"other"'), DataError, "shard 2: holds no shard"),
        (_edit("journal.jsonl", r"\A.*\n", ""), DataError, "shard 2: holds other images.*overwrite=True"),
        (_edit("journal.jsonl", r"\A.*\n", "{}\n"), DataError, "shard 2: holds other images"),
        (lambda folders: (folders[1] / "journal.jsonl").unlink(), DataError, "shard 2: has no journal.jsonl"),
        (_remove("masks/05.png"), DataError, "masks/05.png: a picture that is missing"),
        (_remove("overlays/line 1/a.jpg"), DataError, "overlays/line 1/a.jpg: a picture that is missing"),
    ],
)
def test_what_does_not_fit_is_refused_by_name_and_nothing_is_written(
    run: Predict,
    sheets: Path,
    tmp_path: Path,
    change: Callable[[list[Path]], object],
    kind: type[DefectsegError],
    told: str,
) -> None:
    folders = _predict_shards(run, sheets)
    shutil.copytree(folders[0], tmp_path / "copy")
    (tmp_path / "link").symlink_to(folders[0])
    run(sheets, "one")
    run(sheets, "quarter", "2/4")
    run(sheets, "one class", "2/3", classes=["1"])
    change(folders)
    if folders[1:2] == [tmp_path / "other list"]:
        run(_write(tmp_path / "others" / "new.png", PIT).parent, "other list", "2/3")
    before = set(tmp_path.iterdir())

    with pytest.raises(kind, match=told):
        merge(folders, tmp_path / "merged")

    assert set(tmp_path.iterdir()) == before


def test_images_that_are_gone_from_the_inputs_are_not_merged_in_silence(
    run: Predict, sheets: Path, tmp_path: Path
) -> None:
    _predict_shards(run, sheets)
    for name in NAMES[:4]:
        (sheets / name).unlink()
    folders = _predict_shards(run, sheets)
    with pytest.raises(DataError, match=r"holds other images than its last run was given.*overwrite=True"):
        merge(folders, tmp_path / "merged")

    _predict_shards(run, sheets, overwrite=True)
    run(sheets, "one")
    merge(folders, tmp_path / "merged")
    assert _tree(tmp_path / "merged") == _tree(tmp_path / "one")


def test_the_output_folder_must_not_be_one_of_the_others_nor_lie_in_or_around_one(
    run: Predict, sheets: Path, tmp_path: Path
) -> None:
    folders = _predict_shards(run, sheets)
    (tmp_path / "link").symlink_to(folders[1])
    for out in (folders[1], folders[1] / "in it", tmp_path / "link" / "deep" / "in it", tmp_path):
        with pytest.raises(UsageError, match=f"out: {re.escape(str(out))} is in or around"):
            merge(folders, out, overwrite=True)
    assert all(read_results(folder)[0]["status"] == "finished" for folder in folders)


def test_earlier_results_are_replaced_only_if_that_is_asked_for_and_other_files_never(
    run: Predict, sheets: Path, tmp_path: Path
) -> None:
    folders = _predict_shards(run, sheets)
    _write(tmp_path / "others" / "other.png", PIT)
    run(tmp_path / "others", "earlier")
    before = _tree(tmp_path / "earlier")
    with pytest.raises(OutputExistsError, match=r"holds results.*overwrite=True"):
        merge(folders, tmp_path / "earlier")
    assert _tree(tmp_path / "earlier") == before
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").touch()
    for overwrite in (False, True):
        with pytest.raises(OutputExistsError, match=r"holds dear\.txt"):
            merge(folders, tmp_path / "letters", overwrite=overwrite)

    merge(folders, tmp_path / "earlier", overwrite=True)
    merge(folders, tmp_path / "merged")
    assert _tree(tmp_path / "earlier") == _tree(tmp_path / "merged")


def test_a_merge_that_was_stopped_is_no_result_and_the_same_command_does_it_again(
    run: Predict, sheets: Path, tmp_path: Path
) -> None:
    folders = _predict_shards(run, sheets)

    def stop(done: int, total: int, text: str = "") -> None:
        assert total == len(NAMES) + 2
        if done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(folders, tmp_path / "merged", progress=stop)
    with pytest.raises(DataError, match=r"the run is merging. Run the same command again first"):
        read_results(tmp_path / "merged")
    shutil.copytree(tmp_path / "merged", tmp_path / "predicted")

    merge(folders, tmp_path / "merged")
    run(sheets, "one")
    assert _tree(tmp_path / "merged") == _tree(tmp_path / "one")
    assert run(sheets, "predicted")["already_done"] > 0, "predict goes on with it, too"
    lines = [sorted((tmp_path / name / "journal.jsonl").read_bytes().splitlines()) for name in ("one", "predicted")]
    assert set(lines[0]) == set(lines[1])


def test_results_of_different_machines_are_merged_with_a_warning(
    run: Predict, sheets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folders = _predict_shards(run, sheets)
    monkeypatch.setattr(predicting, "versions_of", lambda kinds: {"numpy": "9.9"})
    run(sheets, "shard 2", "2/3", overwrite=True)

    merged = merge(folders, tmp_path / "merged")

    assert re.search(r"not all computed by the same \(.*numpy \S+ -> 9.9", caplog.text)
    assert sorted(one["runs"] for one in merged["runs"]) == [1, 2]


def test_a_folder_that_cannot_be_read_is_named(
    run: Predict, sheets: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders, real = _predict_shards(run, sheets), Path.open

    def fail(path: Path, *arguments: Any, **options: Any) -> Any:
        if path == folders[1] / "journal.jsonl":
            raise OSError(5, "Input/output error", str(path))
        return real(path, *arguments, **options)

    monkeypatch.setattr(Path, "open", fail)
    with pytest.raises(CannotContinueError, match=r"shard 2: cannot be read \(Input/output error\)"):
        merge(folders, tmp_path / "merged")
