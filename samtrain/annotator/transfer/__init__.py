"""The ways into the store and out of it: masks to be corrected, exports in the usual forms, and corrections for the audit."""

from __future__ import annotations

from samtrain.annotator.transfer.exporting import FORMATS, Exported, check_formats, coco_text, export_store
from samtrain.annotator.transfer.importing import Imported, import_masks, import_shards
from samtrain.annotator.transfer.review import disagreements, export_corrections, order_by_doubt

__all__ = [
    "FORMATS", "Exported", "Imported", "check_formats", "coco_text", "disagreements", "export_corrections", "export_store",
    "import_masks", "import_shards", "order_by_doubt",
]  # fmt: skip
