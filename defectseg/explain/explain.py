"""What a network sees in some images: a figure for each, and a page."""

import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from defectseg.errors import DataError, ModelError, ResourceError, UsageError
from defectseg.explain.sections import explain_image
from defectseg.files import result_folder, write_bytes, write_text
from defectseg.image.find import FoundImage
from defectseg.inference.predictor import Predictor
from defectseg.model.bundle import load_bundle
from defectseg.model.devices import resolve_device
from defectseg.pages.contact_sheet import make_contact_sheet
from defectseg.pages.page import render_page
from defectseg.pages.pictures import data_uri
from defectseg.predict.names import output_names
from defectseg.predict.rules import resolve_classes
from defectseg.progress import Progress, silent
from defectseg.runtime.load import is_bundle

PAGE, FIGURES = "explain.html", "figures"
MOST_IMAGES = 50
_small = partial(data_uri, largest_px=720)


def explain(
    models: Sequence[Path],
    images: Sequence[FoundImage],
    out: Path,
    *,
    classes: Sequence[str] | None = None,
    overwrite: bool = False,
    device: str = "auto",
    progress: Progress = silent,
) -> dict[str, Any]:
    """Show what the network of a bundle sees in images. An unreadable image is recorded, and the others go on.

    Args:
        models: one bundle.
        images: at most MOST_IMAGES.
        out: receives PAGE, and a PNG for each image in FIGURES.
        classes: ClassIds or names to explain, even where they are not found. None: those found, else the one that came
            closest to it.
        overwrite: replace earlier results.
        device: auto, cpu, cuda, cuda:N or mps.
        progress: called after each image.

    Returns:
        what was explained, for JSON; `unreadable`: ImageId -> message.

    Raises:
        UsageError: too many images, or no such class.
        OutputExistsError: the folder holds something else.
        ModelError, ResourceError: several models, an export, or a damaged one; or the folder cannot be written.
    """
    if len(models) > 1 or not is_bundle(models[0]):
        told = "explain looks into the layers of one bundle; an export has none. Give the bundle that train wrote"
        raise ModelError(f"{', '.join(map(str, models))}: {told}, such as runs/1/model.safetensors.")
    if len(images) > MOST_IMAGES:
        raise UsageError(f"{len(images):,} images; explain takes a close look at up to {MOST_IMAGES}. Name fewer.")
    network, info = load_bundle(models[0])
    asked = [] if classes is None else [class_id - 1 for class_id in resolve_classes(classes, info.class_names)]
    network, predictor = network.to(resolve_device(device)), Predictor.load(models[0], device=device)
    names = output_names(image.image_id for image in images)
    explained, unreadable, shown = list[dict[str, Any]](), dict[str, str](), list[Any]()
    with result_folder(out, (PAGE, FIGURES), writer="explain", overwrite=overwrite):
        shutil.rmtree(out / FIGURES, ignore_errors=True)
        for done, image in enumerate(images, start=1):
            try:
                facts, sections = explain_image(predictor(image.path), network, info, asked)
            except (DataError, ResourceError) as error:
                unreadable[image.image_id] = str(error)
            else:
                name = f"{FIGURES}/{names[image.image_id]}.png"
                figure = np.vstack([make_contact_sheet(panels, title) for title, panels in sections])
                write_bytes(out / name, cv2.imencode(".png", figure)[1].tobytes())
                explained.append({"image_id": image.image_id, "picture": name, **facts})
                shown.append([(title, [(_small(one), text) for one, text in panels]) for title, panels in sections])
            progress(done, len(images))
        result = {"model": str(models[0]), "images": explained, "unreadable": unreadable}
        page = render_page("defectseg.explain", {}, title="What the network sees", result=result, shown=shown)
        write_text(out / PAGE, page)
    return result
