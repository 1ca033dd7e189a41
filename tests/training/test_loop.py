"""The parts of the loop: learning rates, parameter groups, the time budget, what a log line says."""

import math
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from defectseg.config import ModelConfig, Normalization, OptimizerConfig, load_recipe
from defectseg.errors import ResourceError
from defectseg.evaluation.metrics import PairCounts, summarise
from defectseg.model.network import DefectNetwork
from defectseg.training import loop
from defectseg.training.checkpoint import Progress
from defectseg.training.loop import describe, make_optimizer, rate_factor, selection_score
from defectseg.training.plots import read_history
from defectseg.training.run import TrainRequest, train

# Learning rates


def _rates(**values: float) -> OptimizerConfig:
    return OptimizerConfig(**{"warmup": 0.2, "final_lr_share": 0.1, **values})


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        # Of 20 steps, 4 warm up: 1/5, 2/5, 3/5, 4/5 of the rate, then the whole.
        (0, 0.2),
        (1, 0.4),
        (3, 0.8),
        (4, 1.0),
        # Half-way through the other 16: the middle between 1 and 0.1.
        (12, 0.55),
        # A quarter of the way: 0.1 + 0.9 * (1 + cos 45 degrees) / 2.
        (8, 0.1 + 0.9 * 0.5 * (1 + math.sqrt(0.5))),
        (20, 0.1),
        (50, 0.1),
    ],
)
def test_rates_warm_up_and_then_follow_a_cosine(step: int, expected: float) -> None:
    assert rate_factor(step, 20, _rates()) == pytest.approx(expected)


def test_without_warm_up_the_first_step_has_the_whole_rate() -> None:
    assert rate_factor(0, 20, _rates(warmup=0.0)) == 1.0


def test_rates_only_rise_and_then_only_fall() -> None:
    factors = [rate_factor(step, 57, _rates(warmup=0.1)) for step in range(57)]
    top = factors.index(max(factors))
    assert factors[: top + 1] == sorted(factors[: top + 1])
    assert factors[top:] == sorted(factors[top:], reverse=True)
    assert all(0 < factor <= 1 for factor in factors)


def test_the_last_step_comes_close_to_the_final_rate() -> None:
    assert rate_factor(999, 1000, _rates(final_lr_share=0.01)) == pytest.approx(0.01, abs=1e-4)


def test_a_run_of_nothing_but_warm_up_has_no_fall() -> None:
    assert rate_factor(9, 10, _rates(warmup=1.0)) == pytest.approx(10 / 11)


# Parameter groups


def test_every_parameter_is_in_one_group_with_the_rate_of_its_part() -> None:
    network = DefectNetwork(ModelConfig(encoder="tu-test_resnet"), 2, Normalization(mean=0.5, std=0.5))
    optimizer = make_optimizer(network, OptimizerConfig(encoder_lr=0.1, decoder_lr=0.2, weight_decay=0.3))
    names = {parameter: name for name, parameter in network.named_parameters()}
    seen: list[str] = []
    for group in optimizer.param_groups:
        assert group["initial_lr"] == group["lr"]
        for parameter in group["params"]:
            name = names[parameter]
            seen.append(name)
            assert group["lr"] == (0.1 if name.startswith("net.encoder.") else 0.2), name
            norm_or_bias = name.endswith(".bias") or parameter.dim() == 1
            assert group["weight_decay"] == (0.0 if norm_or_bias else 0.3), name
    assert sorted(seen) == sorted(names.values())
    assert len(optimizer.param_groups) == 4


def test_equal_rates_share_their_groups() -> None:
    network = DefectNetwork(ModelConfig(encoder="tu-test_resnet"), 2, Normalization(mean=0.5, std=0.5))
    optimizer = make_optimizer(network, OptimizerConfig(encoder_lr=0.1, decoder_lr=0.1))
    assert len(optimizer.param_groups) == 2


# What the best epoch is chosen by


def test_the_selection_score_is_the_sum_of_both_dices() -> None:
    counts = {("a", 1): PairCounts(true_px=4, predicted_px=4, both_px=2), ("a", 2): PairCounts(0, 0, 0)}
    # Pairs: 2 * 2 / 8 = 0.5 and 1; with a defect: 0.5.
    assert selection_score(summarise(counts, ("p", "q"))) == pytest.approx(0.75 + 0.5)


def test_without_a_defect_the_selection_score_is_the_kaggle_dice() -> None:
    assert selection_score(summarise({("a", 1): PairCounts(0, 3, 0)}, ("p",))) == 0.0
    assert selection_score(summarise({("a", 1): PairCounts(0, 0, 0)}, ("p",))) == 1.0


def _keep(scores: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Progress]:
    """Epochs whose weights are kept as the best so far, when epochs score as told."""
    kept: list[int] = []
    network = SimpleNamespace(state_dict=dict)
    info = SimpleNamespace(model_copy=lambda update: update["metrics"]["best_epoch"])
    run: Any = SimpleNamespace(
        progress=Progress(),
        accelerator=SimpleNamespace(is_main_process=True),
        folder=tmp_path,
        network=network,
        info=info,
    )
    monkeypatch.setattr(loop, "save_bundle", lambda path, weights, epoch: kept.append(epoch))
    monkeypatch.setattr(loop, "headline", lambda metrics: {})
    monkeypatch.setattr(loop, "selection_score", lambda metrics: metrics)
    for score in scores:
        run.progress.epoch += 1
        loop._keep_if_best(run, score)  # type: ignore[arg-type]
    return kept, run.progress


def test_the_best_epoch_is_kept_and_of_equals_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept, progress = _keep([0.8, 0.8, 0.7, 0.9, 0.85, 0.9], tmp_path, monkeypatch)
    assert kept == [1, 2, 4, 6]
    assert (progress.best_epoch, progress.best_score) == (6, 0.9)


# What people read


def test_a_line_tells_losses_scores_and_the_best() -> None:
    val = {"kaggle_dice": 0.91234, "all_empty": 0.85, "positive_dice": 0.5, "miou": 0.4}
    figures = {"epoch": 3, "loss": 0.12345, "val": val, "data_s": 1.0, "step_s": 20.0}
    assert describe(figures, Progress(total_epochs=9, best_epoch=3)) == (
        "epoch 3/9: loss 0.123, positive Dice 0.500, Kaggle Dice 0.9123 (all empty 0.8500) *, data 1.0 s, steps 20.0 s"
    )


def test_a_line_without_validation_or_defects() -> None:
    figures: dict[str, Any] = {"epoch": 1, "loss": 1.0, "data_s": 0.0, "step_s": 1.0}
    assert describe(figures, Progress(total_epochs=2)) == "epoch 1/2: loss 1.000, data 0.0 s, steps 1.0 s"
    figures["val"] = {"kaggle_dice": 1.0, "all_empty": 1.0, "positive_dice": None, "miou": None}
    assert "positive Dice none, " in describe(figures, Progress(total_epochs=2, best_epoch=2))


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
        ResourceError, match=r"cpu: out of memory on 4 crops of 64x64. Lower training.batch_size or dat"
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
