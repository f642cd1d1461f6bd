"""Object proposals (section 7.3): COCO's mask AR of the masks of an unfiltered generator."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from samtrain.data.shards import Record
from samtrain.evaluators.clicks import read_image
from samtrain.evaluators.evaluator import GeneratorEvaluator, Row
from samtrain.evaluators.objects import image_row, object_rows, recall_by_frequency, scored_masks
from samtrain.metrics.masks import mask_metrics

MAX_PROPOSALS = 1000  # per image (AR@1000)


class Proposals(GeneratorEvaluator):
    """Compares the masks of a 64 x 64 grid with the objects (conf/generator/proposals.yaml)."""

    def rows(self, image: Record) -> list[Row]:
        """Returns the objects of an image and its proposals as one row of `image_row`.

        The generator works on the whole image with NMS at 0.9, without thresholds, and returns `coco_rle`. A proposal is
        scored by the mean of predicted IoU and stability, and only the 1000 of highest score stay. Raises ValueError if
        the image or an RLE does not fit the record.
        """
        found = self.generator.generate(read_image(image))
        scores = np.array([(each["predicted_iou"] + each["stability_score"]) / 2 for each in found])
        best = np.argsort(-scores, kind="stable")[:MAX_PROPOSALS]
        return [image_row(image, [found[i]["segmentation"] for i in best], scores[best].tolist())]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns `mask_metrics`, AR@1000 by LVIS' frequency of the category, and the masks per image."""
        masks_per_image = sum(len(row["found"]) for row in rows) / len(rows)
        return {
            **mask_metrics(scored_masks(rows), size_limits=self.size_limits),
            **recall_by_frequency(rows, MAX_PROPOSALS),
            "masks_per_image": masks_per_image,
        }

    def objects(self, row: Row) -> list[Row]:
        return object_rows(row)
