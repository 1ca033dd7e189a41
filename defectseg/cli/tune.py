"""`defectseg tune`."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Device, Json, MaxPixels, RuntimeName, Tta, Verbose
from defectseg.cli.show import bit_depth_hint, finish, print_json, print_rows, shown
from defectseg.errors import ExitCode, UsageError

if TYPE_CHECKING:
    from defectseg.tune.choice import Choice, ClassChoice
    from defectseg.tune.goals import Goal
    from defectseg.tune.tune import Tuning

_HEADINGS = [
    *("class", "images", "gate", "pixel", "min area px", "default", "chosen", "cross-validated"),
    *("recall", "false alarms"),
]


def tune(
    model: Annotated[
        str,
        typer.Argument(
            help="A model file, the run folder of train, or several, comma-separated or the folder of a run's folds. "
            "Several are tuned by the mean of their answers; if some were trained on the images, each answers for "
            "those that it held out."
        ),
    ],
    data: Annotated[Path, typer.Option("--data", help="Data folder: train.csv beside train_images/.", metavar="DIR")],
    subset: Annotated[
        str, typer.Option("--subset", help="Images to choose on: val as split.csv has them, or all.", metavar="val|all")
    ] = "val",
    split: Annotated[
        Path | None,
        typer.Option("--split", help="The split.csv to use. Default: the one beside MODEL.", metavar="FILE"),
    ] = None,
    target_recall: Annotated[
        float | None,
        typer.Option(
            "--target-recall",
            help="Fewest false alarms that leave each class found in this share of its images.",
            metavar="R",
        ),
    ] = None,
    max_false_alarms: Annotated[
        float | None,
        typer.Option(
            "--max-false-alarms",
            help="Highest recall with alarms in at most this share of the images without the class.",
            metavar="S",
        ),
    ] = None,
    cost_miss: Annotated[
        float | None, typer.Option("--cost-miss", help="What an image with an unseen defect costs.", metavar="X")
    ] = None,
    cost_false_alarm: Annotated[
        float | None, typer.Option("--cost-false-alarm", help="What a false alarm costs.", metavar="Y")
    ] = None,
    folds: Annotated[int, typer.Option("--folds", help="Folds of the cross-validation.", min=2, metavar="K")] = 5,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Write the thresholds here, too, for train --thresholds.", metavar="FILE"),
    ] = None,
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Leave the model as it is.")] = False,
    verbose: Verbose = False,
) -> None:
    """Choose gate, pixel threshold and minimum area of each class, and store them in the model.

    Without a goal, for the best Dice. Cross-validation tells what the choice is worth on other images. Scores are
    Kaggle plus positive Dice, from 0 to 2.

    Example: defectseg tune runs/1 --data severstal --target-recall 0.95
    """
    if subset not in ("val", "all"):
        raise UsageError(f"--subset {subset}: expected val or all.")
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
    _report(tuning, out, json_output)
    finish(ExitCode.PARTIAL if tuning.unreadable else ExitCode.DONE)


def _parse_goal(
    target_recall: float | None, max_false_alarms: float | None, cost_miss: float | None, cost_false_alarm: float | None
) -> "Goal":
    """The goal that the flags name. Raises UsageError."""
    from defectseg.tune.goals import BEST_DICE, LeastCost, MaxFalseAlarms, TargetRecall

    costs = (cost_miss, cost_false_alarm)
    given = [target_recall is not None, max_false_alarms is not None, costs != (None, None)]
    if sum(given) > 1:
        raise UsageError("give one of --target-recall, --max-false-alarms, and --cost-miss with --cost-false-alarm.")
    if target_recall is not None:
        if not 0 < target_recall <= 1:
            raise UsageError(f"--target-recall {target_recall:g}: expected a share above 0, up to 1, such as 0.95.")
        return TargetRecall(target_recall)
    if max_false_alarms is not None:
        if not 0 <= max_false_alarms <= 1:
            raise UsageError(f"--max-false-alarms {max_false_alarms:g}: expected a share from 0 to 1, such as 0.02.")
        return MaxFalseAlarms(max_false_alarms)
    if cost_miss is None and cost_false_alarm is None:
        return BEST_DICE
    if cost_miss is None or cost_false_alarm is None:
        raise UsageError("--cost-miss and --cost-false-alarm go together, in any currency.")
    if not all(math.isfinite(cost) and cost >= 0 for cost in (cost_miss, cost_false_alarm)) or not any(
        (cost_miss, cost_false_alarm)
    ):
        raise UsageError("--cost-miss and --cost-false-alarm: expected costs from 0, one of them above 0.")
    return LeastCost(cost_miss, cost_false_alarm)


def _report(tuning: "Tuning", out: Path | None, json_output: bool) -> None:
    import logging

    from defectseg.evaluate.metrics import signed

    if json_output:
        _warn(tuning)
        print_json(_content(tuning))
        return
    choice = tuning.choice
    print(f"Chosen by {tuning.thresholds.chosen_by}. Scores are Kaggle plus positive Dice.")
    print_rows([_HEADINGS, *_rows(choice)])
    if choice.gain is not None and choice.gain_interval is not None:
        low, high = signed(choice.gain_interval.low), signed(choice.gain_interval.high)
        print(f"Against the defaults, in cross-validation: {signed(choice.gain)} (95 % interval {low} to {high})")
    _warn(tuning)
    for path in (*tuning.stored, *([] if out is None else [out])):
        print(f"Stored in: {shown(path)}")
    if not tuning.stored:
        logging.getLogger("defectseg").info("the model was left as it is")


def _warn(tuning: "Tuning") -> None:
    import logging

    for warning in tuning.warnings:
        logging.getLogger("defectseg").warning("%s", warning)
    if tuning.low_bit_depth is not None:
        logging.getLogger("defectseg").warning(bit_depth_hint(tuning.low_bit_depth.bit_depth))


def _rows(choice: "Choice") -> list[list[str]]:
    rows = [
        [
            *(one.name, str(one.images_with), f"{one.gate:g}", f"{one.pixel:g}", str(one.min_area_px)),
            *_scores(one),
        ]
        for one in choice.classes
    ]
    return [*rows, ["all", str(choice.images), "", "", "", *_scores(choice)]]


def _scores(one: "ClassChoice | Choice") -> list[str]:
    """The cells from the defaults' score to false alarms; the last two from cross-validation where there was one."""
    from defectseg.evaluate.metrics import score

    validated = None if one.validated is None else one.validated.objective
    honest = one.validated or one.chosen
    figures = (one.default.objective, one.chosen.objective, validated, honest.recall, honest.false_alarms)
    return [score(value) for value in figures]


def _content(tuning: "Tuning") -> dict[str, Any]:
    from defectseg.evaluate.metrics import headline

    return {
        **tuning.choice.to_json(),
        "thresholds": tuning.thresholds.model_dump(mode="json"),
        "metrics": headline(tuning.metrics),
        "warnings": list(tuning.warnings),
        "unreadable": [[one.image_id, one.message] for one in tuning.unreadable],
        "stored": [str(path) for path in tuning.stored],
    }
