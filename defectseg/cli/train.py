"""`defectseg train`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from defectseg.cli.common import (
    Device,
    Json,
    Verbose,
    finish,
    is_main_process,
    print_json,
    print_rows,
    progress,
    require_extra,
    shown,
)
from defectseg.errors import ExitCode, UsageError


def train(
    config: Annotated[
        str, typer.Argument(help="A shipped recipe (severstal, severstal-small, neu900, demo) or a YAML file.")
    ] = "severstal",
    data: Annotated[
        Path | None, typer.Option("--data", help="Data folder: train.csv beside train_images/.", metavar="DIR")
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Run folder to write; absent or empty.", metavar="RUN")
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="Change a key of the recipe, e.g. training.epochs=5; repeatable.", metavar="KEY=VALUE"
        ),
    ] = None,
    encoder_weights: Annotated[
        str | None,
        typer.Option(
            "--encoder-weights",
            help="imagenet (downloads), none, or a timm-named .safetensors or .pth file. Default: as in the recipe.",
            metavar="imagenet|none|FILE",
        ),
    ] = None,
    fold: Annotated[
        str, typer.Option("--fold", help="Fold to validate on; none: train on everything.", metavar="N|none")
    ] = "0",
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this model; its classes may differ.", metavar="MODEL")
    ] = None,
    device: Device = "auto",
    resume: Annotated[bool, typer.Option("--resume", help="Continue the interrupted run in --out.")] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Show the resolved recipe and stop.")] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on a data folder.

    RUN receives model.safetensors (when training has ended), config.yaml, split.csv, metrics.jsonl, curves.png and
    TensorBoard events. Folds come from split.csv in the data folder, or from the seed.

    Example: defectseg train severstal-small --data severstal --out runs/1
    """
    from defectseg.config import dump_recipe, load_recipe

    if encoder_weights is not None:
        overrides = [*(overrides or ()), f"model.encoder_weights={json.dumps(encoder_weights)}"]
    recipe = load_recipe(config, overrides or ())
    if print_config:
        print(dump_recipe(recipe), end="")
        return
    if data is None or out is None:
        raise UsageError("train needs --data DIR and --out RUN; see defectseg train --help.")
    if resume and (overrides or init is not None):
        raise UsageError(
            "--resume continues with the recipe in the run folder; leave out --set, --encoder-weights and --init."
        )
    require_extra("training", "train", "torch", "segmentation_models_pytorch", "accelerate", "albumentations")
    from defectseg.inference.runtimes import find_model
    from defectseg.training.run import TrainRequest
    from defectseg.training.run import train as run_training

    with progress("training", after_interrupt="Continue it with --resume.") as bar:
        result = run_training(
            TrainRequest(
                recipe=recipe,
                data=data,
                out=out,
                device=device,
                fold=_parse_fold(fold),
                init=None if init is None else find_model(init),
                resume=resume,
                advance=bar.move,
            )
        )
    if is_main_process():
        _report(result, json_output)
    finish(ExitCode.PARTIAL if result.failed else ExitCode.DONE)


def _parse_fold(text: str) -> int | None:
    if text == "none":
        return None
    if text.isdigit():
        return int(text)
    raise UsageError(f"--fold {text}: expected a number from 0, or none.")


def _report(result: Any, json_output: bool) -> None:
    if json_output:
        metrics = None if result.metrics is None else result.metrics.to_json()
        print_json(
            {"model": str(result.model), "validation": metrics, "left_out": [list(pair) for pair in result.failed]}
        )
        return
    if result.metrics is not None:
        from defectseg.evaluation.report import metrics_table

        print("Validation images, with the thresholds that were chosen on them:")
        print_rows(metrics_table(result.metrics))
    print(f"Model: {shown(result.model)}")
