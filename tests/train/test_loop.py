"""The loop: what a log line says, the time budget, stages, averages, and what goes wrong in a step."""

import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from defectseg.config import load_recipe
from defectseg.errors import ResourceError
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model import losses
from defectseg.model.bundle import read_bundle
from defectseg.model.info import Thresholds
from defectseg.model.losses import segmentation_loss
from defectseg.train import loop
from defectseg.train import run as run_module
from defectseg.train.checkpoint import Run
from defectseg.train.curves import read_history
from defectseg.train.dataset import CropSampler
from defectseg.train.loop import describe
from defectseg.train.schedule import rate_factor
from defectseg.train.train import TrainResult, train
from defectseg.train.validation import Validation
from defectseg.train.weights import offer, tidy

Asked = Callable[..., dict[str, Any]]
Start = Callable[..., TrainResult]
GoOn = Callable[..., list[TrainResult]]

# What people read


def test_the_log_line_has_losses_scores_and_a_mark_for_the_best() -> None:
    figures: dict[str, Any] = {"epoch": 3, "loss": 0.12345, "data_s": 1.0, "step_s": 20.0}
    assert describe(figures, 9, None) == "epoch 3/9: loss 0.123, data 1.0 s, steps 20.0 s"
    figures["val"] = {"kaggle_dice": 0.91234, "all_empty": 0.85, "positive_dice": 0.5, "miou": 0.4}
    assert describe(figures, 9, 3) == (
        "epoch 3/9: loss 0.123, positive Dice 0.500, Kaggle Dice 0.9123 (all empty 0.8500) *, data 1.0 s, steps 20.0 s"
    )
    figures["val"] |= {"positive_dice": None}
    assert "positive Dice none, Kaggle Dice 0.9123 (all empty 0.8500), data" in describe(figures, 9, 2)


# The time budget: a clock that goes on by 10 s a step, 4 steps an epoch


@dataclass
class Clock:
    now_s: float = 1000.0
    epochs_planned: list[int] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now_s

    def tick(self, done: int, total: int, text: str = "") -> None:
        self.now_s += 10.0
        self.epochs_planned.append(total // 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


@pytest.fixture
def timed(asked: Asked, clock: Clock) -> Start:
    """Trains in a single run on that clock, with thresholds given, so that none need be searched."""

    def run(*overrides: str, **changes: Any) -> TrainResult:
        given = {"thresholds": Thresholds.default(4), "progress": clock.tick}
        (result,) = train(**asked(*overrides, **{**given, **changes}))
        return result

    return run


def _elapsed_s(out: Path) -> list[float]:
    return [entry["elapsed_s"] for entry in read_history(out / "metrics.jsonl")]


@pytest.mark.parametrize("interrupted", [False, True])
def test_epochs_are_reduced_to_fit_the_time_also_when_resumed(
    timed: Start, out: Path, clock: Clock, go_on: GoOn, interrupted: bool
) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        clock.tick(done, total, text)
        if done == 6:
            raise KeyboardInterrupt

    # 130 s: after the first epoch of 40 s there is time for 2.25 more.
    settings = ("training.epochs=9", f"training.max_minutes={130 / 60}")
    if interrupted:
        with pytest.raises(KeyboardInterrupt):
            timed(*settings, progress=interrupt)
        clock.now_s = 5.0  # another session, another clock
        go_on(progress=clock.tick)
    else:
        timed(*settings)
        assert clock.epochs_planned == [9] * 4 + [3] * 8
    assert _elapsed_s(out) == [40.0, 80.0, 120.0]
    # Step 11 of 12: the cosine ends where it would have with 3 epochs planned from the start.
    rates = load_recipe(str(out / "config.yaml")).optimizer
    last = read_history(out / "metrics.jsonl")[-1]
    assert last["lr_decoder"] == pytest.approx(rates.decoder_lr * rate_factor(11, 12, rates))


def test_training_stops_within_an_epoch_when_time_is_up(timed: Start, out: Path, clock: Clock) -> None:
    result = timed("training.epochs=9", "training.max_minutes=0.4")
    (only,) = read_history(out / "metrics.jsonl")
    assert len(clock.epochs_planned) == 3, "24 s end after the third step of 10 s"
    assert only["epoch"] == 1
    assert "val" in only, "what there is gets validated"
    assert result.model.is_file()


def test_epochs_between_validations_are_not_validated_but_the_last_is(timed: Start, out: Path) -> None:
    timed("training.epochs=3", "training.validate_every=2")
    assert ["val" in entry for entry in read_history(out / "metrics.jsonl")] == [False, True, True]


def test_a_run_without_time_for_a_validation_still_ends_with_a_model(
    timed: Start, out: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slowly(run: Run) -> None:
        tidy(run)
        clock.now_s += 1000.0  # the disk is slow, and the next validation was to come an epoch later

    monkeypatch.setattr(loop, "tidy", slowly)
    result = timed("training.epochs=4", "training.validate_every=2", "training.max_minutes=10")
    assert len(read_history(out / "metrics.jsonl")) == 1
    assert read_bundle(result.model)[0].metrics["best_epoch"] == 1


# What goes wrong in a step


def test_a_loss_that_is_not_finite_names_the_images(timed: Start) -> None:
    with pytest.raises(
        ResourceError, match=r"the loss became (nan|inf) at step \d+, on (sheet_\d+\.jpg(, )?){4}\. Low"
    ):
        timed("optimizer.encoder_lr=1e30", "optimizer.decoder_lr=1e30")


@pytest.mark.parametrize(
    ("failure", "told", "message"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), ResourceError, r"cpu: out of memory\. .*fit_memory"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error."), ResourceError, r"pid 7.*shm-size"),
        (RuntimeError("a bug"), RuntimeError, "a bug"),
    ],
    ids=["memory", "worker", "bug"],
)
def test_memory_errors_are_explained_and_bugs_are_not_hidden(
    timed: Start, monkeypatch: pytest.MonkeyPatch, failure: Exception, told: type[Exception], message: str
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise failure

    monkeypatch.setattr(loop, "segmentation_loss", fail)
    with pytest.raises(told, match=message):
        timed()


def test_an_epoch_is_saved_before_it_is_validated(timed: Start, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*args: Any, **kwargs: Any) -> None:
        raise ConnectionError("killed while validating")

    monkeypatch.setattr(loop, "validate", killed)
    with pytest.raises(ConnectionError):
        timed()
    state = _checkpoint(out)["state"]
    assert (state["epoch"], state["batch"], state["step"]) == (0, 4, 4)


# The second stage


def _checkpoint(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return content


@dataclass(frozen=True)
class Step:
    size: tuple[int, ...]  # (N, H, W)
    share_done: float


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """What the loss is called with in each step of training."""
    seen: list[Step] = []

    def spy(*args: Any, share_done: float, unknown: torch.Tensor) -> Any:
        assert unknown.shape == args[1].shape
        seen.append(Step((len(args[0]), *args[0].shape[2:]), share_done))
        return segmentation_loss(*args, share_done=share_done, unknown=unknown)

    monkeypatch.setattr(loop, "segmentation_loss", spy)
    return seen


def test_the_second_stage_takes_its_own_crops_at_a_tenth_of_the_rate(
    timed: Start, out: Path, steps: list[Step]
) -> None:
    second = ("epochs=2", "crop_hw=[64,96]", "batch_size=3", "samples_per_epoch=9")
    told: list[tuple[int, int, str]] = []
    settings = ("optimizer.warmup=0.5", *(f"training.second_stage.{one}" for one in second))
    timed(*settings, progress=lambda done, total, text: told.append((done, total, text.split()[1])))
    assert [(done, total) for done, total, _ in told] == [(step, 2 * 4 + 2 * 3) for step in range(1, 15)]
    assert told[-1][2] == "4/4"
    # Two epochs of 16 crops in steps of 4, then two of 9 in steps of 3.
    assert [step.size for step in steps] == [(4, 64, 64)] * 8 + [(3, 64, 96)] * 6
    history = read_history(out / "metrics.jsonl")
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    rates = load_recipe(str(out / "config.yaml")).optimizer
    # The last step of each epoch: 3 and 7 of 8 with the warm-up, then 2 and 5 of 6 without one.
    factors = [rate_factor(step, 8, rates) for step in (3, 7)]
    factors += [0.1 * rate_factor(step, 6, rates, warms_up=False) for step in (2, 5)]
    assert [entry["lr_decoder"] for entry in history] == pytest.approx([rates.decoder_lr * one for one in factors])


def test_the_second_stage_has_whole_images_and_losses_and_sampler_follow_the_progress(
    timed: Start, out: Path, steps: list[Step], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[tuple[int, float, int]] = []
    begin = CropSampler.begin

    def listen(sampler: CropSampler, epoch: int, *, share_done: float = 0.0, start: int = 0) -> None:
        told.append((epoch, share_done, start))
        begin(sampler, epoch, share_done=share_done, start=start)

    monkeypatch.setattr(CropSampler, "begin", listen)
    timed("training.second_stage.epochs=1", "loss.lovasz_from=0.5")
    # Two epochs of four steps, then 18 images to train on, each once; two do not fill a step.
    assert steps == [Step((4, 64, 64), step / 8) for step in range(8)] + [Step((4, 64, 128), 1.0)] * 4
    assert told[-3:] == [(0, 0.0, 0), (1, 0.5, 0), (2, 1.0, 0)]
    history = read_history(out / "metrics.jsonl")
    parts = [(entry["dice"] > 0, entry["lovasz"] > 0) for entry in history]
    assert parts == [(True, False), (False, True), (False, True)]
    # A mean over all steps of the epoch, whichever of the two a step had.
    assert history[1]["loss"] == pytest.approx(history[1]["bce"] + history[1]["lovasz"] + 0.2 * history[1]["gate"])


@pytest.mark.parametrize(
    ("samples", "batch_size", "budget_s", "elapsed_s"),
    [
        # Crops of twice the size, as many: by their pixels the second stage takes as long as two epochs of the first.
        # 200 s, less 80 s for the second stage, are three epochs of 40 s.
        (16, 4, 200, [40.0, 80.0, 120.0, 160.0]),
        # One step of 4 crops: a hundredth of what its batch size would say, and as long as a step of the first stage.
        (4, 400, 130, [40.0, 80.0, 90.0]),
    ],
)
def test_the_second_stage_counts_in_the_time_budget(
    timed: Start, out: Path, samples: int, batch_size: int, budget_s: int, elapsed_s: list[float]
) -> None:
    second = ("epochs=1", f"samples_per_epoch={samples}", f"batch_size={batch_size}")
    minutes = f"training.max_minutes={budget_s / 60}"
    timed("training.epochs=9", minutes, *(f"training.second_stage.{one}" for one in second))
    assert _elapsed_s(out) == elapsed_s
    rates = load_recipe(str(out / "config.yaml")).optimizer
    first, last = len(elapsed_s) - 1, read_history(out / "metrics.jsonl")[-2]
    assert last["lr_decoder"] == pytest.approx(rates.decoder_lr * rate_factor(4 * first - 1, 4 * first, rates))


# Averages


@pytest.fixture
def score_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], None]:
    """Makes epochs, and then all else that is validated, score such a Dice, in percent."""

    def patch(percents: Sequence[int]) -> None:
        left = list(percents)

        def validate(*args: Any, **kwargs: Any) -> Validation:
            both_px = left.pop(0) if left else 0
            counts = {("a", 1): PairCounts(true_px=100, predicted_px=100, both_px=both_px)}
            return Validation(summarise(counts, ("pits",)), None)

        for module in (loop, run_module):
            monkeypatch.setattr(module, "validate", validate)

    return patch


FEW = ("training.epochs=3", "data.samples_per_epoch=4", "training.average_best=2")
"""Three epochs of one step."""


@pytest.mark.parametrize(("mean", "weights"), [(60, "epoch"), (61, "average"), (10, "epoch")])
def test_the_mean_of_the_best_epochs_is_taken_where_it_validates_better(
    timed: Start,
    out: Path,
    score_as: Callable[[Sequence[int]], None],
    monkeypatch: pytest.MonkeyPatch,
    mean: int,
    weights: str,
) -> None:
    kept: list[dict[str, torch.Tensor]] = []

    def keep(run: Run, scored: Any) -> str:
        kept.append({key: value.clone() for key, value in run.network.state_dict().items()})
        return offer(run, scored)

    monkeypatch.setattr(loop, "offer", keep)
    score_as([50, 60, 40, mean])
    info, saved = read_bundle(timed(*FEW).model)
    assert info.metrics["weights"] == weights
    key = "net.segmentation_head.0.weight"
    expected = (kept[0][key] + kept[1][key]) / 2 if weights == "average" else kept[1][key]
    torch.testing.assert_close(saved[key], expected, rtol=0, atol=1e-7)
    assert not list(out.glob("best*"))


def test_moving_averages_compete_with_the_weights_themselves(
    timed: Start, out: Path, score_as: Callable[[Sequence[int]], None]
) -> None:
    # In turn: the weights of an epoch, and their moving average.
    score_as([50, 40, 30, 70, 60, 65, 20])
    info = read_bundle(timed(*FEW, "training.ema_decay=0.9").model)[0]
    assert (info.metrics["weights"], info.metrics["best_epoch"]) == ("ema", 2)
    figures = [(entry["val"]["weights"], entry["val"]["kaggle_dice"]) for entry in read_history(out / "metrics.jsonl")]
    assert figures == [("epoch", 0.5), ("ema", 0.7), ("ema", 0.65)]


@pytest.mark.parametrize("settings", [("training.keep=last",), ("data.fold=null",)], ids=["keep last", "no validation"])
@pytest.mark.parametrize("weights", ["ema", "epoch"])
def test_the_last_weights_are_kept_where_the_recipe_says_so_or_nothing_validates(
    timed: Start, out: Path, score_as: Callable[[Sequence[int]], None], settings: tuple[str, ...], weights: str
) -> None:
    score_as([70, 60, 50, 40, 30, 20, 10])  # the first did best
    averages = ("training.ema_decay=0.9",) if weights == "ema" else ()
    info, saved = read_bundle(timed(*FEW, *settings, *averages).model)
    assert (info.metrics["weights"], info.metrics["epoch"]) == (weights, 3)
    last = _checkpoint(out)["network"]
    if weights == "ema":
        ema = {key.removeprefix("module."): value for key, value in _checkpoint(out)["ema"].items()}
        assert int(ema.pop("n_averaged")) == 3
        assert not all(torch.equal(ema[key], value) for key, value in last.items())
        last = ema
    torch.testing.assert_close(saved, last, rtol=0, atol=0)
    assert not list(out.glob("best*"))


def test_gradients_are_accumulated_over_several_steps(timed: Start, out: Path) -> None:
    timed("training.batch_size=2", "training.accumulation=4", "training.ema_decay=0.9", "data.fold=null")
    checkpoint = _checkpoint(out)
    assert checkpoint["state"]["step"] == 2 * 8
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {2 * 2}
    assert int(checkpoint["ema"]["n_averaged"]) == 2 * 2


# How often a step waits for the device


class _Waits(TorchDispatchMode):
    """Counts the operations whose result a GPU's host has to wait for."""

    OPERATIONS = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "is_nonzero", "unique")

    def __init__(self, on_cpu: torch.Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.on_cpu, self.count = on_cpu, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.__name__.split(".")[0]
        boolean = name == "index" and any(one is not None and one.dtype == torch.bool for one in args[1])
        self.count += boolean or (name in self.OPERATIONS and args[0] is not self.on_cpu)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("lovasz_from", [0.0, 1.0], ids=["Lovasz", "Dice"])
def test_steps_do_not_wait_for_the_device_until_losses_are_read(
    timed: Start, out: Path, monkeypatch: pytest.MonkeyPatch, lovasz_from: float
) -> None:
    """The counter of the moving average lies on the CPU, also when training on a GPU."""
    counts: list[int] = []
    step, read = loop._step, loop._Losses.read

    def counted(run: Run, batch: Any) -> Any:
        assert run.ema is not None
        with _Waits(run.ema.n_averaged) as waits:
            parts = step(run, batch)
        counts.append(waits.count)
        return parts

    monkeypatch.setattr(loop, "_step", counted)
    monkeypatch.setattr(loop, "steps_per_look", lambda device: 3)
    monkeypatch.setattr(losses, "_ranks_needed", lambda errors: errors.shape[1])  # as on a GPU
    readings: list[int] = []

    def note(unread: Any) -> None:
        readings.append(len(unread.unread))
        read(unread)

    monkeypatch.setattr(loop._Losses, "read", note)
    weights = "loss.positive_weights=[2.0,2.0,1.0,1.5]"
    timed("training.epochs=1", "training.ema_decay=0.9", f"loss.lovasz_from={lovasz_from}", weights)
    assert counts == [0, 0, 0, 0]
    assert readings == [3, 1], "each third step, and at the end of the epoch"


def test_losses_that_are_read_late_add_up_to_the_same(timed: Start, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    histories: list[list[dict[str, Any]]] = []
    texts: list[list[str]] = []
    for steps in (1, 3):
        monkeypatch.setattr(loop, "steps_per_look", lambda device, steps=steps: steps)
        told: list[str] = []
        timed(out=out / str(steps), progress=lambda done, total, text, told=told: told.append(text))
        histories.append(read_history(out / f"{steps}/metrics.jsonl"))
        texts.append(told[:4])
    for early, late in zip(*histories, strict=True):
        for key in ("loss", "bce", "dice", "lovasz", "gate", "val"):
            assert early[key] == late[key]
    assert texts[1] == ["epoch 1/2", "epoch 1/2", texts[0][2], texts[0][2]]


def test_a_loss_that_is_not_finite_and_read_late_is_named_exactly_and_nothing_is_saved_after_it(
    timed: Start, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Sequence[str]] = []
    step = loop._step

    def spoil(run: Run, batch: Any) -> Any:
        seen.append(batch.image_ids)
        parts = step(run, batch)
        return parts if len(seen) < 6 else parts._replace(total=parts.total * float("nan"))

    monkeypatch.setattr(loop, "_step", spoil)
    monkeypatch.setattr(loop, "steps_per_look", lambda device: 3)
    with pytest.raises(ResourceError) as caught:
        timed("training.epochs=3")
    assert f"the loss became nan at step 6, on {', '.join(seen[5])}." in str(caught.value)
    assert len(seen) == 7
    assert _checkpoint(out)["state"]["step"] == 4, "as the first epoch left it"


def test_a_signal_between_two_readings_saves_all_losses_so_far(
    timed: Start, out: Path, go_on: GoOn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "steps_per_look", lambda device: 3)

    def interrupt(done: int, total: int, text: str) -> None:
        if done == 6:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        timed(progress=interrupt)
    assert _checkpoint(out)["state"]["step"] == 6
    go_on()
    timed(out=out / "whole")
    ended, whole = (read_history(folder / "metrics.jsonl")[-1]["loss"] for folder in (out, out / "whole"))
    assert ended == whole
