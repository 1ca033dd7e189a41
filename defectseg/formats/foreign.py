"""Labels that are recognised, but not read."""

from collections.abc import Mapping
from typing import Any

from defectseg.errors import DataError
from defectseg.formats.source import LabelSource

_WAY_ON = "Load them into CVAT or Label Studio, and export COCO there."


def refuse(source: LabelSource) -> None:
    """Raise DataError that says what the source is, if it is something known that cannot be imported."""
    if found := source.named("_classes.csv"):
        raise DataError(
            f"{source.path(found[0])}: labels for whole images, without outlines. They cannot be used here yet: draw "
            "outlines or masks of the defects."
        )
    for file, root in source.xmls(most=5):
        if root.find("object/polygon/pt") is not None:
            raise DataError(f"{source.path(file)}: XML of the first LabelMe, which is not read. {_WAY_ON}")
    for file, content in source.jsons(most=5):
        if _is_via(content):
            raise DataError(f"{source.path(file)}: JSON of the VGG Image Annotator (VIA), which is not read. {_WAY_ON}")
    if archives := source.with_suffix(".zip", ".rar", ".7z", ".tar", ".tgz"):
        raise DataError(
            f"{source.path(archives[0])}: an archive within {source.given}. Unpack it, and give its folder."
        )


def _is_via(content: Any) -> bool:
    if not isinstance(content, Mapping):
        return False
    images = content.get("_via_img_metadata", content)
    return isinstance(images, Mapping) and any(
        isinstance(one, Mapping) and "filename" in one and "regions" in one for one in images.values()
    )
