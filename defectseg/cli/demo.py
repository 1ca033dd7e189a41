"""`defectseg demo`."""

from pathlib import Path

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import Device, NewFolder, Verbose
from defectseg.cli.show import print_rows, shown
from defectseg.errors import OutputExistsError, require_extra

TRAINING_SHEETS = 1000
UNSEEN_SHEETS = 40


def demo(out: NewFolder = Path("defectseg-demo"), device: Device = "auto", verbose: Verbose = False) -> None:
    """Try the whole workflow on synthetic sheets: make them, train, evaluate, predict.

    Takes about six minutes on two CPU cores. Nothing is downloaded.

    Example: defectseg demo --out demo/
    """
    require_extra("the demo", "train", "torch", "segmentation_models_pytorch", "accelerate", "albumentations")
    from defectseg.config import load_recipe
    from defectseg.data.folder import images_folder
    from defectseg.data.synthetic import write_data_folder
    from defectseg.evaluate.evaluate import evaluate
    from defectseg.evaluate.report import metrics_table
    from defectseg.files import is_empty_folder
    from defectseg.image.find import find_images
    from defectseg.predict.predict import predict
    from defectseg.train.train import train

    if not is_empty_folder(out):
        raise OutputExistsError(f"{out}: not empty. Choose another --out.")
    print(f"1/4 making {TRAINING_SHEETS} synthetic sheets to train on, and {UNSEEN_SHEETS} others", flush=True)
    with progress_bar("making") as progress:
        write_data_folder(out / "train", images=TRAINING_SHEETS, seed=0, progress=progress)
    write_data_folder(out / "unseen", images=UNSEEN_SHEETS, seed=1)

    print("2/4 training a small U-Net, at most 3.5 minutes", flush=True)
    with progress_bar("training") as progress:
        (trained,) = train(out / "train", out / "run", recipe=load_recipe("demo"), device=device, progress=progress)

    print("3/4 evaluating on the sheets that it was not trained on", flush=True)
    with progress_bar("evaluating") as progress:
        evaluation = evaluate(trained.model, out / "unseen", out / "evaluation", device=device, progress=progress)
    print_rows(metrics_table(evaluation.metrics))

    print("4/4 predicting, as on new images", flush=True)
    sheets = find_images([images_folder(out / "unseen")])
    with progress_bar("predicting") as progress:
        predict(trained.model, sheets, out / "predictions", device=device, progress=progress)
    print("\nLook at:")
    print(f"  defects in red                {shown(out / 'predictions' / 'overlays')}")
    print(f"  results as tables             {shown(out / 'predictions' / 'images.csv')} and its neighbours")
    print(f"  label and prediction compared {shown(out / 'evaluation' / 'report.html')}")
    print(f"  the model                     {shown(trained.model)}")
