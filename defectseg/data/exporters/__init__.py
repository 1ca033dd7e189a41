"""The data folder, turned into other label formats."""

from defectseg.data.exporters.coco import export_coco
from defectseg.data.exporters.folder import ExportReport
from defectseg.data.exporters.masks import export_masks
from defectseg.data.exporters.yolo import export_yolo

__all__ = ["ExportReport", "export_coco", "export_masks", "export_yolo"]
