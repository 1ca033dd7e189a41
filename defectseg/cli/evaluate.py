"""`defectseg evaluate`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Option

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import (
    DATA,
    MODEL,
    BitDepth,
    Device,
    Group,
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
    model: Annotated[str | None, MODEL] = None,
    data: Annotated[Path | None, DATA] = None,
    out: Annotated[Path | None, Option(help="Folder to write; absent or empty.", metavar="DIR")] = None,
    predictions: Annotated[
        Path | None,
        Option(
            help="Score this CSV in the Kaggle format, or the output folder of predict; without --data, check the CSV.",
            metavar="FILE|DIR",
        ),
    ] = None,
    images: Annotated[
        Path | None, Option(help="Folder of the images of FILE, to check names and sizes.", metavar="DIR")
    ] = None,
    subset: Annotated[
        Literal["all", "train", "val", "test"], Option(help="Images to score: all, or a part of split.csv.")
    ] = "all",
    split: Split = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    runtime: Runtime = "auto",
    tta: Tta = None,
    bit_depth: BitDepth = None,
    max_pixels: MaxPixels = None,
    group: Group = None,
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Score a model, or a file of predictions, on labelled images.

    A file of predictions without labels is checked: its form, its names, and with --images also that it lists all
    images and that no run lies beyond its image.

    In the run folder of train --fold all, an image is scored by the model of the fold that held it out, and one that no
    fold saw by the average of all. Intervals are over groups of images: --group, or split.csv, or groups.csv.

    The folder --out receives metrics.json, pairs.csv and report.html. For a model it also receives overlays/, where the
    label is blue, the prediction red, and their overlap magenta, or yellow where the classes differ.

    Example: defectseg evaluate runs/1/model.safetensors --data severstal --subset val --out report/
    """
    from defectseg.evaluate.evaluate import evaluate as score_model
    from defectseg.evaluate.evaluate import evaluate_predictions
    from defectseg.evaluate.report import metrics_table
    from defectseg.model.locate import model_paths

    if (model is None) == (predictions is None):
        raise UsageError("evaluate needs either MODEL or --predictions FILE.")
    if predictions is not None and (subset != "all" or split is not None):
        raise UsageError("--subset and --split go with MODEL; --predictions is scored on the whole data folder.")
    if predictions is not None and data is None and out is None and group is None:
        _check(predictions, images, json_output)
        return
    if data is None:
        raise UsageError("evaluate needs --data DIR. Without labels, it checks --predictions FILE and writes nothing.")
    if images is not None:
        raise UsageError("--images goes with --predictions FILE alone; --data DIR has its own images.")
    if predictions is not None:
        evaluation = evaluate_predictions(predictions, data, out, overwrite=overwrite, group=group)
    else:
        assert model is not None
        if out is None:
            raise UsageError("evaluate MODEL needs --out DIR.")
        if split is not None and subset == "all":
            raise UsageError("--split tells train from val and test; give one of these to --subset with it.")
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
                group=group,
                progress=progress,
            )
    warn(evaluation.warnings)
    if json_output:
        print_json({**evaluation.to_json(), "warnings": evaluation.warnings})
    else:
        print_rows(metrics_table(evaluation.metrics))
        if out is not None:
            print(f"Report: {shown(out / 'report.html')}")
    finish(partial=bool(evaluation.unreadable))


def _check(predictions: Path, images: Path | None, json_output: bool) -> None:
    """Check a file of predictions without labels and print what it holds."""
    from defectseg.evaluate.prediction_file import check_predictions

    content = check_predictions(predictions, images)
    if json_output:
        print_json(vars(content))
    else:
        compared = "" if images else "; not compared with images, which --images DIR does"
        print(f"{content.images} images, {content.empty_images} of them without a mask{compared}")
        numbers = [[str(class_id), str(content.masks[class_id]), str(px)] for class_id, px in content.px.items()]
        if numbers:
            print_rows([["class", "masks", "pixels"], *numbers])
    warn(content.warnings)
    finish(partial=bool(content.warnings))
