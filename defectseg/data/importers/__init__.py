"""Other label formats, turned into the data folder."""

from defectseg.data.importers.coco import import_coco
from defectseg.data.importers.folder import ImportReport
from defectseg.data.importers.masks import import_masks
from defectseg.data.importers.yolo import import_yolo

__all__ = ["ImportReport", "import_coco", "import_masks", "import_yolo"]
