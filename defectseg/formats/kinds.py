"""The kinds of labels that can be imported, and which of them a source is."""

from defectseg.errors import DataError, UsageError
from defectseg.formats import coco, cvat, foreign, label_studio, labelme, severstal, supervisely, voc
from defectseg.formats.labels import Kind
from defectseg.formats.masks import read as masks
from defectseg.formats.source import LabelSource
from defectseg.formats.yolo import read as yolo

_READERS = (masks, coco, yolo, labelme, cvat, label_studio, supervisely, voc, severstal)
KINDS: tuple[Kind, ...] = tuple(reader.KIND for reader in _READERS)


def recognise(source: LabelSource, name: str | None = None) -> tuple[Kind, str]:
    """The kind of a source, and the evidence.

    Args:
        source: the labels.
        name: the kind, if the user says so.

    Raises:
        UsageError: there is no such kind.
        DataError: the source may be of several kinds, or of none that can be read; says what it looks like.
    """
    known = {kind.name: kind for kind in KINDS}
    if name is not None:
        if name not in known:
            raise UsageError(f"'{name}' is no kind of labels; there are {', '.join(known)}.", argument="as")
        return known[name], known[name].recognise(source) or "as you said"
    found = [(kind, evidence) for kind in KINDS if (evidence := kind.recognise(source))]
    if len(found) > 1:
        found = [one for one in found if not one[0].boxes_only(source)] or found[:1]
    if len(found) == 1:
        return found[0]
    if found:
        may_be = " or ".join(f"{kind.name} ({evidence})" for kind, evidence in found)
        raise DataError(f"{source.given}: may be {may_be}.", go_on={"as": "|".join(kind.name for kind, _ in found)})
    foreign.refuse(source)
    for file in source.with_suffix(".json", ".xml")[:5]:  # a damaged file is of no kind, and says so
        source.content(file)
    raise DataError(
        f"{source.given}: no labels of a known kind. Known are {', '.join(known)}; `defectseg data import --list` says "
        "what writes them."
    )
