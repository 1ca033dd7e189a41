"""The loop: what a log line says, the time budget, stages, early stopping, and what goes wrong in a step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from defectseg.config import load_recipe
from defectseg.errors import ResourceError
from defectseg.evaluate.metrics import PairCounts, summarise
from defectseg.model.bundle import read_bundle, weights_digest
from defectseg.model.info import Thresholds
from defectseg.model.losses import segmentation_loss
from defectseg.train import loop
from defectseg.train.curves import read_history
from defectseg.train.dataset import CropSampler
from defectseg.train.loop import describe
from defectseg.train.request import TrainRequest
from defectseg.train.schedule import rate_factor
from defectseg.train.train import train
from defectseg.train.validation import Validation
from defectseg.train.weights import Candidates

# What people read


def test_a_line_tells_losses_scores_and_the_best() -> None:
    val = {"kaggle_dice": 0.91234, "all_empty": 0.85, "positive_dice": 0.5, "miou": 0.4}
    figures = {"epoch": 3, "loss": 0.12345, "val": val, "data_s": 1.0, "step_s": 20.0}
    assert describe(figures, 9, 3) == (
        "epoch 3/9: loss 0.123, positive Dice 0.500, Kaggle Dice 0.9123 (all empty 0.8500) *, data 1.0 s, steps 20.0 s"
    )


def test_a_line_without_validation_or_defects() -> None:
    figures: dict[str, Any] = {"epoch": 1, "loss": 1.0, "data_s": 0.0, "step_s": 1.0}
    assert describe(figures, 2, None) == "epoch 1/2: loss 1.000, data 0.0 s, steps 1.0 s"
    figures["val"] = {"kaggle_dice": 1.0, "all_empty": 1.0, "positive_dice": None, "miou": None}
    assert "positive Dice none, " in describe(figures, 2, 2)


# The time budget: a clock that goes on by 10 s a step, 4 steps an epoch


@dataclass
class Clock:
    now_s: float = 1000.0
    epochs_planned: list[int] = field(default_factory=list)

    def monotonic(self) -> float:
        return self.now_s

    def advance(self, done: int, total: int, text: str) -> None:
        self.now_s += 10.0
        self.epochs_planned.append(total // 4)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(loop, "time", clock)
    return clock


def _request(tiny_recipe: Path, data_folder: Path, out: Path, clock: Clock, *overrides: str) -> TrainRequest:
    recipe = load_recipe(str(tiny_recipe), overrides)
    return TrainRequest(recipe=recipe, data=data_folder, out=out, device="cpu", advance=clock.advance)


def test_epochs_are_cut_to_the_time_that_is_left(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    # 130 s: after the first epoch of 40 s there is time for 2.25 more.
    request = _request(
        tiny_recipe, data_folder, tmp_path / "run", clock, "training.epochs=9", f"training.max_minutes={130 / 60}"
    )
    train(request)
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [entry["epoch"] for entry in history] == [1, 2, 3]
    assert [entry["elapsed_s"] for entry in history] == [40.0, 80.0, 120.0]
    assert clock.epochs_planned == [9] * 4 + [3] * 8
    # Step 11 of 12: the cosine ends where it would have with 3 epochs planned from the start.
    rates = request.recipe.optimizer
    assert history[-1]["lr_decoder"] == pytest.approx(rates.decoder_lr * rate_factor(11, 12, rates))


def test_training_stops_within_an_epoch_when_time_is_up(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    result = train(
        _request(tiny_recipe, data_folder, tmp_path / "run", clock, "training.epochs=9", "training.max_minutes=0.4")
    )
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert len(clock.epochs_planned) == 3, "24 s end after the third step of 10 s"
    assert [entry["epoch"] for entry in history] == [1]
    assert "val" in history[0], "what there is gets validated"
    assert result.model.is_file()


def test_a_budget_that_is_large_enough_changes_nothing(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, "training.max_minutes=60"))
    assert clock.epochs_planned == [2] * 8


def test_time_before_an_interruption_counts_after_it(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(done: int, total: int, text: str) -> None:
        clock.advance(done, total, text)
        if done == 6:
            raise KeyboardInterrupt

    settings = ("training.epochs=9", f"training.max_minutes={130 / 60}")
    request = _request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings)
    with pytest.raises(KeyboardInterrupt):
        train(TrainRequest(**{**vars(request), "advance": interrupt}))
    clock.now_s = 5.0  # another session, another clock
    train(TrainRequest(**{**vars(request), "resume": True}))
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [entry["elapsed_s"] for entry in history] == [40.0, 80.0, 120.0]


# What goes wrong in a step


def test_a_loss_that_is_not_finite_names_the_images(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    request = _request(
        tiny_recipe, data_folder, tmp_path / "run", clock, "optimizer.encoder_lr=1e30", "optimizer.decoder_lr=1e30"
    )
    with pytest.raises(
        ResourceError, match=r"the loss became (nan|inf) at step \d+, on (sheet_\d+\.jpg(, )?){4}\. Low"
    ):
        train(request)


def test_running_out_of_memory_says_what_to_lower(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def exhaust(*args: Any, **kwargs: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(loop, "segmentation_loss", exhaust)
    with pytest.raises(
        ResourceError, match=r"cpu: out of memory on 4 crops of 64x64. Use --batch-size auto, or lower trai"
    ):
        train(_request(tiny_recipe, data_folder, tmp_path / "run", clock))


def test_other_errors_in_a_step_stay_what_they_are(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(loop, "segmentation_loss", fail)
    with pytest.raises(RuntimeError, match="a bug"):
        train(_request(tiny_recipe, data_folder, tmp_path / "run", clock))


def test_epochs_between_validations_are_not_validated_but_the_last_is(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, "training.epochs=3", "training.validate_every=2"))
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert ["val" in entry for entry in history] == [False, True, True]


def test_time_that_ends_before_any_validation_leaves_a_model_all_the_same(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def record(run: loop.Run, figures: dict[str, Any]) -> None:
        _record(run, figures)
        clock.now_s += 1000.0  # the disk is slow, and the next validation was to come an epoch later

    _record = loop._record
    monkeypatch.setattr(loop, "_record", record)
    settings = ("training.epochs=4", "training.validate_every=2", "training.max_minutes=10")
    result = train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    assert len(read_history(tmp_path / "run" / "metrics.jsonl")) == 1
    assert read_bundle(result.model)[0].metrics["best_epoch"] == 1


# Early stopping


@pytest.fixture
def score_as(monkeypatch: pytest.MonkeyPatch) -> Callable[[Sequence[int]], None]:
    """Makes epochs, and then all else that is validated, score such a Dice, in percent."""

    def patch(percents: Sequence[int]) -> None:
        left = list(percents)

        def validate(*args: Any, **kwargs: Any) -> Validation:
            both_px = left.pop(0) if left else 0
            counts = {("a", 1): PairCounts(true_px=100, predicted_px=100, both_px=both_px)}
            return Validation(summarise(counts, ("pits",)), None)

        monkeypatch.setattr(loop, "validate", validate)

    return patch


@pytest.mark.parametrize(
    ("patience", "scores", "epochs", "best"),
    [
        (2, [50, 60, 55, 59], 4, 2),  # two without progress
        (2, [50, 60, 60, 60], 4, 4),  # to score the same is no progress, though the later weights are kept
        (2, [50, 40, 60, 55, 70, 71], 6, 6),  # never two in a row
        (1, [50, 40], 2, 1),
        (None, [50, 40, 30, 20, 10, 5], 6, 1),
    ],
)
def test_training_stops_when_validation_no_longer_improves(
    tiny_recipe: Path,
    data_folder: Path,
    tmp_path: Path,
    clock: Clock,
    score_as: Callable[[Sequence[int]], None],
    patience: int | None,
    scores: list[int],
    epochs: int,
    best: int,
) -> None:
    thresholds = Thresholds.default(4)  # given, so that none need be searched
    score_as(scores)
    settings = ("training.epochs=6", f"training.patience={'null' if patience is None else patience}")
    request = _request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings, "data.samples_per_epoch=4")
    result = train(replace(request, thresholds=thresholds))
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [entry["val"]["kaggle_dice"] for entry in history] == [score / 100 for score in scores]
    assert len(history) == epochs
    info = read_bundle(result.model)[0]
    assert info.metrics["best_epoch"] == best
    assert info.thresholds == thresholds


def test_where_the_first_stage_no_longer_improves_the_second_begins(
    tiny_recipe: Path,
    data_folder: Path,
    tmp_path: Path,
    clock: Clock,
    score_as: Callable[[Sequence[int]], None],
) -> None:
    score_as([50, 40, 60, 70])
    settings = ("training.epochs=6", "training.patience=1", "training.second_stage.epochs=2")
    request = _request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings, "data.samples_per_epoch=4")
    result = train(replace(request, thresholds=Thresholds.default(4)))
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert len(history) == 4
    assert history[2]["lr_decoder"] <= 0.1 * request.recipe.optimizer.decoder_lr
    assert read_bundle(result.model)[0].metrics["best_epoch"] == 4


def test_patience_goes_on_counting_after_an_interruption(
    tiny_recipe: Path,
    data_folder: Path,
    tmp_path: Path,
    clock: Clock,
    score_as: Callable[[Sequence[int]], None],
) -> None:
    score_as([50, 40, 30, 20, 10])
    settings = ("training.epochs=6", "training.patience=3", "data.samples_per_epoch=4")
    request = _request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings)
    request = replace(request, thresholds=Thresholds.default(4))
    with pytest.raises(KeyboardInterrupt):
        train(replace(request, advance=_stop_at(3)))
    train(replace(request, resume=True, thresholds=None))
    assert len(read_history(tmp_path / "run" / "metrics.jsonl")) == 4


def _stop_at(step: int) -> Callable[[int, int, str], None]:
    def advance(done: int, total: int, text: str) -> None:
        if done == step:
            raise KeyboardInterrupt

    return advance


# The second stage


SECOND = ("training.second_stage.epochs=2", "training.second_stage.crop_hw=[64,96]", "optimizer.warmup=0.5")


@pytest.fixture
def sizes_seen(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """(N, H, W) of each training step."""
    seen: list[tuple[int, ...]] = []
    loss = segmentation_loss

    def spy(mask_logits: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        seen.append((len(mask_logits), *mask_logits.shape[2:]))
        return loss(mask_logits, *args, **kwargs)

    monkeypatch.setattr(loop, "segmentation_loss", spy)
    return seen


def test_the_second_stage_takes_its_own_crops_at_a_tenth_of_the_rate(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, sizes_seen: list[tuple[int, ...]]
) -> None:
    settings = (*SECOND, "training.second_stage.batch_size=3", "training.second_stage.samples_per_epoch=9")
    request = _request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings)
    train(request)
    # Two epochs of 16 crops in steps of 4, then two of 9 in steps of 3.
    assert sizes_seen == [(4, 64, 64)] * 8 + [(3, 64, 96)] * 6
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [entry["epoch"] for entry in history] == [1, 2, 3, 4]
    rates = request.recipe.optimizer
    # The last step of each epoch: 3 and 7 of 8 with the warm-up, then 2 and 5 of 6 without one.
    factors = [rate_factor(step, 8, rates) for step in (3, 7)]
    factors += [0.1 * rate_factor(step, 6, rates, warms_up=False) for step in (2, 5)]
    assert [entry["lr_decoder"] for entry in history] == pytest.approx([rates.decoder_lr * one for one in factors])


def test_whole_images_are_the_second_stage_unless_it_says_otherwise(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, sizes_seen: list[tuple[int, ...]]
) -> None:
    settings = ("training.epochs=1", "training.second_stage.epochs=1")
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    # 18 images to train on, each once; two do not fill a step.
    assert sizes_seen == [(4, 64, 64)] * 4 + [(4, 64, 128)] * 4


@pytest.mark.parametrize("step", [9, 12, 13], ids=["within", "at the end", "in the last epoch"])
def test_an_interrupted_second_stage_ends_as_if_it_had_not_been(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, step: int
) -> None:
    request = _request(
        tiny_recipe, data_folder, tmp_path / "whole", clock, *SECOND, "training.second_stage.batch_size=3"
    )
    train(request)
    broken = replace(request, out=tmp_path / "broken")
    with pytest.raises(KeyboardInterrupt):
        train(replace(broken, advance=_stop_at(step)))
    train(replace(broken, resume=True))
    digests = [weights_digest(_checkpoint(out)["network"]) for out in (request.out, broken.out)]
    assert digests[0] == digests[1]
    assert _checkpoint(broken.out)["progress"]["step"] == 2 * 4 + 2 * 6


def _checkpoint(run: Path) -> dict[str, Any]:
    content: dict[str, Any] = torch.load(run / "last.ckpt", weights_only=True)
    return content


def test_the_second_stage_counts_in_the_time_budget(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    # Crops of twice the size, as many: by their pixels the second stage takes as long as two epochs of the first.
    second = ("training.second_stage.epochs=1", "training.second_stage.samples_per_epoch=16")
    settings = ("training.epochs=9", *second, f"training.max_minutes={200 / 60}")
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    # 200 s, less 80 s for the second stage, are three epochs of 40 s.
    assert [entry["elapsed_s"] for entry in history] == [40.0, 80.0, 120.0, 160.0]
    assert clock.epochs_planned == [10] * 4 + [4] * 12
    rates = load_recipe(str(tiny_recipe)).optimizer
    assert history[2]["lr_decoder"] == pytest.approx(rates.decoder_lr * rate_factor(11, 12, rates))


def test_a_batch_that_had_to_shrink_does_not_distort_the_time_budget(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    # One step of 4 crops: a hundredth of what its batch size would say, and as long as a step of the first stage.
    second = ("training.second_stage.epochs=1", "training.second_stage.samples_per_epoch=4")
    settings = (
        "training.epochs=9",
        *second,
        "training.second_stage.batch_size=400",
        f"training.max_minutes={130 / 60}",
    )
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [entry["elapsed_s"] for entry in history] == [40.0, 80.0, 90.0]


# The losses and the sampler are told how far the training is


def test_losses_and_sampler_learn_how_much_is_done(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    shares: list[float] = []
    told: list[float] = []
    loss, start = segmentation_loss, CropSampler.set_progress

    def spy(*args: Any, share_done: float, unknown: torch.Tensor) -> Any:
        shares.append(share_done)
        assert unknown.shape == args[1].shape
        return loss(*args, share_done=share_done, unknown=unknown)

    def listen(sampler: CropSampler, share_done: float) -> None:
        told.append(share_done)
        start(sampler, share_done)

    monkeypatch.setattr(loop, "segmentation_loss", spy)
    monkeypatch.setattr(CropSampler, "set_progress", listen)
    settings = ("training.second_stage.epochs=1", "training.second_stage.crop_hw=[64,64]", "loss.lovasz_from=0.5")
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    assert shares == [step / 8 for step in range(8)] + [1.0] * 4
    assert told == [0.0, 0.5, 1.0]
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [(entry["dice"] > 0, entry["lovasz"] > 0) for entry in history] == [
        (True, False),
        (False, True),
        (False, True),
    ]
    # A mean over all steps of the epoch, whichever of the two a step had.
    assert history[1]["loss"] == pytest.approx(history[1]["bce"] + history[1]["lovasz"] + 0.2 * history[1]["gate"])


# Averages


def _with_epochs(tiny_recipe: Path, data_folder: Path, out: Path, clock: Clock, *settings: str) -> TrainRequest:
    settings = ("training.epochs=3", "data.samples_per_epoch=4", "training.average_best=2", *settings)
    return replace(_request(tiny_recipe, data_folder, out, clock, *settings), thresholds=Thresholds.default(4))


@pytest.mark.parametrize(("mean", "weights"), [(60, "epoch"), (61, "average"), (10, "epoch")])
def test_the_mean_of_the_best_epochs_is_taken_where_it_validates_better(
    tiny_recipe: Path,
    data_folder: Path,
    tmp_path: Path,
    clock: Clock,
    score_as: Callable[[Sequence[int]], None],
    monkeypatch: pytest.MonkeyPatch,
    mean: int,
    weights: str,
) -> None:
    kept: list[dict[str, torch.Tensor]] = []
    offer = Candidates.offer

    def keep(candidates: Candidates, progress: Any, scored: Any, info: Any) -> str:
        kept.append({key: value.clone() for key, value in scored["epoch"][1].state_dict().items()})
        return offer(candidates, progress, scored, info)

    monkeypatch.setattr(Candidates, "offer", keep)
    score_as([50, 60, 40, mean])
    result = train(_with_epochs(tiny_recipe, data_folder, tmp_path / "run", clock))
    info, saved = read_bundle(result.model)
    assert info.metrics["weights"] == weights
    key = "net.segmentation_head.0.weight"
    expected = (kept[0][key] + kept[1][key]) / 2 if weights == "average" else kept[1][key]
    torch.testing.assert_close(saved[key], expected, rtol=0, atol=1e-7)
    assert not list((tmp_path / "run").glob("best*"))


def test_moving_averages_compete_with_the_weights_themselves(
    tiny_recipe: Path,
    data_folder: Path,
    tmp_path: Path,
    clock: Clock,
    score_as: Callable[[Sequence[int]], None],
) -> None:
    # In turn: the weights of an epoch, and their moving average.
    score_as([50, 40, 30, 70, 60, 65, 20])
    result = train(_with_epochs(tiny_recipe, data_folder, tmp_path / "run", clock, "training.ema_decay=0.9"))
    info = read_bundle(result.model)[0]
    assert (info.metrics["weights"], info.metrics["best_epoch"]) == ("ema", 2)
    history = read_history(tmp_path / "run" / "metrics.jsonl")
    assert [(entry["val"]["weights"], entry["val"]["kaggle_dice"]) for entry in history] == [
        ("epoch", 0.5),
        ("ema", 0.7),
        ("ema", 0.65),
    ]


@pytest.mark.parametrize(("settings", "weights"), [(("training.ema_decay=0.9",), "ema"), ((), "epoch")])
def test_the_last_weights_are_kept_where_the_recipe_says_so(
    tiny_recipe: Path,
    data_folder: Path,
    tmp_path: Path,
    clock: Clock,
    score_as: Callable[[Sequence[int]], None],
    settings: tuple[str, ...],
    weights: str,
) -> None:
    score_as([70, 60, 50, 40, 30, 20, 10])  # the first did best
    result = train(_with_epochs(tiny_recipe, data_folder, tmp_path / "run", clock, "training.keep=last", *settings))
    info, saved = read_bundle(result.model)
    assert (info.metrics["weights"], info.metrics["epoch"]) == (weights, 3)
    checkpoint = _checkpoint(tmp_path / "run")
    last = checkpoint["network"]
    if weights == "ema":
        last = {key.removeprefix("module."): value for key, value in checkpoint["ema"].items() if key != "n_averaged"}
    assert weights_digest(saved) == weights_digest(last)
    assert not list((tmp_path / "run").glob("best*"))


def test_without_validation_the_moving_average_is_the_model(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    settings = ("data.fold=null", "training.ema_decay=0.9")
    result = train(_with_epochs(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    info, saved = read_bundle(result.model)
    assert info.metrics == {"weights": "ema", "epoch": 3}
    ema = {key.removeprefix("module."): value for key, value in _checkpoint(tmp_path / "run")["ema"].items()}
    assert int(ema.pop("n_averaged")) == 3
    assert weights_digest(saved) == weights_digest(ema)
    assert weights_digest(saved) != weights_digest(_checkpoint(tmp_path / "run")["network"])


def test_gradients_of_several_steps_are_added_up_before_the_weights_move(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock
) -> None:
    settings = ("training.batch_size=2", "training.accumulation=4", "training.ema_decay=0.9", "data.fold=null")
    train(_request(tiny_recipe, data_folder, tmp_path / "run", clock, *settings))
    checkpoint = _checkpoint(tmp_path / "run")
    assert checkpoint["progress"]["step"] == 2 * 8
    assert {int(state["step"]) for state in checkpoint["optimizer"]["state"].values()} == {2 * 2}
    assert int(checkpoint["ema"]["n_averaged"]) == 2 * 2


def test_an_epoch_is_saved_before_it_is_validated(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(run: object) -> None:
        raise ConnectionError("killed while validating")

    monkeypatch.setattr(loop, "_validate_candidates", killed)
    with pytest.raises(ConnectionError):
        train(_with_epochs(tiny_recipe, data_folder, tmp_path / "run", clock))
    progress = _checkpoint(tmp_path / "run")["progress"]
    assert progress["epoch"] == 0
    assert progress["batch"] == progress["step"] > 0


def test_a_lost_worker_is_explained(
    tiny_recipe: Path, data_folder: Path, tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error.")

    monkeypatch.setattr(loop, "train_one_epoch", lost)
    with pytest.raises(ResourceError, match=r"pid 7.*--shm-size.*data\.workers=0"):
        train(_with_epochs(tiny_recipe, data_folder, tmp_path / "run", clock))
