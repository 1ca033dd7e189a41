"""`defectseg train`."""

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Device, Json, MaxPixels, Verbose
from defectseg.cli.show import bit_depth_hint, finish, print_json, print_rows, shown
from defectseg.errors import ExitCode, UsageError, require_extra
from defectseg.machine import is_main_process

if TYPE_CHECKING:
    from defectseg.config import Recipe

log = logging.getLogger("defectseg")


def train(
    config: Annotated[
        str, typer.Argument(help="A shipped recipe (severstal, severstal-small, fast, neu900, demo) or a YAML file.")
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
        str | None,
        typer.Option(
            "--fold",
            help="Fold to validate on; none: train on everything; all: a run for each fold. Default: as in the recipe.",
            metavar="N|none|all",
        ),
    ] = None,
    batch_size: Annotated[
        str | None,
        typer.Option(
            "--batch-size",
            help="Crops in a step; auto: as many as fit into memory, up to the recipe's.",
            metavar="N|auto",
        ),
    ] = None,
    bit_depth: BitDepth = None,
    max_minutes: Annotated[
        float | None, typer.Option("--max-minutes", help="Plan as many epochs as fit, then stop.", metavar="MIN")
    ] = None,
    cache: Annotated[
        bool | None, typer.Option("--cache/--no-cache", help="Keep decoded images in memory. Default: where they fit.")
    ] = None,
    thresholds: Annotated[
        Path | None,
        typer.Option("--thresholds", help="Take the thresholds from this model, or file of tune.", metavar="FILE"),
    ] = None,
    init: Annotated[
        Path | None, typer.Option("--init", help="Start from this model; its classes may differ.", metavar="MODEL")
    ] = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
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

    changes = [*(overrides or ()), *_changes(encoder_weights, batch_size, bit_depth, max_minutes, cache)]
    recipe = load_recipe(config, [*changes, *_fold_change(fold)])
    if print_config:
        print(dump_recipe(recipe), end="")
        return
    if out is None or (data is None and not resume):
        raise UsageError("train needs --data DIR and --out RUN; see defectseg train --help.")
    if resume and (changes or init is not None or thresholds is not None):
        raise UsageError("--resume continues with the recipe in the run folder; leave out what would change it.")
    require_extra("training", "train", "torch", "segmentation_models_pytorch", "accelerate", "albumentations")
    from defectseg.train.train import train as run_training

    asked: dict[str, Any] = {"data": data, "out": out, "device": device, "resume": resume}
    if resume:
        _warn_of_another_fold(out, fold)
    else:
        asked |= {"recipe": recipe, "every_fold": fold == "all"}
        asked["init"] = None if init is None else _find_init(init, recipe, changes)
        asked["thresholds"] = None if thresholds is None or data is None else _read_thresholds(thresholds, data)
    with progress_bar("training", after_interrupt="Continue it with --resume.") as progress:
        results = run_training(**asked, progress=progress)
    if is_main_process():
        _report(results, json_output)
        if results[0].low_bit_depth is not None:
            low = results[0].low_bit_depth
            log.warning("%s %s", low, bit_depth_hint(low.bit_depth))
    finish(ExitCode.PARTIAL if any(result.unreadable for result in results) else ExitCode.DONE)


def _changes(
    encoder_weights: str | None,
    batch_size: str | None,
    bit_depth: int | None,
    max_minutes: float | None,
    cache: bool | None,
) -> list[str]:
    """The flags that stand for keys of the recipe, as `key=value`."""
    changes = []
    if encoder_weights is not None:
        changes.append(f"model.encoder_weights={json.dumps(encoder_weights)}")
    if batch_size == "auto":
        changes.append("training.fit_memory=true")
    elif batch_size is not None:
        if not batch_size.isdigit():
            raise UsageError(f"--batch-size {batch_size}: expected a number from 1, or auto.")
        changes.append(f"training.batch_size={batch_size}")
    if bit_depth is not None:
        changes.append(f"data.bit_depth={bit_depth}")
    if max_minutes is not None:
        changes.append(f"training.max_minutes={max_minutes}")
    if cache is not None:
        changes.append(f"data.cache={json.dumps(cache)}")
    return changes


def _fold_change(fold: str | None) -> list[str]:
    if fold is None or fold == "all":
        return []
    if not (fold == "none" or fold.isdigit()):
        raise UsageError(f"--fold {fold}: expected a number from 0, none or all.")
    return [f"data.fold={'null' if fold == 'none' else fold}"]


def _warn_of_another_fold(out: Path, fold: str | None) -> None:
    """Say that a --fold other than that which the training in a run folder began with is passed over."""
    from defectseg.train.run_folder import read_request

    request = read_request(out)
    number = request.recipe.data.fold
    begun = "all" if request.every_fold else "none" if number is None else str(number)
    if fold not in (None, begun):
        log.warning("--fold %s is passed over: this training began with --fold %s", fold, begun)


def _find_init(init: Path, recipe: "Recipe", changes: Sequence[str]) -> Path:
    """The model file to start from. Raises UsageError where its network is not what changes of the recipe ask for."""
    from defectseg.config import apply_override
    from defectseg.model.info import read_model_info
    from defectseg.model.locate import find_model

    path = find_model(init)
    asked: dict[str, Any] = {}
    for change in changes:
        apply_override(asked, change)
    model = read_model_info(path).recipe.model
    for key in asked.get("model") or ():
        wanted, found = getattr(recipe.model, key), getattr(model, key)
        if wanted != found:
            raise UsageError(
                f"--init {init}: its network has model.{key} {found!r}, but {wanted!r} is asked for. "
                "The network and its weights are those of --init: leave out one of the two."
            )
    return path


def _read_thresholds(path: Path, data: Path) -> Any:
    from defectseg.data.folder import open_data_folder
    from defectseg.tune.file import read_thresholds

    return read_thresholds(path, open_data_folder(data).class_names)


def _report(results: Sequence[Any], json_output: bool) -> None:
    if json_output:
        entries = [
            {
                "model": str(result.model),
                "validation": None if result.metrics is None else result.metrics.to_json(),
                "unreadable": [list(pair) for pair in result.unreadable],
            }
            for result in results
        ]
        print_json(entries[0] if len(entries) == 1 else entries)
        return
    from defectseg.evaluate.report import metrics_table

    for result in results:
        if result.metrics is not None:
            print(f"{result.held_out}:")
            print_rows(metrics_table(result.metrics))
        print(f"Model: {shown(result.model)}")
