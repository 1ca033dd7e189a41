"""`defectseg tune`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from typer import Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Data, Device, Json, MaxPixels, Model, Runtime, Split, Tta, Verbose
from defectseg.cli.show import finish, log, print_json, print_rows, shown, warn
from defectseg.errors import UsageError

if TYPE_CHECKING:
    from defectseg.tune.choice import Choice, ClassChoice
    from defectseg.tune.goals import Goal
    from defectseg.tune.tune import Tuning


def tune(
    model: Model,
    data: Data,
    subset: Annotated[Literal["val", "all"], Option(help="Images to choose on: val of split.csv, or all.")] = "val",
    split: Split = None,
    target_recall: Annotated[
        float | None, Option(help="Goal: find each class in this share of its images.", metavar="SHARE", min=0, max=1)
    ] = None,
    max_false_alarms: Annotated[
        float | None, Option(help="Goal: false alarms in at most this share of images.", metavar="SHARE", min=0, max=1)
    ] = None,
    cost_miss: Annotated[
        float | None, Option(help="Cost of a missed image. Goal: least cost.", metavar="COST", min=0, max=10**9)
    ] = None,
    cost_false_alarm: Annotated[
        float | None, Option(help="Cost of a false alarm. Goal: least cost.", metavar="COST", min=0, max=10**9)
    ] = None,
    folds: Annotated[int, Option(help="Folds of the cross-validation.", min=2, metavar="K")] = 5,
    out: Annotated[
        Path | None, Option(help="Also write the thresholds here, for train --thresholds.", metavar="FILE")
    ] = None,
    device: Device = "auto",
    runtime: Runtime = "auto",
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Do not change the model.")] = False,
    verbose: Verbose = False,
) -> None:
    """Choose the thresholds of a model on labelled images.

    Each class gets a gate, a pixel threshold and a minimum area, which are stored in the model. Without a goal, the
    settings with the best Dice are chosen. --target-recall raises as few false alarms as possible, --max-false-alarms
    finds as many defects as possible; --cost-miss and --cost-false-alarm go together. Cross-validation estimates the
    gain on other images. Scores are Kaggle Dice plus positive Dice, from 0 to 2.

    Several models are tuned together. If some were trained on the images, each answers for the images it held out.

    Example: defectseg tune runs/1 --data severstal --target-recall 0.95
    """
    if split is not None and subset == "all":
        raise UsageError("--split tells what was held out; leave --subset at val with it.")
    from defectseg.model.locate import model_paths
    from defectseg.tune.tune import tune as choose_thresholds

    goal = _parse_goal(target_recall, max_false_alarms, cost_miss, cost_false_alarm)
    with progress_bar("tuning") as progress:
        tuning = choose_thresholds(
            model_paths(model),
            data,
            subset=subset,
            split=split,
            goal=goal,
            folds=folds,
            out=out,
            dry_run=dry_run,
            device=device,
            runtime=runtime,
            tta=tta,
            bit_depth=bit_depth,
            progress=progress,
        )
    warn(tuning.warnings)
    _report(tuning, out, json_output)
    finish(partial=bool(tuning.unreadable))


def _parse_goal(
    target_recall: float | None, max_false_alarms: float | None, cost_miss: float | None, cost_false_alarm: float | None
) -> "Goal":
    """The goal that the flags name. Raises UsageError."""
    from defectseg.tune.goals import BEST_DICE, LeastCost, MaxFalseAlarms, TargetRecall

    goals: list[Goal] = []
    if target_recall is not None:
        goals.append(TargetRecall(target_recall))
    if max_false_alarms is not None:
        goals.append(MaxFalseAlarms(max_false_alarms))
    if cost_miss is not None and cost_false_alarm is not None:
        goals.append(LeastCost(cost_miss, cost_false_alarm))
    elif (cost_miss, cost_false_alarm) != (None, None):
        raise UsageError("--cost-miss and --cost-false-alarm go together, in any currency.")
    if len(goals) > 1:
        raise UsageError("give one of --target-recall, --max-false-alarms, and --cost-miss with --cost-false-alarm.")
    return goals[0] if goals else BEST_DICE


def _report(tuning: "Tuning", out: Path | None, json_output: bool) -> None:
    from defectseg.evaluate.metrics import headline, signed

    choice = tuning.choice
    if json_output:
        content = {
            **choice.to_json(),
            "metrics": headline(tuning.metrics),
            "warnings": tuning.warnings,
            "unreadable": [[one.image_id, one.message] for one in tuning.unreadable],
            "stored": [str(path) for path in tuning.stored],
        }
        print_json(content)
        return
    print(f"Chosen by {choice.thresholds.chosen_by}. Scores are Kaggle plus positive Dice.")
    print_rows(_table(choice))
    if choice.gain is not None and choice.gain_interval is not None:
        low, high = signed(choice.gain_interval.low), signed(choice.gain_interval.high)
        print(f"Against the defaults, in cross-validation: {signed(choice.gain)} (95 % interval {low} to {high})")
    for path in (*tuning.stored, *([] if out is None else [out])):
        print(f"Stored in: {shown(path)}")
    if not tuning.stored:
        log.info("the model was not changed")


def _table(choice: "Choice") -> list[list[str]]:
    rows = [["class", "images", "gate", "pixel", "min area px", "default", "chosen", "cross-validated"]]
    rows[0] += ["recall", "false alarms"]
    for one in choice.classes:
        settings = (one.name, str(one.images_with), f"{one.gate:g}", f"{one.pixel:g}", str(one.min_area_px))
        rows.append([*settings, *_scores(one)])
    return [*rows, ["all", str(choice.images), "", "", "", *_scores(choice)]]


def _scores(one: "ClassChoice | Choice") -> list[str]:
    """The cells from the defaults' score on. Recall and false alarms are cross-validated if that was possible."""
    from defectseg.evaluate.metrics import decimals

    validated = None if one.validated is None else one.validated.objective
    honest = one.validated or one.chosen
    figures = (one.default.objective, one.chosen.objective, validated, honest.recall, honest.false_alarms)
    return [decimals(value) for value in figures]
