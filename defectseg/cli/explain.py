"""`defectseg explain`."""

from typing import Annotated

from typer import Argument

from defectseg.cli.bars import progress_bar
from defectseg.cli.options import Classes, Device, Json, NewFolder, Overwrite, Verbose, entries
from defectseg.cli.predict import expand
from defectseg.cli.show import finish, print_json, shown, warn
from defectseg.errors import require_extra


def explain(
    model: Annotated[str, Argument(help="Model file or run folder of train.", metavar="MODEL")],
    inputs: Annotated[list[str], Argument(help="Images, folders or glob patterns; 50 at most.", metavar="IMAGE...")],
    out: NewFolder,
    classes: Classes = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    json_output: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show what the network sees in images: filters, feature maps, evidence for each class, probabilities.

    The folder --out receives figures/IMAGE.png for each image, and explain.html, which says what one sees there. Of an
    image larger than a tile, the tile with the strongest answer is explained. Without --classes, the classes are
    those found, or the one that came closest; with it, these are explained wherever they are most probable.

    Exit codes: 0 done; 3 some images are unreadable; 2 wrong usage; 4 could not go on, or MODEL is an export.

    Example: defectseg explain runs/1 sheet.jpg --out explained
    """
    require_extra("defectseg explain", "train", "torch", "segmentation_models_pytorch", "captum")
    from defectseg.explain.explain import PAGE
    from defectseg.explain.explain import explain as explain_images
    from defectseg.image.find import find_images
    from defectseg.model.locate import model_paths

    images = find_images(*expand(inputs), skip=out, keep_faulty=True)
    chosen = entries(classes)
    with progress_bar("explaining") as progress:
        result = explain_images(
            model_paths(model), images, out, classes=chosen, overwrite=overwrite, device=device, progress=progress
        )
    warn(result["unreadable"].values())
    if json_output:
        print_json(result)
    else:
        print(f"{len(result['images'])} images explained, {len(result['unreadable'])} unreadable: {shown(out / PAGE)}")
    finish(partial=bool(result["unreadable"]))
