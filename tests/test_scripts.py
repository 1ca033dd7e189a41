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


@pytest.fixture
def out(tmp_path: Path, stubs: Path) -> Path:
    """The output folder of predict_folder.sh, which calls a hook for notices."""
    put_stub(stubs, "hook", "")
    return tmp_path / "all results" / "line 1"


def predict_folder(
    out: Path, stubs: Path, *flags: str, predict: str = "exit 0", **variables: str
) -> tuple[int, list[str]]:
    """Run the job; `predict` is what happens in the place of defectseg. The exit code and the lines of the log."""
    put_stub(stubs, "defectseg", f"echo from defectseg; {predict}")
    variables = {"NOTICE_HOOK": str(stubs / "hook")} | variables
    done = run("predict_folder.sh", "a model.xml", "night shift", f"{out}/", *flags, stubs=stubs, **variables)
    assert (done.stdout, done.stderr) == ("", "")
    return done.returncode, Path(f"{out}.log").read_text().splitlines()


def test_predict_folder_passes_its_arguments_on_and_dates_its_lines_in_the_log(out: Path, stubs: Path) -> None:
    for _ in range(2):
        code, lines = predict_folder(out, stubs, "--classes", "1,long scratch")
        assert code == 0
    expected = ["predict", "a model.xml", "night shift", "--out", str(out), "--classes", "1,long scratch"]
    assert calls(stubs, "defectseg") == [expected, expected], "the lock of an ended run is free"
    start, said, end = lines[3:]
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d start: night shift", start)
    assert said == "from defectseg"
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d done", end)


@pytest.mark.parametrize(
    ("exit_code", "line", "somebody_has_to_look"),
    [
        (0, "done", False),
        (1, "failed with exit code 1", True),
        (2, "wrong settings", True),
        (3, "done, but not all is well", True),
        (4, "could not go on", True),
        (10, "defects found: see {out}/index.html and {out}/images.csv", True),
        (130, "interrupted; the next run goes on from here", False),
        (137, "failed with exit code 137", True),
    ],
)
def test_predict_folder_tells_what_each_exit_code_means_and_ends_with_it(
    out: Path, stubs: Path, exit_code: int, line: str, somebody_has_to_look: bool
) -> None:
    code, lines = predict_folder(out, stubs, predict=f"exit {exit_code}")
    expected = line.format(out=out)
    assert code == exit_code
    assert lines[-1][20:].startswith(expected)
    assert [notice[0].startswith(expected) for notice in calls(stubs, "hook")] == [True] * somebody_has_to_look


@pytest.mark.parametrize("code", [3, 10])
@pytest.mark.parametrize(
    ("image_id", "status", "unreadable"),
    [("a.png", "clean", True), ("a.png", "blank", False), ('"a, ""b"",.png"', "blank", True)],
)
def test_predict_folder_tells_of_unreadable_and_blank_images_beside_defects(
    out: Path, stubs: Path, code: int, image_id: str, status: str, unreadable: bool
) -> None:
    out.mkdir(parents=True)
    rows = [f"{image_id},{status},8,8,,0,0,0.0", "b.png,defect,8,8,blank,1,4,6.25"]
    (out / "images.csv").write_text("\n".join(["ImageId,status,height,width,classes,regions", *rows, ""]))
    (out / "errors.csv").write_text("ImageId,path,error\n" + "torn.png,in/torn.png,cut short\n" * unreadable)
    predict_folder(out, stubs, predict=f"exit {code}")
    (notice,) = (words[0] for words in calls(stubs, "hook"))
    assert ("defects found" in notice) == (code == 10)
    assert (f"are unreadable: see {out}/errors.csv" in notice) == unreadable
    assert (f"blank: see {out}/images.csv" in notice) == (status == "blank")


def test_predict_folder_without_a_hook_or_with_one_that_fails_logs_the_notice(out: Path, stubs: Path) -> None:
    code, lines = predict_folder(out, stubs, predict="exit 4", NOTICE_HOOK="")
    assert (code, "could not go on" in lines[-1]) == (4, True)
    put_stub(stubs, "broken", "echo no mail server; exit 75")
    code, lines = predict_folder(out, stubs, predict="exit 3", NOTICE_HOOK="broken")
    assert (code, lines[-2]) == (3, "no mail server")
    assert lines[-1].endswith("the notice could not be sent by broken")


def test_predict_folder_says_that_the_program_is_missing(out: Path, stubs: Path) -> None:
    code, lines = predict_folder(out, stubs, DEFECTSEG=str(stubs / "absent"))
    assert (code, "failed with exit code 127" in lines[-1]) == (127, True)


def test_predict_folder_skips_while_the_previous_run_still_goes(out: Path, stubs: Path) -> None:
    out.parent.mkdir()
    with subprocess.Popen(["flock", f"{out}.lock", "sleep", "60"], start_new_session=True) as holder:
        while subprocess.run(["flock", "--nonblock", f"{out}.lock", "true"], check=False).returncode == 0:
            time.sleep(0.02)
        code, lines = predict_folder(out, stubs)
        os.killpg(holder.pid, signal.SIGKILL)
    assert (code, [line[20:] for line in lines]) == (0, ["skipped: the previous run still goes"])
    assert calls(stubs, "defectseg") == []


def test_predict_folder_keeps_no_lock_for_what_outlives_it(out: Path, stubs: Path) -> None:
    _, lines = predict_folder(out, stubs, predict="sleep 60 >/dev/null 2>&1 & echo $!")
    try:
        assert subprocess.run(["flock", "--nonblock", f"{out}.lock", "true"], check=False).returncode == 0
    finally:
        os.kill(int(lines[2]), signal.SIGKILL)


def test_predict_folder_logs_an_interruption_after_defectseg_has_stopped(out: Path, stubs: Path) -> None:
    put_stub(stubs, "defectseg", "trap 'echo cleaned up; exit 130' TERM; echo ready; while :; do sleep 0.05; done")
    log = Path(f"{out}.log")
    environment = {"PATH": f"{stubs}{os.pathsep}{os.environ['PATH']}"}
    command = [str(SCRIPTS / "predict_folder.sh"), "m", "in", str(out)]
    with subprocess.Popen(command, env=environment, start_new_session=True) as process:
        deadline = time.monotonic() + 30
        while not (log.exists() and "ready" in log.read_text()) and time.monotonic() < deadline:
            time.sleep(0.02)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(timeout=30) == 130
    stopped, told = log.read_text().splitlines()[-2:]
    assert (stopped, told[20:]) == ("cleaned up", "interrupted; the next run goes on from here")


@pytest.mark.parametrize("script", ["predict_folder.sh", "drift_results.sh", "train_severstal.sh", "train_slurm.sh"])
def test_a_job_without_arguments_shows_its_usage(script: str, stubs: Path) -> None:
    result = run(script, stubs=stubs)
    assert result.returncode == 2
    assert re.match(rf"usage: (sbatch )?{script}", result.stderr)


# drift_results.sh


@pytest.mark.parametrize(
    ("code", "said", "notice"),
    [
        (0, "No change: 24 new groups.", None),
        (
            11,
            "time group\nThe camera or the light changed. Darker.\nIt began.",
            "The camera or the light changed. Darker. ",
        ),
        (11, "More defects than usual in the last 20 groups.", "More defects than usual in the last 20 groups. "),
        (4, "error: the run is running.", "drift ended with exit code 4: see the end of {out}.log"),
        (130, "", None),
    ],
)
def test_drift_results_sends_the_verdict_and_ends_with_its_exit_code(
    tmp_path: Path, stubs: Path, code: int, said: str, notice: str | None
) -> None:
    out = tmp_path / "all drift"
    put_stub(stubs, "hook", "")
    put_stub(stubs, "defectseg", f"printf '{said}'; exit {code}")
    flags = ("night 1", "night 2", "--group", "coil[0-9]+")
    done = run("drift_results.sh", f"{out}/", *flags, stubs=stubs, NOTICE_HOOK=str(stubs / "hook"))
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")
    assert calls(stubs, "defectseg") == [["drift", *flags, "--out", str(out)]]
    assert said in Path(f"{out}.log").read_text()
    sent = [words[0] for words in calls(stubs, "hook")]
    if notice is None:
        assert sent == []
    else:
        assert sent == [notice.format(out=out) if code == 4 else f"{notice}See {out}/drift.html"]


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


def train_severstal(job: tuple[Path, Path], stubs: Path, **variables: str) -> tuple[int, list[list[str]]]:
    """Run the job. The exit code and the calls of defectseg, also of earlier runs."""
    done = run("train_severstal.sh", *job, stubs=stubs, RUN=str(job[1]), **variables)
    return done.returncode, calls(stubs, "defectseg")


def test_train_severstal_checks_splits_trains_and_evaluates_what_is_not_done(
    job: tuple[Path, Path], stubs: Path
) -> None:
    data, out = map(str, job)
    common = ["--data", data, "--device", "auto"]
    check = ["data", "check", data, "--out", f"{out}.check", "--overwrite"]
    evaluate = ["evaluate", out, *common, "--subset", "val", "--out", f"{out}/evaluation"]
    done = [
        check,
        ["data", "split", data],
        ["train", "severstal", *common, "--out", out, "--fold", "0"],
        evaluate,
    ]
    assert train_severstal(job, stubs) == (0, done)
    assert train_severstal(job, stubs) == (0, [*done, check])
    (job[1] / "evaluation" / "report.html").rename(job[1] / "evaluation" / "a.jpg")
    assert train_severstal(job, stubs) == (0, [*done, check, check, evaluate])
    assert not (job[1] / "evaluation" / "a.jpg").exists(), "an interrupted evaluation starts over"


def test_train_severstal_takes_its_settings_from_the_environment(job: tuple[Path, Path], stubs: Path) -> None:
    settings = {"RECIPE": "severstal-small", "ENCODER_WEIGHTS": "my weights.pth", "FOLD": "3", "DEVICE": "cpu"}
    train = train_severstal(job, stubs, **settings)[1][2]
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
    code, called = train_severstal(job, stubs, FAIL_AT="data check", FOUND=json.dumps(counts, indent=2))
    assert code == (0 if goes_on else 3)
    assert [call[0] for call in called][1:] == (["data", "train", "evaluate"] if goes_on else [])


def test_train_severstal_stops_if_the_check_cannot_say_what_is_wrong(job: tuple[Path, Path], stubs: Path) -> None:
    assert train_severstal(job, stubs, FAIL_AT="data check")[0] == 3


def test_train_severstal_scores_a_model_that_could_not_read_some_images(job: tuple[Path, Path], stubs: Path) -> None:
    code, called = train_severstal(job, stubs, FAIL_AT="train severstal")
    assert (code, called[-1][0]) == (0, "evaluate")


def test_train_severstal_goes_on_with_what_was_begun(job: tuple[Path, Path], stubs: Path) -> None:
    data, out = job
    out.mkdir()
    (out / "request.json").touch()
    train = train_severstal(job, stubs, FOLD="2", ENCODER_WEIGHTS="weights.pth")[1][2]
    assert train == ["train", "--data", str(data), "--device", "auto", "--out", str(out), "--resume"]


# train_slurm.sh


def train_slurm(tmp_path: Path, stubs: Path, trainer: str, **variables: str) -> int:
    """Run the job; `trainer` is what happens in the place of the training."""
    put_stub(stubs, "scontrol", '[ "$1" != show ] || echo node1')
    put_stub(stubs, "srun", trainer)
    variables = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_JOB_NUM_NODES": "2", "SLURM_JOB_ID": "7"} | variables
    arguments = (tmp_path / "data", tmp_path / "run", "severstal", "--fold", "1")
    return run("train_slurm.sh", *arguments, stubs=stubs, RUN=str(tmp_path / "run"), **variables).returncode


INTERRUPTED = 'mkdir -p "$RUN"; touch "$RUN/request.json" "$RUN/last.ckpt"; exit 1'
ENDED = 'mkdir -p "$RUN"; touch "$RUN/request.json" "$RUN/last.ckpt" "$RUN/model.safetensors"; exit 1'


def test_train_slurm_starts_and_goes_on_when_it_is_queued_again(tmp_path: Path, stubs: Path) -> None:
    assert train_slurm(tmp_path, stubs, INTERRUPTED) == 1
    assert calls(stubs, "scontrol")[-1] == ["requeue", "7"]
    assert train_slurm(tmp_path, stubs, ENDED) == 0, "some images could not be read"
    assert train_slurm(tmp_path, stubs, "exit 1") == 0, "it has ended"
    first, second = calls(stubs, "srun")
    common = ["train", "--data", f"{tmp_path}/data", "--out", f"{tmp_path}/run"]
    assert first[-8:] == [*common, "severstal", "--fold", "1"]
    assert second[-6:] == [*common, "--resume"]
    assert [call[0] for call in calls(stubs, "scontrol")].count("requeue") == 1


@pytest.mark.parametrize(("trainer", "restarts"), [("exit 1", "0"), (INTERRUPTED, "20")], ids=["failed", "too often"])
def test_train_slurm_is_not_queued_again_for_ever(tmp_path: Path, stubs: Path, trainer: str, restarts: str) -> None:
    (tmp_path / "run").mkdir()
    assert train_slurm(tmp_path, stubs, trainer, SLURM_RESTART_COUNT=restarts) == 1
    assert ["requeue", "7"] not in calls(stubs, "scontrol")


# predict_slurm.sh


def test_predict_slurm_gives_each_task_its_shard_and_folder_and_then_merges_them(tmp_path: Path, stubs: Path) -> None:
    out = tmp_path / "all results"
    put_stub(stubs, "defectseg", '[ "$1" = merge ] || mkdir -p "$7"')
    for task in ("1", "2"):
        done = run(
            *("predict_slurm.sh", "a model.xml", "night shift", f"{out}/", "--classes", "1,long scratch"),
            stubs=stubs,
            SLURM_ARRAY_TASK_ID=task,
        )
        assert (done.returncode, done.stderr) == (0, "")
    assert run("predict_slurm.sh", "--merge", f"{out}/", "--overwrite", stubs=stubs).returncode == 0

    flags = ("--classes", "1,long scratch")
    assert calls(stubs, "defectseg") == [
        ["predict", "a model.xml", "night shift", "--shard", "auto", "--out", f"{out}/shards/1", *flags],
        ["predict", "a model.xml", "night shift", "--shard", "auto", "--out", f"{out}/shards/2", *flags],
        ["merge", f"{out}/shards/1", f"{out}/shards/2", "--out", f"{out}/all", "--overwrite"],
    ]


@pytest.mark.parametrize(("code", "ended"), [(0, 0), (3, 0), (10, 0), (1, 1), (2, 2), (4, 4), (130, 130)])
def test_predict_slurm_fails_a_task_only_if_its_shard_is_not_done(stubs: Path, code: int, ended: int) -> None:
    put_stub(stubs, "defectseg", f"exit {code}")
    done = run("predict_slurm.sh", "m.xml", "in", "out", stubs=stubs, SLURM_ARRAY_TASK_ID="1")
    assert done.returncode == ended
    assert run("predict_slurm.sh", "--merge", "out", stubs=stubs).returncode == code, "here all of them count"


@pytest.mark.parametrize("words", [[], ["m.xml", "in", "out"], ["--merge"]])
def test_predict_slurm_outside_of_an_array_says_how_it_is_used(stubs: Path, words: list[str]) -> None:
    put_stub(stubs, "defectseg", "exit 0")
    done = run("predict_slurm.sh", *words, stubs=stubs)
    assert (done.returncode, calls(stubs, "defectseg")) == (2, [])
    assert "usage: sbatch --array=1-8 predict_slurm.sh MODEL IMAGES OUT" in done.stderr


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
def clone(tmp_path: Path, stubs: Path) -> Path:
    """A clone that holds only the script and a pyproject.toml; its path has a space. A few tools are on PATH."""
    root = tmp_path / "my clone"
    (root / "scripts").mkdir(parents=True)
    shutil.copy(SCRIPTS / "_environment.sh", root / "scripts")
    (root / "pyproject.toml").write_text("[project]\n")
    for name in ("bash", "cmp", "cp", "dirname", "mkdir", "rm"):
        (stubs / name).symlink_to(shutil.which(name) or "")
    return root


def make_environment(clone: Path, stubs: Path, extra: str) -> subprocess.CompletedProcess[str]:
    """Run `make_environment EXTRA` and show the first folder of PATH; no programs but the stubs and a few tools."""
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
    refused = make_environment(clone, stubs, "train")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith("error: no Python 3.11 or newer on PATH.")
    assert not (clone / ".venv").exists()
    put_stub(stubs, "python3.12", INTERPRETER)
    result = make_environment(clone, stubs, "train")
    assert (result.returncode, result.stdout) == (0, f"{clone}/.venv/bin\n")
    made = [call for call in calls(stubs, "python3.12") if call[0] == "-m"]
    assert made[0] == ["-m", "venv", "--clear", f"{clone}/.venv"]
    assert made[-1] == ["-m", "pip", "install", "--disable-pip-version-check", "--editable", ".[train]"]


def test_environment_uses_uv_and_is_left_alone_until_something_is_missing(clone: Path, stubs: Path) -> None:
    put_stub(stubs, "uv", UV + '[ "$1" != pip ] || exit 1')
    put_stub(stubs, "python3", INTERPRETER)
    assert make_environment(clone, stubs, "train").returncode == 1
    put_stub(stubs, "uv", UV)
    install = ["pip", "install", "--python", f"{clone}/.venv/bin/python", "--editable"]
    expected = [["venv", "--python", ">=3.11", f"{clone}/.venv"], [*install, ".[train]"]]
    for extra, added in [
        ("train", [[*install, ".[train]"]]),  # the first installation did not end well
        ("train", []),
        ("dev", [[*install, ".[dev]"]]),
        ("train", []),  # dev includes train
    ]:
        assert make_environment(clone, stubs, extra).stdout == f"{clone}/.venv/bin\n"
        expected += added
        assert calls(stubs, "uv") == expected
    (clone / "pyproject.toml").write_text("[project]\nname = 'other'\n")
    make_environment(clone, stubs, "dev")
    assert calls(stubs, "uv") == [*expected, [*install, ".[dev]"]]
    assert calls(stubs, "python3") == []


def test_check_lowest_installs_each_lower_bound_and_cleans_up(stubs: Path, tmp_path: Path) -> None:
    put_stub(stubs, "interpreter", f'[ "$1" != - ] || exec "{sys.executable}" "$@"')
    copied, temporary = tmp_path / "lowest.txt", tmp_path / "temporary"
    temporary.mkdir()
    put_stub(
        stubs,
        "uv",
        f"""
[ "$1" != venv ] || {{ mkdir -p "$4/bin"; ln -s "{stubs}/interpreter" "$4/bin/python"; }}
[ "$1 ${{5-}}" != "pip --requirement" ] || cp "$6" "{copied}"
""",
    )
    done = run("check_lowest", "-k", "rle", stubs=stubs, TMPDIR=str(temporary))
    assert done.returncode == 0, done.stderr
    wanted = copied.read_text().splitlines()
    assert {"albumentations==2.0.8", "six==1.16"} <= set(wanted), "an upper bound is left out"
    assert [line for line in wanted if not re.fullmatch(r"[\w-]+(\[\w+\])?==[\d.]+", line)] == []
    assert calls(stubs, "interpreter")[-1][-2:] == ["-k", "rle"]
    assert list(temporary.iterdir()) == []


OWN = [path for path in sorted(SCRIPTS.rglob("*.py")) if path.parent.name != "rivals"]


@pytest.mark.parametrize("script", OWN, ids=lambda path: path.name)
def test_each_benchmark_says_how_it_is_used(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    monkeypatch.syspath_prepend(str(script.parent))
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(script), run_name="__main__")
    assert ended.value.code in (0, None)
    assert "usage:" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("entries", "code", "told"),
    [
        ([{"name": "a", "vulns": []}, {"name": "b", "vulns": []}], 0, "no known vulnerability in 2 packages"),
        (
            [{"name": "a", "vulns": []}, {"name": "b", "skip_reason": "not found"}],
            77,
            "did not reach its data for 1 of 2",
        ),
        (None, 77, "did not reach its data for 2 of 2 packages"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "CVE-1"}]}, {"name": "b", "skip_reason": ""}], 1, "1 of 2"),
    ],
    ids=["none is vulnerable", "one is unknown to it", "it could not run", "one is vulnerable, one unknown"],
)
def test_an_audit_passes_only_if_every_package_was_looked_up(
    tmp_path: Path, entries: list[dict[str, object]] | None, code: int, told: str
) -> None:
    answer = (
        ""
        if entries is None
        else f"open(sys.argv[sys.argv.index('--output') + 1], 'w').write({json.dumps({'dependencies': entries})!r})"
    )
    (tmp_path / "pip_audit.py").write_text(
        f"import sys\nassert open(sys.argv[sys.argv.index('--requirement') + 1]).read() == 'a==1\\nb==2'\n{answer}\n"
    )
    installed = [{"metadata": {"name": name, "version": version}} for name, version in (("a", "1"), ("b", "2"))]
    own = {"metadata": {"name": "defectseg", "version": "0"}}
    (tmp_path / "report.json").write_text(json.dumps({"install": [*installed, own]}))
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "audit.py"), str(tmp_path / "report.json")],
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == code, done.stderr
    assert told in done.stdout.splitlines()[-1]
