"""`defectseg train`."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from typer import Argument, Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Device, Json, MaxPixels, Verbose
from defectseg.cli.show import finish, log, print_json, print_rows, shown
from defectseg.errors import UsageError, require_extra
from defectseg.machine import is_main_process

if TYPE_CHECKING:
    from defectseg.config import Recipe
    from defectseg.train.train import TrainResult

_PACKAGES = ("torch", "segmentation_models_pytorch", "accelerate", "albumentations")


def _recipes() -> list[str]:
    from defectseg.config import shipped_recipes

    return sorted(shipped_recipes())


def train(
    config: Annotated[
        str | None,
        Argument(
            help="YAML file or shipped recipe (severstal, severstal-small, fast, neu900, demo). Default: chosen from "
            "what is in --data.",
            metavar="CONFIG",
            autocompletion=_recipes,
        ),
    ] = None,
    data: Annotated[Path | None, Option(help="Data folder: train.csv beside train_images/.", metavar="DIR")] = None,
    out: Annotated[Path | None, Option(help="Run folder to write; absent or empty.", metavar="RUN")] = None,
    overrides: Annotated[
        list[str] | None,
        Option("--set", help="Change a recipe key, e.g. training.epochs=5; repeatable.", metavar="KEY=VALUE"),
    ] = None,
    encoder_weights: Annotated[
        str | None,
        Option(help="Initial weights; FILE has timm's names. Default: see recipe.", metavar="imagenet|none|FILE"),
    ] = None,
    fold: Annotated[
        str | None,
        Option(help="Fold to validate on, none, or all in turn. Default: see recipe.", metavar="N|val|none|all"),
    ] = None,
    use_val: Annotated[bool, Option("--use-val", help="With --fold none: train on val, too.")] = False,
    batch_size: Annotated[
        str | None, Option(help="Crops per step. auto: as many as fit into memory.", metavar="N|auto")
    ] = None,
    bit_depth: BitDepth = None,
    max_minutes: Annotated[
        float | None, Option(help="Train as many epochs as fit into this time.", metavar="MIN")
    ] = None,
    thresholds: Annotated[
        Path | None, Option(help="Model, or file of tune --out, to take the thresholds from.", metavar="FILE")
    ] = None,
    init: Annotated[Path | None, Option(help="Model to start from; its classes may differ.", metavar="MODEL")] = None,
    device: Device = "auto",
    max_pixels: MaxPixels = None,
    resume: Annotated[bool, Option("--resume", help="Continue the interrupted run in --out.")] = False,
    print_config: Annotated[bool, Option("--print-config", help="Print the resolved recipe and exit.")] = False,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Train a model on a data folder.

    Without CONFIG, the nearest shipped recipe is fitted to the data: by number, size and classes of the images, the
    share of clean ones, device and time. Flags win over it. What was taken and why is told and written into RUN.

    RUN receives model.safetensors (at the end of the training), config.yaml, split.csv, metrics.jsonl, curves.png and
    TensorBoard events. Folds come from split.csv in the data folder; without it, they are drawn by the seed. Its part
    test is never trained on. Its part val is trained on only with --use-val, and validates if no other fold is named.

    Example: defectseg train --data mill --out runs/1
    """
    from defectseg.config import dump_recipe

    keys = {
        "model.encoder_weights": None if encoder_weights is None else json.dumps(encoder_weights),
        "training.fit_memory": "true" if batch_size == "auto" else None,
        "training.batch_size": None if batch_size == "auto" else batch_size,
        "training.max_minutes": max_minutes,
        "data.bit_depth": bit_depth,
        "data.fold": {"all": None, "none": "null"}.get(fold or "all", fold),
    }
    changes = [*(overrides or ()), *(f"{key}={value}" for key, value in keys.items() if value is not None)]
    if init is not None and any(change.startswith("model") for change in changes):
        raise UsageError("--init gives the network and its weights; leave out what would change the recipe's model.")
    if print_config:
        print(dump_recipe(*_recipe(config, changes, data, device)), end="")
        return
    if out is None or (data is None and not resume):
        raise UsageError("train needs --data DIR and --out RUN; see defectseg train --help.")
    if resume and (changes or fold or init or thresholds or use_val):
        raise UsageError("--resume continues with the recipe in the run folder; leave out what would change it.")
    asked: dict[str, Any] = {"data": data, "out": out, "device": device, "resume": resume}
    if not resume:
        asked["recipe"], asked["why"] = _recipe(config, changes, data, device)
    require_extra("training", "train", *_PACKAGES)
    from defectseg.data.folder import open_data_folder
    from defectseg.model.locate import find_model
    from defectseg.train.train import train as run_training
    from defectseg.tune.file import read_thresholds

    if not resume:
        assert data is not None
        asked |= {"every_fold": fold == "all", "use_val": use_val}
        asked["init"] = None if init is None else find_model(init)
        if thresholds is not None:
            asked["thresholds"] = read_thresholds(thresholds, open_data_folder(data).class_names)
    with progress_bar("training", after_interrupt="Continue it with --resume.") as progress:
        results = run_training(**asked, progress=progress)
    if is_main_process():
        _report(results, json_output)
        # The others end with 0: torchrun stops all processes once one has ended with another code.
        finish(partial=any(result.unreadable for result in results))


def _recipe(
    config: str | None, changes: Sequence[str], data: Path | None, device: str
) -> tuple["Recipe", tuple[str, ...]]:
    """The recipe, and why it was taken if it was chosen from the data."""
    from defectseg.config import load_recipe

    if config is not None:
        return load_recipe(config, changes), ()
    if data is None:
        raise UsageError("--print-config needs CONFIG, or --data DIR to choose a recipe from.")
    require_extra("training", "train", *_PACKAGES)
    from defectseg.train.choose import choose_recipe

    recipe, why = choose_recipe(data, device, changes)
    for sentence in why:
        log.info("%s", sentence)
    return recipe, why


def _report(results: Sequence["TrainResult"], json_output: bool) -> None:
    if json_output:
        entries = [
            {"model": str(one.model), "validation": one.metrics and one.metrics.to_json(), "unreadable": one.unreadable}
            for one in results
        ]
        print_json(entries[0] if len(entries) == 1 else entries)
        return
    from defectseg.evaluate.report import metrics_table

    for result in results:
        if result.metrics is not None:
            print(f"{result.held_out}:")
            print_rows(metrics_table(result.metrics))
        print(f"Model: {shown(result.model)}")
