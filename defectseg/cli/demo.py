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

    Takes about six minutes on two CPU cores. Nothing is downloaded. `picture.jpg` shows one of the sheets, the truth in
    blue, and the model's answer in red: of the sheets with a defect, that of the median Dice.

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
    picture = out / "picture.jpg"
    _write_picture(picture, trained.model, out / "unseen", _typical_sheet(out / "evaluation" / "pairs.csv"), device)
    print("\nLook at:")
    print(f"  a typical sheet, the truth, the answer   {shown(picture)}")
    print(f"  all answers, the worst sheets first      {shown(out / 'predictions' / 'index.html')}")
    print(f"  how many it missed, how many it stopped  {shown(out / 'evaluation' / 'report.html')}")
    print(f"  the model                                {shown(trained.model)}")
    print("\nNow your own images, with labels from CVAT, Label Studio, COCO and others (defectseg data import --list):")
    print("  defectseg data import LABELS --images IMAGES --out mill")
    print("  defectseg train --data mill --out runs/mill")
    print("  defectseg predict runs/mill NEW_IMAGES --out results")


def _typical_sheet(pairs: Path) -> str:
    """ImageId of the sheet with the median Dice of all its pixels, whatever the class, among those with a defect."""
    import pandas as pd

    sheets = pd.read_csv(pairs).groupby("ImageId")[["true_px", "predicted_px", "both_px"]].sum()
    sheets = sheets[sheets["true_px"] > 0]
    dice = 2 * sheets["both_px"] / (sheets["true_px"] + sheets["predicted_px"])
    return str(dice.sort_values(kind="stable").index[len(dice) // 2])


def _write_picture(out: Path, model: Path, data: Path, image_id: str, device: str) -> None:
    """Write a JPEG: a sheet of a data folder as it is, the truth in blue, the answer of the model in red."""
    import cv2
    import numpy as np

    from defectseg import Predictor
    from defectseg.compare.pictures import paint_answer, place_beside
    from defectseg.data.folder import open_data_folder
    from defectseg.files import write_result
    from defectseg.image.overlay import encode_jpeg, paint_truth

    folder = open_data_folder(data)
    answer = Predictor.load(model, device=device)(folder.image_path(image_id))
    truth, _ = folder.masks_of(image_id, (answer.image.shape[0], answer.image.shape[1]))
    names = ", ".join(folder.class_names[class_id - 1] for class_id in folder.classes_of(image_id))
    found = {class_id: mask for class_id, mask in answer.run_lengths().items() if mask}
    sheet = np.asarray(cv2.cvtColor(answer.image, cv2.COLOR_GRAY2BGR), np.uint8)
    panels = (
        (sheet, "a sheet that the model has not seen"),
        (paint_truth(answer.image, np.any(truth, axis=0)), f"the truth, in blue: {names}"),
        paint_answer("the model's answer, in red", answer.image, found, answer.class_names),
    )
    write_result(out, encode_jpeg(place_beside(panels), 85, 1200))
