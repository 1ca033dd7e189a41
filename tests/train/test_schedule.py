"""What changes as a training goes on: learning rates, parameter groups, stages, the epochs that fit into the time."""

import math
from typing import Any

import pytest

from defectseg.config import DataConfig, ModelConfig, OptimizerConfig, Recipe, SecondStageConfig, TrainingConfig
from defectseg.model.info import Normalization
from defectseg.model.network import DefectNetwork
from defectseg.train.schedule import Stage, make_optimizer, planned_epochs, rate_factor, stages_of

# Learning rates


@pytest.mark.parametrize(
    ("step", "warmup", "warms_up", "expected"),
    [
        # Of 20 steps, 4 warm up: 1/5, 2/5, 3/5, 4/5 of the rate, then the whole.
        (0, 0.2, True, 0.2),
        (1, 0.2, True, 0.4),
        (3, 0.2, True, 0.8),
        (4, 0.2, True, 1.0),
        # Half-way through the other 16: the middle between 1 and 0.01.
        (12, 0.2, True, 0.505),
        # A quarter of the way: 0.01 + 0.99 * (1 + cos 45 degrees) / 2.
        (8, 0.2, True, 0.01 + 0.99 * 0.5 * (1 + math.sqrt(0.5))),
        (20, 0.2, True, 0.01),
        (50, 0.2, True, 0.01),
        # Without any.
        (0, 0.0, True, 1.0),
        # A stage that does not warm up: half-way through all 20 steps the middle between 1 and 0.01.
        (0, 0.2, False, 1.0),
        (10, 0.2, False, 0.505),
        (20, 0.2, False, 0.01),
        # Nothing but warm-up.
        (19, 1.0, True, 20 / 21),
    ],
)
def test_rates_warm_up_and_then_follow_a_cosine(step: int, warmup: float, warms_up: bool, expected: float) -> None:
    assert rate_factor(step, 20, OptimizerConfig(warmup=warmup), warms_up=warms_up) == pytest.approx(expected)


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


# Stages


@pytest.mark.parametrize(
    ("second", "later"),
    [
        (SecondStageConfig(), ()),
        # By default whole images, each once, in steps as before.
        (SecondStageConfig(epochs=1), ((None, 4, None, 0.1),)),
        (
            SecondStageConfig(epochs=2, crop_hw=(128, 256), batch_size=3, samples_per_epoch=12, rate_share=0.2),
            (((128, 256), 3, 12, 0.2),),
        ),
    ],
)
def test_the_second_stage_has_its_own_crops_and_rate_and_does_not_warm_up(
    second: SecondStageConfig, later: tuple[tuple[Any, Any, Any, Any], ...]
) -> None:
    data, training = DataConfig(crop_hw=(64, 96), samples_per_epoch=40), TrainingConfig(batch_size=4)
    recipe = Recipe(data=data, training=training.model_copy(update={"second_stage": second}))
    first = Stage("data.crop_hw", (64, 96), 4, 40, 1.0, warms_up=True)
    expected = [Stage("training.second_stage.crop_hw", *values, warms_up=False) for values in later]
    assert stages_of(recipe) == (first, *expected)


# Epochs that fit into the time


@pytest.mark.parametrize(
    ("budget_s", "elapsed_s", "done", "wanted", "later", "expected"),
    [
        (130.0, 40.0, 1, 9, 0.0, 3),  # three epochs of 40 s end at 120 s, a fourth would end at 160 s
        (120.0, 40.0, 1, 9, 0.0, 3),
        (1000.0, 40.0, 1, 9, 0.0, 9),  # never more than were wanted
        (130.0, 60.0, 2, 9, 0.0, 4),  # a slow first epoch of 40 s and one of 20 s: 30 s each
        (200.0, 40.0, 1, 9, 2.0, 3),  # the second stage takes 80 s, which leaves 120 s
        (200.0, 40.0, 1, 9, 2.5, 2),  # 100 s are left
        (50.0, 40.0, 1, 9, 0.0, 2),  # one more is begun, and stopped when the time is up
    ],
)
def test_as_many_epochs_are_planned_as_fit(
    budget_s: float, elapsed_s: float, done: int, wanted: int, later: float, expected: int
) -> None:
    planned = planned_epochs(
        budget_s=budget_s, elapsed_s=elapsed_s, epochs_done=done, epochs_wanted=wanted, later_share=later
    )
    assert planned == expected
