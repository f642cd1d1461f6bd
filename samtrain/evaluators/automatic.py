"""Automatic masks against full ground truth: recall, precision, nuclei AP, panoptic quality, Dice and boundary F."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from samtrain.data.coco_fields import is_crowd
from samtrain.data.shards import Record
from samtrain.evaluators.clicks import read_image
from samtrain.evaluators.evaluator import GeneratorEvaluator, Row
from samtrain.evaluators.objects import image_row, object_rows
from samtrain.metrics.automatic import automatic_metrics
from samtrain.metrics.full_truth import ImageMasks, full_truth_metrics


class Automatic(GeneratorEvaluator):
    """Compares the generator's masks with data sets that annotate every object of an image."""

    def rows(self, image: Record) -> list[Row]:
        """Returns the objects of an image and the generator's masks as one row of `image_row`, with `stability`.

        Raises ValueError for an image with crowd regions, because their objects are not annotated one by one.
        """
        if any(is_crowd(each) for each in image.annotation.get("evaluation_only", [])):
            raise ValueError(
                f"{image.name} has crowd regions, and zero_shot.protocol=automatic needs every object annotated by itself: "
                "remove these images, or choose another protocol"
            )
        # what is left for evaluation only are empty masks, and masks that occur twice
        image = replace(image, annotation={**image.annotation, "evaluation_only": []})
        found = self.generator.generate(read_image(image))
        row = image_row(image, [each["segmentation"] for each in found], [each["predicted_iou"] for each in found])
        return [{**row, "stability": [float(each["stability_score"]) for each in found]}]

    def summary(self, rows: Sequence[Row]) -> dict[str, float]:
        """Returns `automatic_metrics` and `full_truth_metrics`."""
        images = [_image_masks(row) for row in rows]
        known = {name: value for name, value in automatic_metrics(images).items() if value is not None}
        return known | full_truth_metrics(images, size_limits=self.size_limits)

    def objects(self, row: Row) -> list[Row]:
        return object_rows(row)


def _image_masks(row: Row) -> ImageMasks:
    """Returns the objects and the generator's records that a row was made of."""
    records = [
        {"segmentation": rle, "predicted_iou": iou, "stability_score": stability}
        for rle, iou, stability in zip(row["found"], row["scores"], row["stability"], strict=True)
    ]
    return ImageMasks(row["objects"], records)
