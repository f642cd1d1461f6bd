"""Zero-shot object proposals (section 7.3): the masks of an unfiltered generator, by COCO's mask AR."""

from __future__ import annotations

from typing import Any

import numpy as np

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_of, size_of
from samtrain.generator import SamAutomaticMaskGenerator
from samtrain.ops.rle import to_compressed

MAX_PROPOSALS = 1000  # a picture (AR@1000)
Row = dict[str, Any]


def proposal_row(generator: SamAutomaticMaskGenerator, record: Record) -> Row:
    """The proposals of a picture and its objects: key, `objects`, `crowd`, `found` and `scores`, RLEs with text counts.

    generator: a 64 x 64 grid on the whole picture, NMS at 0.9, no thresholds, `coco_rle` (conf/generator/proposals.yaml).
    Of more than 1000 masks those of the highest mean of predicted IoU and stability stay, which is the score by which the
    first 10 and 100 are taken, too. Raises ValueError where picture or RLEs do not fit the record.
    """
    annotations = record.annotation["annotations"]
    for each in annotations:
        to_compressed(each["segmentation"], size_of(record))
    records = generator.generate(image_of(record))
    scores = np.array([(each["predicted_iou"] + each["stability_score"]) / 2 for each in records])
    best = np.argsort(-scores, kind="stable")[:MAX_PROPOSALS]
    return {
        "key": record.key,
        "objects": [each["segmentation"] for each in annotations],
        "crowd": [bool(each.get("iscrowd", 0)) for each in annotations],
        "found": [records[i]["segmentation"] for i in best],
        "scores": scores[best].tolist(),
    }
