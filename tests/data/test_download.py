import csv
import io
import stat
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from defectseg.data import download
from defectseg.data.download import COMPETITION, SEVERSTAL, DownloadReport, Figures, download_severstal
from defectseg.data.folder import open_data_folder
from defectseg.errors import CannotContinueError, DataError, OutputExistsError, ResourceError

ROWS = [("a.jpg", 1, "1 2"), ("a.jpg", 3, "5 1"), ("b.jpg", 3, "2 2")]
FIGURES = Figures(images=3, defect_images=2, masks_per_class=(1, 0, 2))


def archive(
    rows: Any = ROWS, images: tuple[str, ...] = ("a", "b", "c"), more: tuple[str | zipfile.ZipInfo, ...] = ()
) -> bytes:
    table = io.StringIO()
    csv.writer(table).writerows([("ImageId", "ClassId", "EncodedPixels"), *rows])
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("sample_submission.csv", "ImageId,EncodedPixels,ClassId\nt.jpg,1 409600,0\n")
        packed.writestr("test_images/t.jpg", b"t")
        packed.writestr("train.csv", table.getvalue())
        for image in images:
            packed.writestr(f"train_images/{image}.jpg", image.encode())
        for entry in more:
            packed.writestr(entry, "/etc/passwd")
    return content.getvalue()


class Kaggle:
    """A stand-in for Kaggle's client, which goes on with the file that it finds."""

    def __init__(self, content: bytes, *, stop_after: int | None = None, error: BaseException | None = None) -> None:
        self.content, self.stop_after, self.error = content, stop_after, error
        self.fetched: list[int] = []

    def competition_download_files(self, competition: str, path: str, force: bool = False, quiet: bool = True) -> None:
        assert (competition, force) == (COMPETITION, False)
        print("Downloading")  # as the real one does
        if self.error:
            raise self.error
        with (Path(path) / f"{competition}.zip").open("ab") as handle:
            rest = self.content[handle.tell() : self.stop_after]
            handle.write(rest)
        self.fetched.append(len(rest))
        if self.stop_after is not None:
            raise ConnectionError("the line went dead")


def fetch(out: Path, client: Any, **options: Any) -> DownloadReport:
    return download_severstal(out, client=client, expected=FIGURES, **options)


def tree(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_data_arrive_as_a_data_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, int]] = []
    report = fetch(
        tmp_path / "out", Kaggle(archive()), progress=lambda done, total, text="": steps.append((done, total))
    )
    assert report == DownloadReport(3, 2, (1, 0, 2), test_images=1, was_there=False)
    assert steps == [(done, 6) for done in range(1, 7)]
    assert tree(tmp_path / "out") == {
        *("train.csv", "sample_submission.csv", "test_images/t.jpg"),
        *(f"train_images/{name}.jpg" for name in "abc"),
    }
    assert not (tmp_path / "out/.download").exists()
    assert open_data_folder(tmp_path / "out").image_ids == ("a.jpg", "b.jpg", "c.jpg")
    assert capsys.readouterr().out == ""  # stdout is for results


def test_known_figures_are_those_of_the_competition() -> None:
    assert Figures(12_568, 6_666, (897, 247, 5_150, 801)) == SEVERSTAL


def test_interrupted_download_continues(tmp_path: Path) -> None:
    content = archive()
    broken = Kaggle(content, stop_after=100)
    with pytest.raises(CannotContinueError, match=r"the line went dead.*run the same command again to go on"):
        fetch(tmp_path / "out", broken)
    assert tree(tmp_path / "out") == {f".download/{COMPETITION}.zip"}
    whole = Kaggle(content)
    fetch(tmp_path / "out", whole)
    assert whole.fetched == [len(content) - 100]
    assert (tmp_path / "out/train.csv").exists()


def test_interruption_while_unpacking_does_not_fetch_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: Any, **__: Any) -> None:
        assert (tmp_path / "out/.download/unpacking").is_dir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "extract", stop)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path / "out", Kaggle(archive()))
    assert not (tmp_path / "out/train.csv").exists()
    never = Kaggle(b"", error=AssertionError("called again"))
    assert fetch(tmp_path / "out", never).images == 3


def test_interruption_while_moving_is_finished_by_the_next_run_and_a_complete_folder_only_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename

    def stop_at_the_table(self: Path, target: Path) -> Path:
        if target.name == "train.csv":
            raise KeyboardInterrupt
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", stop_at_the_table)
        with pytest.raises(KeyboardInterrupt):
            fetch(tmp_path / "out", Kaggle(archive()))
    lost = tmp_path / "out/train_images/a.jpg"
    lost.unlink()
    never = Kaggle(b"", error=AssertionError("called again"))
    for _ in range(2):
        with pytest.raises(
            DataError, match=r"2 images, 2 with a defect.*expected 3 images.*choose another fol"
        ) as told:
            fetch(tmp_path / "out", never)
        assert "elete" not in str(told.value), "what was moved is the user's"
        assert not (tmp_path / "out/.download").exists()
    lost.touch()
    assert fetch(tmp_path / "out", never).was_there


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (archive(images=("a", "b")), "2 images, 2 with a defect, masks per class 1/0/2; expected 3 images"),
        (archive(ROWS[:2]), "3 images, 1 with a defect, masks per class 1/0/1; expected 3 images, 2 with"),
        (archive(ROWS + ROWS[:1]), "a.jpg, ClassId 1 stands in line 2 already.*Delete"),
    ],
)
def test_data_with_wrong_figures_never_become_a_data_folder(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message) as refused:
        fetch(tmp_path / "out", Kaggle(content))
    assert f" Delete {tmp_path}/out/.download and run the same command again" in str(refused.value)
    assert {entry.name for entry in (tmp_path / "out").iterdir()} == {".download"}


def test_nothing_is_unpacked_outside_the_folder_and_no_link_is_made(tmp_path: Path) -> None:
    link = zipfile.ZipInfo("test_images/link")
    link.external_attr, link.create_system = (stat.S_IFLNK | 0o777) << 16, 3
    content = archive(more=("../evil", "x/../../../evil", "/evil", link))
    fetch(tmp_path / "deep/out", Kaggle(content))
    assert {path.name for path in tmp_path.iterdir()} == {"deep"}
    assert {path.name for path in (tmp_path / "deep").iterdir()} == {"out"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))


def _flipped(at: int) -> bytes:
    content = bytearray(archive())
    content[at] ^= 0xFF
    return bytes(content)


@pytest.mark.parametrize(
    "content",
    [
        _flipped(archive().index(b"train_images/a.jpg") + len("train_images/a.jpg")),
        _flipped(archive().index(b"PK\x01\x02") + 8),  # bit 0: encrypted
    ],
    ids=["checksum", "encrypted"],
)
def test_damaged_archive_says_to_delete_it(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(DataError, match=rf"{COMPETITION}\.zip: the archive is damaged.*Delete it"):
        fetch(tmp_path / "out", Kaggle(content))


class HttpError(Exception):
    def __init__(self, status: int) -> None:
        super().__init__(f"{status} Client Error")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (
            HttpError(401),
            r"does not accept the token.*kaggle\.com/settings/api.*KAGGLE_API_TOKEN.*~/\.kaggle/access_token",
        ),
        (HttpError(403), rf"rules are not accepted.*competitions/{COMPETITION}/rules, accept the rules"),
        (HttpError(500), r"status 500.*run the same command again"),
        (SystemExit(1), "failed"),
    ],
)
def test_refusals_of_the_service_say_what_to_do(tmp_path: Path, error: BaseException, message: str) -> None:
    with pytest.raises(CannotContinueError, match=message):
        fetch(tmp_path / "out", Kaggle(b"", error=error))


def test_403_in_the_middle_of_the_file_means_an_expired_link(tmp_path: Path) -> None:
    with pytest.raises(CannotContinueError):
        fetch(tmp_path / "out", Kaggle(archive(), stop_after=100))
    with pytest.raises(CannotContinueError, match=r"failed .*run the same command again to go on"):
        fetch(tmp_path / "out", Kaggle(b"", error=HttpError(403)))


def test_client_that_leaves_another_file_is_reported(tmp_path: Path) -> None:
    class Other(Kaggle):
        def competition_download_files(self, competition: str, path: str, *_: Any, **__: Any) -> None:
            (Path(path) / "other.tar").write_bytes(b"x")

    with pytest.raises(DataError, match=r"left other\.tar; expected severstal"):
        fetch(tmp_path / "out", Other(b""))


def test_folder_of_somebody_else_is_not_touched(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for number, name in enumerate(("precious.txt", "train_images")):  # ours only beside .download
        (tmp_path / str(number) / name).mkdir(parents=True)
        with pytest.raises(OutputExistsError, match=name):
            fetch(tmp_path / str(number), Kaggle(archive()))
    with pytest.raises(OutputExistsError, match="is a file"):
        fetch(tmp_path / "file", Kaggle(archive()))


def test_full_disk_is_reported_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ResourceError, match=r"0\.0 GiB free, 0\.1 GiB needed"):
        fetch(tmp_path / "out", Kaggle(archive()))


def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site/kaggle.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path / "site")
    monkeypatch.setitem(sys.modules, "kaggle", None)  # what stood there comes back after the test
    del sys.modules["kaggle"]


NO_TOKEN = r"settings/api.*KAGGLE_API_TOKEN.*/rules, accept the rules"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("raise OSError('Could not find kaggle.json')", NO_TOKEN),
        ("class api:\n    def authenticate():\n        print('No token')\n        raise SystemExit(1)", NO_TOKEN),
        (
            "E = type('ConnectionError', (OSError,), {'__module__': 'requests.exceptions'})\nraise E('no route')",
            r"failed \(ConnectionError: no route\)",
        ),
        ("raise ModuleNotFoundError(name='kaggle')", r"defectseg\[kaggle\]"),
        ("import a_package_that_nobody_has", r"defectseg\[kaggle\]"),
    ],
)
def test_client_that_does_not_start_gives_advice_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], source: str, message: str
) -> None:
    module(tmp_path, monkeypatch, source)
    with pytest.raises(CannotContinueError, match=message):
        download_severstal(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert capsys.readouterr().out == ""


def test_client_that_is_logged_in_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = "class api:\n    logged_in = False\n    def authenticate():\n        api.logged_in = True"
    module(tmp_path, monkeypatch, source)
    assert download.log_in().logged_in
