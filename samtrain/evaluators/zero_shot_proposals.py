"""Zero-shot object proposals (section 7.3): the masks of an unfiltered generator, by COCO's mask AR."""

from __future__ import annotations

from typing import Any

import numpy as np

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import image_of
from samtrain.evaluators.objects import image_row
from samtrain.inference.generator import SamAutomaticMaskGenerator

MAX_PROPOSALS = 1000  # an image (AR@1000)
Row = dict[str, Any]


def proposal_row(generator: SamAutomaticMaskGenerator, record: Record) -> Row:
    """The proposals of an image and its objects, as `objects.image_row`.

    generator: a 64 x 64 grid on the whole image, NMS at 0.9, no thresholds, `coco_rle` (conf/generator/proposals.yaml).
    Of more than 1000 masks those of the highest mean of predicted IoU and stability stay, which is the score by which the
    first 10 and 100 are taken, too. Raises ValueError where image or RLEs do not fit the record.
    """
    records = generator.generate(image_of(record))
    scores = np.array([(each["predicted_iou"] + each["stability_score"]) / 2 for each in records])
    best = np.argsort(-scores, kind="stable")[:MAX_PROPOSALS]
    return image_row(record, [records[i]["segmentation"] for i in best], scores[best].tolist())
