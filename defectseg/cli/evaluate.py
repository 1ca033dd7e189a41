"""`defectseg evaluate`."""

from pathlib import Path
from typing import Annotated, Any

import typer

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import BitDepth, Device, Json, MaxPixels, Overwrite, RuntimeName, Tta, Verbose
from defectseg.cli.show import bit_depth_hint, finish, print_json, print_rows, shown
from defectseg.errors import ExitCode, UsageError


def evaluate(
    data: Annotated[Path, typer.Option("--data", help="Data folder: train.csv beside train_images/.", metavar="DIR")],
    model: Annotated[
        str | None,
        typer.Argument(
            help="A model file, the run folder of train, or several, comma-separated, whose answers are averaged."
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder to write; absent or empty.", metavar="DIR")] = None,
    predictions: Annotated[
        Path | None,
        typer.Option("--predictions", help="Score this CSV in the Kaggle format instead of a model.", metavar="FILE"),
    ] = None,
    subset: Annotated[
        str,
        typer.Option(
            "--subset", help="Images to score: all, or train or val as split.csv has them.", metavar="all|train|val"
        ),
    ] = "all",
    split: Annotated[
        Path | None,
        typer.Option("--split", help="The split.csv to use. Default: the one beside MODEL.", metavar="FILE"),
    ] = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    runtime: RuntimeName = "auto",
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score a model, or anyone's predictions, on labelled images.

    DIR receives metrics.json, pairs.csv, report.html and, for a model, overlays/ with the label in blue, the prediction
    in red and what is both in magenta.

    Example: defectseg evaluate runs/1/model.safetensors --data severstal --subset val --out report/
    """
    from defectseg.evaluate.evaluate import evaluate as score_model
    from defectseg.evaluate.evaluate import evaluate_predictions
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
        if subset not in ("all", "train", "val"):
            raise UsageError(f"--subset {subset}: expected all, train or val.")
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
    _report(evaluation, out, json_output)
    finish(ExitCode.PARTIAL if evaluation.unreadable else ExitCode.DONE)


def _report(evaluation: Any, out: Path | None, json_output: bool) -> None:
    import logging

    from defectseg.evaluate.report import metrics_table

    for warning in evaluation.warnings:
        logging.getLogger("defectseg").warning("%s", warning)
    if evaluation.low_bit_depth is not None:
        logging.getLogger("defectseg").warning(bit_depth_hint(evaluation.low_bit_depth.bit_depth))
    if json_output:
        print_json({**evaluation.metrics.to_json(), "warnings": list(evaluation.warnings)})
        return
    print_rows(metrics_table(evaluation.metrics))
    if out is not None:
        print(f"Report: {shown(out / 'report.html')}")
