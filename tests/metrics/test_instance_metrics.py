"""AP over categories: LVIS' own rules, with answers computed by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from samtrain.metrics.instances import InstanceMasks, instance_metrics
from samtrain.metrics.masks import ScoredMasks
from samtrain.ops.rle import encode_mask


def strip(left: int) -> dict:
    mask = np.zeros((20, 200), bool)
    mask[:, left : left + 10] = True
    return encode_mask(mask)


# category 1: found, and once more where not every object is annotated; 2: known to be absent, found; 3: nobody knows, found
FIRST = InstanceMasks(
    ScoredMasks([strip(0)], [strip(0), strip(40), strip(60), strip(80)], [0.9, 0.95, 0.8, 0.99]),
    [1], [1, 1, 2, 3], negative=[2], not_exhaustive=[1],
)  # fmt: skip
SECOND = InstanceMasks(ScoredMasks([strip(0)], [strip(0)], [0.5]), [2], [2], negative=[])


def test_rules_of_lvis_by_hand() -> None:
    """Category 1 has no wrong mask: AP 1. Category 2 has a wrong mask of higher score than the right one: AP 0.5."""
    found = instance_metrics([FIRST, SECOND], frequencies={1: "r", 2: "f", 3: "c"})
    assert found["mask_ap_rare"] == pytest.approx(1) and found["mask_ap_frequent"] == pytest.approx(0.5)
    assert found["mask_ap"] == pytest.approx(0.75) and found["categories"] == 2
    assert "mask_ap_common" not in found  # no object is of this kind
    assert found["mask_ar_300"] == pytest.approx(1) and "mask_ar_100" not in found


def test_without_the_lists_the_same_masks_are_measured_by_cocos_rules() -> None:
    """The second mask of category 1 is wrong, too, so both categories have AP 0.5."""
    images = [replace(each, negative=None, not_exhaustive=()) for each in (FIRST, SECOND)]
    found = instance_metrics(images)
    assert found["mask_ap"] == pytest.approx(0.5) and found["mask_ar_100"] == pytest.approx(1)


def test_lvis_counts_300_masks_of_an_image_and_coco_100_of_a_category() -> None:
    """The only right mask has the lowest score of 301; the others are of another category."""
    others = [strip(20 + n % 150) for n in range(300)]
    masks = ScoredMasks([strip(0)], [strip(0), *others], [0.1, *[0.5] * 300])
    image = InstanceMasks(masks, [1], [1, *[2] * 300], negative=[2])
    assert instance_metrics([image])["mask_ap"] == 0
    assert instance_metrics([replace(image, negative=None)])["mask_ap"] == pytest.approx(1)
    fewer = replace(masks, found=masks.found[:300], scores=masks.scores[:300])
    assert instance_metrics([replace(image, masks=fewer, found_categories=[1, *[2] * 299])])["mask_ap"] == pytest.approx(1)


def test_the_area_of_the_annotation_decides_the_size() -> None:
    image = replace(SECOND, masks=replace(SECOND.masks, areas=[2000.0]), negative=None)
    found = instance_metrics([image])
    assert "mask_ap_medium" in found and "mask_ap_small" not in found


def test_a_set_without_objects_is_refused() -> None:
    with pytest.raises(ValueError, match="holds an object"):
        instance_metrics([InstanceMasks(ScoredMasks([], [strip(0)], [1.0]), [], [1])])
