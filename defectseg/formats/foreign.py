"""Labels that are recognised, but not read."""

from typing import Any

from defectseg.errors import DataError
from defectseg.formats.reading import value_at
from defectseg.formats.source import LabelSource

_WAY_ON = "which is not read. Load them into CVAT or Label Studio, and export COCO there."
_IMAGE_LEVEL = "labels for whole images, which cannot be used here yet: draw outlines or masks of the defects."


def refuse(source: LabelSource) -> None:
    """Raise DataError that says what the source is, if it is something known that cannot be imported."""
    known = {
        _IMAGE_LEVEL: source.named("_classes.csv"),
        f"JSON of VIA (VGG Image Annotator), {_WAY_ON}": [file for file, one in source.first(".json") if _is_via(one)],
        f"an archive within {source.given}. Unpack it.": source.with_suffix(".zip", ".rar", ".7z", ".tar", ".tgz"),
    }
    for what, files in known.items():
        if files:
            raise DataError(f"{source.path(files[0])}: {what}")


def _is_via(content: Any) -> bool:
    images = value_at(content, "_via_img_metadata") or content
    entries = images.values() if isinstance(images, dict) else ()
    return any({"filename", "regions"} <= set(one) for one in entries if isinstance(one, dict))
