"""The shell scripts, with stubs in the place of the programs that they call."""

import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parent.parent / "scripts"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None or shutil.which("flock") is None, reason="needs bash and flock"
)


@pytest.fixture
def stubs(tmp_path: Path) -> Path:
    """A folder that comes first on PATH: programs that tests put in place of real ones."""
    folder = tmp_path / "stub programs"
    folder.mkdir()
    return folder


def put_stub(stubs: Path, name: str, body: str) -> None:
    """Write an executable that notes its arguments in NAME.calls, a line for each call, and then runs `body`."""
    path = stubs / name
    path.write_text(f"#!/usr/bin/env bash\n(IFS='|'; echo \"$*\") >>'{path}.calls'\n{body}\n")
    path.chmod(0o755)


def calls(stubs: Path, name: str) -> list[list[str]]:
    """The arguments of each call of a stub."""
    path = stubs / f"{name}.calls"
    lines = path.read_text().splitlines() if path.exists() else []
    return [line.split("|") for line in lines]


def run(script: str, *arguments: str | Path, stubs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}", **variables}
    return subprocess.run(
        [SCRIPTS / script, *arguments], env=environment, capture_output=True, text=True, timeout=60, check=False
    )


# predict_folder.sh


def predict_folder(
    tmp_path: Path, stubs: Path, *flags: str, exit_code: int = 0, **variables: str
) -> subprocess.CompletedProcess[str]:
    put_stub(stubs, "defectseg", f"echo from defectseg; exit {exit_code}")
    put_stub(stubs, "hook", "")
    arguments = (tmp_path / "model.safetensors", tmp_path / "night shift", f"{tmp_path / 'all results' / 'line 1'}/")
    return run("predict_folder.sh", *arguments, *flags, stubs=stubs, NOTICE_HOOK=str(stubs / "hook"), **variables)


def read_log(tmp_path: Path) -> str:
    return (tmp_path / "all results" / "line 1.log").read_text()


def test_predict_folder_passes_paths_with_spaces_and_further_flags_on(tmp_path: Path, stubs: Path) -> None:
    predict_folder(tmp_path, stubs, "--classes", "1,long scratch")
    out = tmp_path / "all results" / "line 1"
    expected = ["predict", f"{tmp_path}/model.safetensors", f"{tmp_path}/night shift", "--out", str(out)]
    assert calls(stubs, "defectseg") == [[*expected, "--classes", "1,long scratch"]]


def test_predict_folder_logs_what_defectseg_says_and_dates_its_own_lines(tmp_path: Path, stubs: Path) -> None:
    result = predict_folder(tmp_path, stubs)
    start, said, end = read_log(tmp_path).splitlines()
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d start: .*/night shift", start)
    assert said == "from defectseg"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d done", end)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize(
    ("exit_code", "line", "somebody_has_to_look"),
    [
        (0, "done", False),
        (1, "failed with exit code 1", True),
        (2, "wrong settings", True),
        (3, "done, but not all is well", True),
        (4, "could not go on", True),
        (10, "defects found: see {out}/images.csv and {out}/overlays", True),
        (130, "interrupted; the next run goes on from here", False),
        (137, "failed with exit code 137", True),
    ],
)
def test_predict_folder_tells_what_each_exit_code_means_and_ends_with_it(
    tmp_path: Path, stubs: Path, exit_code: int, line: str, somebody_has_to_look: bool
) -> None:
    result = predict_folder(tmp_path, stubs, exit_code=exit_code)
    expected = line.format(out=tmp_path / "all results" / "line 1")
    assert result.returncode == exit_code
    assert read_log(tmp_path).splitlines()[-1][20:].startswith(expected)
    notices = calls(stubs, "hook")
    assert [notice[0].startswith(expected) for notice in notices] == [True] * somebody_has_to_look


@pytest.mark.parametrize("code", [3, 10])
@pytest.mark.parametrize("image_id", ["a.png", '"a, ""b"",.png"'])
@pytest.mark.parametrize("unreadable", [False, True])
@pytest.mark.parametrize("status", ["blank", "clean"])
def test_predict_folder_tells_of_unreadable_and_blank_images_beside_defects(
    tmp_path: Path, stubs: Path, code: int, image_id: str, unreadable: bool, status: str
) -> None:
    out = tmp_path / "all results" / "line 1"
    out.mkdir(parents=True)
    rows = [f"{image_id},{status},8,8,,0,0,0.0", "b.png,defect,8,8,blank,1,4,6.25"]
    (out / "images.csv").write_text("\n".join(["ImageId,status,height,width,classes,regions", *rows, ""]))
    (out / "errors.csv").write_text("ImageId,path,error\n" + "torn.png,in/torn.png,cut short\n" * unreadable)
    predict_folder(tmp_path, stubs, exit_code=code)
    (notice,) = (words[0] for words in calls(stubs, "hook"))
    assert ("defects found" in notice) == (code == 10)
    assert (f"are unreadable: see {out}/errors.csv" in notice) == unreadable
    assert (f"blank: see {out}/images.csv" in notice) == (status == "blank")


def test_predict_folder_without_a_hook_logs_only(tmp_path: Path, stubs: Path) -> None:
    put_stub(stubs, "defectseg", "exit 4")
    result = run("predict_folder.sh", "m", tmp_path, tmp_path / "out", stubs=stubs)
    assert result.returncode == 4
    assert "could not go on" in (tmp_path / "out.log").read_text()


def test_predict_folder_logs_a_hook_that_fails_and_keeps_the_exit_code(tmp_path: Path, stubs: Path) -> None:
    put_stub(stubs, "defectseg", "exit 3")
    put_stub(stubs, "hook", "echo no mail server; exit 75")
    result = run("predict_folder.sh", "m", tmp_path, tmp_path / "out", stubs=stubs, NOTICE_HOOK="hook")
    assert result.returncode == 3
    assert (tmp_path / "out.log").read_text().splitlines()[-2] == "no mail server"
    assert "the notice could not be sent by hook" in (tmp_path / "out.log").read_text()


def test_predict_folder_says_that_the_program_is_missing(tmp_path: Path, stubs: Path) -> None:
    result = run("predict_folder.sh", "m", tmp_path, tmp_path / "out", stubs=stubs, DEFECTSEG=str(stubs / "absent"))
    assert result.returncode == 127
    assert "failed with exit code 127" in (tmp_path / "out.log").read_text()


def test_predict_folder_skips_while_the_previous_run_still_goes(tmp_path: Path, stubs: Path) -> None:
    lock = tmp_path / "all results" / "line 1.lock"
    lock.parent.mkdir()
    holder = subprocess.Popen(["flock", str(lock), "sleep", "60"], start_new_session=True)
    try:
        while subprocess.run(["flock", "--nonblock", str(lock), "true"], check=False).returncode == 0:
            time.sleep(0.02)
        result = predict_folder(tmp_path, stubs)
    finally:
        os.killpg(holder.pid, signal.SIGKILL)
        holder.wait()
    assert result.returncode == 0
    assert read_log(tmp_path)[20:] == "skipped: the previous run still goes\n"
    assert calls(stubs, "defectseg") == []


def test_predict_folder_runs_again_when_the_previous_run_has_ended(tmp_path: Path, stubs: Path) -> None:
    predict_folder(tmp_path, stubs)
    predict_folder(tmp_path, stubs)
    assert len(calls(stubs, "defectseg")) == 2


def test_predict_folder_keeps_no_lock_for_what_outlives_it(tmp_path: Path, stubs: Path) -> None:
    put_stub(stubs, "defectseg", "sleep 60 >/dev/null 2>&1 & echo $!")
    run("predict_folder.sh", "m", tmp_path, tmp_path / "out", stubs=stubs)
    straggler = int((tmp_path / "out.log").read_text().splitlines()[1])
    try:
        assert subprocess.run(["flock", "--nonblock", tmp_path / "out.lock", "true"], check=False).returncode == 0
    finally:
        os.kill(straggler, signal.SIGKILL)


def test_predict_folder_logs_an_interruption_after_defectseg_has_stopped(tmp_path: Path, stubs: Path) -> None:
    put_stub(stubs, "defectseg", "trap 'echo cleaned up; exit 130' TERM; echo ready; while :; do sleep 0.05; done")
    log = tmp_path / "out.log"
    command = [str(SCRIPTS / "predict_folder.sh"), "m", str(tmp_path), str(tmp_path / "out")]
    environment = {"PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}"}
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 30
        while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 130
    lines = log.read_text().splitlines()
    assert lines[-2] == "cleaned up"
    assert lines[-1].endswith("interrupted; the next run goes on from here")


@pytest.mark.parametrize("script", ["predict_folder.sh", "train_severstal.sh", "train_slurm.sh"])
def test_a_job_without_arguments_shows_its_usage(script: str, stubs: Path) -> None:
    result = run(script, stubs=stubs)
    assert result.returncode == 2
    assert result.stderr.startswith(("usage: " if script != "train_slurm.sh" else "usage: sbatch ") + script)


# train_severstal.sh

TRAINER = """
case "$1 $2" in
    "data check") mkdir -p "$5" && echo "${FOUND:-}" >"$5/check.json" ;;
    "data split") touch "$3/split.csv" ;;
    train*) mkdir -p "$RUN" && touch "$RUN/model.safetensors" ;;
    evaluate*) mkdir -p "$RUN/evaluation" && touch "$RUN/evaluation/report.html" ;;
esac
[ "$1 $2" != "${FAIL_AT:-}" ] || exit 3
"""


@pytest.fixture
def job(tmp_path: Path, stubs: Path) -> tuple[Path, Path]:
    """A data folder and a run folder, and a stub that leaves the files of each command."""
    put_stub(stubs, "defectseg", TRAINER)
    data = tmp_path / "line 1"
    data.mkdir()
    return data, tmp_path / "run 1"


def train_severstal(job: tuple[Path, Path], stubs: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    return run("train_severstal.sh", *job, stubs=stubs, RUN=str(job[1]), **variables)


def test_train_severstal_checks_splits_trains_and_evaluates(job: tuple[Path, Path], stubs: Path) -> None:
    data, out = map(str, job)
    assert train_severstal(job, stubs).returncode == 0
    common = ["--data", data, "--device", "auto"]
    assert calls(stubs, "defectseg") == [
        ["data", "check", data, "--out", f"{out}.check", "--overwrite"],
        ["data", "split", data],
        ["train", "severstal", *common, "--out", out, "--fold", "0"],
        ["evaluate", out, *common, "--subset", "val", "--out", f"{out}/evaluation"],
    ]


def test_train_severstal_takes_its_settings_from_the_environment(job: tuple[Path, Path], stubs: Path) -> None:
    train_severstal(job, stubs, RECIPE="severstal-small", ENCODER_WEIGHTS="my weights.pth", FOLD="3", DEVICE="cpu")
    train = calls(stubs, "defectseg")[2]
    assert train[1] == "severstal-small"
    assert train[4:6] == ["--device", "cpu"]
    assert train[-4:] == ["--fold", "3", "--encoder-weights", "my weights.pth"]


@pytest.mark.parametrize(
    ("errors", "leaks", "goes_on"), [(0, 0, True), (1, 0, False), (0, 2, False), (10, 0, False), (0, 10, False)]
)
def test_train_severstal_stops_where_the_data_are_wrong_but_not_for_mere_duplicates(
    job: tuple[Path, Path], stubs: Path, errors: int, leaks: int, goes_on: bool
) -> None:
    counts = {"counts": {"errors": errors, "warnings": 0, "duplicates": 3, "leaks": leaks}, "leaks": []}
    result = train_severstal(job, stubs, FAIL_AT="data check", FOUND=json.dumps(counts, indent=2))
    assert result.returncode == (0 if goes_on else 3)
    assert [call[0] for call in calls(stubs, "defectseg")][1:] == (["data", "train", "evaluate"] if goes_on else [])


def test_train_severstal_stops_where_the_check_cannot_say_what_is_wrong(job: tuple[Path, Path], stubs: Path) -> None:
    assert train_severstal(job, stubs, FAIL_AT="data check").returncode == 3


def test_train_severstal_scores_a_model_that_could_not_read_some_images(job: tuple[Path, Path], stubs: Path) -> None:
    assert train_severstal(job, stubs, FAIL_AT="train severstal").returncode == 0
    assert calls(stubs, "defectseg")[-1][0] == "evaluate"


def test_train_severstal_keeps_an_existing_split(job: tuple[Path, Path], stubs: Path) -> None:
    (job[0] / "split.csv").touch()
    train_severstal(job, stubs)
    assert [call[0] for call in calls(stubs, "defectseg")] == ["data", "train", "evaluate"]


def test_train_severstal_goes_on_with_what_was_begun(job: tuple[Path, Path], stubs: Path) -> None:
    data, out = job
    out.mkdir()
    (out / "request.json").touch()
    train_severstal(job, stubs, FOLD="2", ENCODER_WEIGHTS="weights.pth")
    expected = ["train", "--data", str(data), "--device", "auto", "--out", str(out), "--resume"]
    assert calls(stubs, "defectseg")[2] == expected


def test_train_severstal_does_not_train_or_score_again_what_is_finished(job: tuple[Path, Path], stubs: Path) -> None:
    train_severstal(job, stubs)
    train_severstal(job, stubs)
    assert [call[0] for call in calls(stubs, "defectseg")] == ["data", "data", "train", "evaluate", "data"]


def test_train_severstal_starts_an_interrupted_evaluation_over(job: tuple[Path, Path], stubs: Path) -> None:
    leftover = job[1] / "evaluation" / "overlays" / "a.jpg"
    leftover.parent.mkdir(parents=True)
    leftover.touch()
    (job[1] / "model.safetensors").touch()
    train_severstal(job, stubs)
    assert [call[0] for call in calls(stubs, "defectseg")] == ["data", "data", "evaluate"]
    assert not leftover.exists()


# train_slurm.sh


def train_slurm(tmp_path: Path, stubs: Path, trainer: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run the job; `trainer` is what happens in the place of the training."""
    put_stub(stubs, "scontrol", '[ "$1" != show ] || echo node1')
    put_stub(stubs, "srun", trainer)
    variables = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"} | variables
    arguments = (tmp_path / "data", tmp_path / "run", "severstal", "--fold", "1")
    return run("train_slurm.sh", *arguments, stubs=stubs, RUN=str(tmp_path / "run"), **variables)


INTERRUPTED = 'mkdir -p "$RUN"; touch "$RUN/request.json" "$RUN/last.ckpt"; exit 1'
ENDED = 'mkdir -p "$RUN"; touch "$RUN/request.json" "$RUN/last.ckpt" "$RUN/model.safetensors"; exit 1'


def test_train_slurm_starts_and_goes_on_when_it_is_queued_again(tmp_path: Path, stubs: Path) -> None:
    assert train_slurm(tmp_path, stubs, INTERRUPTED).returncode == 1
    assert calls(stubs, "scontrol")[-1] == ["requeue", "7"]
    assert train_slurm(tmp_path, stubs, ENDED).returncode == 0, "some images could not be read"
    assert train_slurm(tmp_path, stubs, "exit 1").returncode == 0, "it has ended"
    first, second = calls(stubs, "srun")
    common = ["train", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run"]
    assert first[-8:] == [*common, "severstal", "--fold", "1"]
    assert second[-6:] == [*common, "--resume"]
    assert [call[0] for call in calls(stubs, "scontrol")].count("requeue") == 1


@pytest.mark.parametrize(("trainer", "restarts"), [("exit 1", "0"), (INTERRUPTED, "20")], ids=["failed", "too often"])
def test_train_slurm_is_not_queued_again_for_ever(tmp_path: Path, stubs: Path, trainer: str, restarts: str) -> None:
    (tmp_path / "run").mkdir()
    assert train_slurm(tmp_path, stubs, trainer, SLURM_RESTART_COUNT=restarts).returncode == 1
    assert ["requeue", "7"] not in calls(stubs, "scontrol")


# _environment.sh

INTERPRETER = """
case "$*" in
    "-m venv --clear "*) mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
esac
"""
UV = """
[ "$1" != venv ] || { mkdir -p "$4/bin"; cp "$0" "$4/bin/python"; }
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone that holds only the script and a pyproject.toml; its path has a space."""
    root = tmp_path / "my clone"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "_environment.sh", root / "scripts")
    (root / "pyproject.toml").write_text("[project]\n")
    return root


def make_environment(clone: Path, stubs: Path, extra: str) -> subprocess.CompletedProcess[str]:
    """Run `make_environment EXTRA` and show the first folder of PATH; no programs but the stubs and a few tools."""
    for name in ("bash", "cmp", "cp", "dirname", "mkdir", "rm"):
        program = shutil.which(name)
        assert program is not None
        if not (stubs / name).exists():
            (stubs / name).symlink_to(program)
    command = f'set -euo pipefail; source "$0/scripts/_environment.sh"; make_environment {extra}; echo "${{PATH%%:*}}"'
    return subprocess.run(
        [stubs / "bash", "-c", command, clone],
        env={"PATH": str(stubs)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_environment_is_made_with_the_first_python_that_is_new_enough(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "python3", "exit 1")
    put_stub(stubs, "python3.12", INTERPRETER)
    result = make_environment(clone, stubs, "train")
    venv = clone / ".venv"
    assert (result.returncode, result.stdout) == (0, f"{venv}/bin\n")
    made = [call for call in calls(stubs, "python3.12") if call[0] == "-m"]
    assert made[0] == ["-m", "venv", "--clear", str(venv)]
    assert made[-1] == ["-m", "pip", "install", "--disable-pip-version-check", "--editable", ".[train]"]


def test_environment_needs_python_3_11(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "python3", "exit 1")
    result = make_environment(clone, stubs, "dev")
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1].startswith("error: no Python 3.11 or newer on PATH.")
    assert not (clone / ".venv").exists()


def test_environment_uses_uv_where_it_is_installed(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "uv", UV)
    put_stub(stubs, "python3", INTERPRETER)
    assert make_environment(clone, stubs, "dev").returncode == 0
    venv, install = calls(stubs, "uv")
    assert venv == ["venv", "--python", ">=3.11", str(clone / ".venv")]
    assert install == ["pip", "install", "--python", f"{clone}/.venv/bin/python", "--editable", ".[dev]"]
    assert calls(stubs, "python3") == []


def test_environment_is_left_alone_until_pyproject_changes(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "uv", UV)
    make_environment(clone, stubs, "dev")
    make_environment(clone, stubs, "dev")
    assert make_environment(clone, stubs, "train").stdout == f"{clone}/.venv/bin\n"  # dev includes train
    assert len(calls(stubs, "uv")) == 2
    (clone / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    make_environment(clone, stubs, "dev")
    assert [call[:2] for call in calls(stubs, "uv")[2:]] == [["pip", "install"]]


def test_environment_for_the_demo_is_not_enough_for_the_tests(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "uv", UV)
    make_environment(clone, stubs, "train")
    make_environment(clone, stubs, "dev")
    assert [call[0] for call in calls(stubs, "uv")] == ["venv", "pip", "pip"]


def test_environment_counts_as_made_only_when_the_installation_ended_well(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "uv", UV + '[ "$1" != pip ] || exit 1')
    assert make_environment(clone, stubs, "dev").returncode == 1
    assert make_environment(clone, stubs, "dev").returncode == 1
    assert [call[0] for call in calls(stubs, "uv")] == ["venv", "pip", "pip"]


@pytest.mark.parametrize("script", sorted(SCRIPTS.rglob("*.py")), ids=lambda path: path.name)
def test_each_benchmark_says_how_it_is_used(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out
