"""`defectseg evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import (
    MODEL,
    BitDepth,
    Data,
    Device,
    Json,
    MaxPixels,
    Overwrite,
    Runtime,
    Split,
    Tta,
    Verbose,
)
from defectseg.cli.show import finish, print_json, print_rows, shown, warn
from defectseg.errors import UsageError


def evaluate(
    data: Data,
    model: Annotated[str | None, MODEL] = None,
    out: Annotated[Path | None, typer.Option(help="Folder to write; absent or empty.", metavar="DIR")] = None,
    predictions: Annotated[
        Path | None, typer.Option(help="Score this CSV in the Kaggle format instead of a model.", metavar="FILE")
    ] = None,
    subset: Annotated[
        Literal["all", "train", "val"], typer.Option(help="Images to score: all, or train or val of split.csv.")
    ] = "all",
    split: Split = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score a model, or a file of predictions, on labelled images.

    The folder --out receives metrics.json, pairs.csv and report.html. For a model it also receives overlays/, where the
    label is blue, the prediction red, and their overlap magenta.

    Example: defectseg evaluate runs/1/model.safetensors --data severstal --subset val --out report/
    """
    from defectseg.evaluate.evaluate import evaluate as score_model
    from defectseg.evaluate.evaluate import evaluate_predictions
    from defectseg.evaluate.report import metrics_table
    from defectseg.model.locate import model_paths

    if (model is None) == (predictions is None):
        raise UsageError("evaluate needs either MODEL or --predictions FILE.")
    if predictions is not None:
        if subset != "all" or split is not None:
            raise UsageError("--subset and --split go with MODEL; --predictions is scored on the whole data folder.")
        evaluation = evaluate_predictions(predictions, data, out, overwrite=overwrite)
    else:
        assert model is not None
        if out is None:
            raise UsageError("evaluate MODEL needs --out DIR.")
        if split is not None and subset == "all":
            raise UsageError("--split tells train from val; give --subset train or --subset val with it.")
        with progress_bar("evaluating") as progress:
            evaluation = score_model(
                model_paths(model),
                data,
                out,
                subset=subset,
                split=split,
                overwrite=overwrite,
                device=device,
                runtime=runtime,
                tta=tta,
                bit_depth=bit_depth,
                progress=progress,
            )
    warn(evaluation.warnings, evaluation.low_bit_depth)
    if json_output:
        print_json({**evaluation.metrics.to_json(), "warnings": evaluation.warnings})
    else:
        print_rows(metrics_table(evaluation.metrics))
        if out is not None:
            print(f"Report: {shown(out / 'report.html')}")
    finish(partial=bool(evaluation.unreadable))
