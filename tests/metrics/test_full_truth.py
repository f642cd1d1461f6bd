"""Masks against full ground truth: numbers by hand on strips of one row, and by slow fractions on random images."""

from __future__ import annotations

from fractions import Fraction
from itertools import permutations

import numpy as np
import pytest

from samtrain.metrics.full_truth import ImageMasks, full_truth_metrics
from samtrain.ops.rle import encode_mask

LEVELS = [Fraction(percent, 100) for percent in range(50, 100, 5)]
Span = tuple[int, int]


def strip(span: Span, width: int = 60) -> np.ndarray:
    """Pixels first to last, without the last, of an image of one row: IoUs are those of intervals."""
    mask = np.zeros((1, width), bool)
    mask[0, span[0] : span[1]] = True
    return mask


def square(top: int, left: int, side: int, size: tuple[int, int] = (30, 30)) -> np.ndarray:
    mask = np.zeros(size, bool)
    mask[top : top + side, left : left + side] = True
    return mask


def image_of(objects: list[np.ndarray], masks: list[np.ndarray]) -> ImageMasks:
    return ImageMasks(
        [encode_mask(each) for each in objects],
        [{"segmentation": encode_mask(each), "predicted_iou": 0.9} for each in masks],
    )


def strips(objects: list[Span], masks: list[Span]) -> ImageMasks:
    return image_of([strip(span) for span in objects], [strip(span) for span in masks])


def boundary_f(truth: np.ndarray, *masks: np.ndarray) -> float:
    return full_truth_metrics([image_of([truth], list(masks))])["boundary_f"]


def test_the_objects_themselves_are_perfect() -> None:
    spans = [(0, 4), (10, 16), (20, 40)]
    found = full_truth_metrics([strips(spans, spans[::-1])], size_limits=(5, 10))
    parted, sizes = ("nuclei_ap50", "pq", "object_dice", "boundary_f"), ("small", "medium", "large")
    by_size = {f"{name}_{size}" for name in parted for size in sizes}
    assert set(found) == by_size | {
        "nuclei_ap", "nuclei_ap50", "nuclei_ap75", "pq", "sq", "rq", "object_dice", "foreground_dice", "boundary_f"
    }  # fmt: skip
    assert set(found.values()) == {1.0} and all(type(value) is float for value in found.values())


def test_by_hand() -> None:
    """Two objects of 10: found exactly, found by 8 of 10 (IoU 0.8); and a mask of 5 on nothing."""
    found = full_truth_metrics([strips([(0, 10), (20, 30)], [(0, 10), (20, 28), (35, 40)])])
    # 2 TP, 1 FP up to 0.75; at 0.80, which 0.8 does not exceed, and up to 0.95 1 TP, 2 FP, 1 FN
    assert found["nuclei_ap50"] == pytest.approx(2 / 3) and found["nuclei_ap75"] == pytest.approx(2 / 3)
    assert found["nuclei_ap"] == pytest.approx((6 * 2 / 3 + 4 * 1 / 4) / 10)
    assert found["pq"] == pytest.approx(1.8 / 2.5) and found["sq"] == pytest.approx(1.8 / 2)
    assert found["rq"] == pytest.approx(2 / 2.5)
    assert found["object_dice"] == pytest.approx((1 + 2 * 8 / 18) / 2)
    assert found["foreground_dice"] == pytest.approx(2 * 18 / (20 + 23))


def test_images_are_averaged_for_nuclei_and_summed_for_pq() -> None:
    """One image with 1 of 1 found, one with 1 of 3: mean of 1 and 1/3; 2 TP and 2 FN."""
    images = [strips([(0, 10)], [(0, 10)]), strips([(0, 10), (20, 30), (40, 50)], [(0, 10)])]
    found = full_truth_metrics(images)
    assert found["nuclei_ap"] == pytest.approx((1 + 1 / 3) / 2) and found["pq"] == pytest.approx(2 / 3)
    assert found["object_dice"] == pytest.approx(2 / 4)  # a mean over objects
    assert found["foreground_dice"] == pytest.approx((1 + 2 * 10 / 40) / 2)  # a mean over images


@pytest.mark.parametrize("covered", range(9, 21))
def test_an_iou_must_exceed_a_threshold(covered: int) -> None:
    """IoU n/20, a threshold itself up to 19/20, passes only those below it: 0 at 10/20, 1 at 11/20, ..., 10 at 20/20."""
    found = full_truth_metrics([strips([(0, 20)], [(0, covered)])])
    assert found["nuclei_ap"] == pytest.approx(max(covered - 10, 0) / 10)
    assert found["nuclei_ap50"] == (covered > 10) and found["nuclei_ap75"] == (covered > 15)
    iou = covered / 20 if covered > 10 else 0
    assert found["pq"] == pytest.approx(iou) and found["sq"] == pytest.approx(iou) and found["rq"] == (covered > 10)
    assert found["object_dice"] == pytest.approx(2 * covered / (20 + covered))


@pytest.mark.parametrize("masks", [[(0, 9), (0, 8)], [(0, 8), (0, 9)]])
def test_two_masks_of_one_object(masks: list[Span]) -> None:
    """IoU 0.9 and 0.8: the better one is the match, the other a FP."""
    found = full_truth_metrics([strips([(0, 10)], masks)])
    assert found["nuclei_ap50"] == pytest.approx(1 / 2) and found["pq"] == pytest.approx(0.9 / 1.5)
    assert found["object_dice"] == pytest.approx(18 / 19)


@pytest.mark.parametrize("objects", [[(0, 10), (0, 8)], [(0, 8), (0, 10)]])
def test_one_mask_of_two_objects(objects: list[Span]) -> None:
    """IoU 9/10 and 8/9: it is the match of the first only, but the best mask of both."""
    found = full_truth_metrics([strips(objects, [(0, 9)])])
    assert found["nuclei_ap50"] == pytest.approx(1 / 2) and found["pq"] == pytest.approx(0.9 / 1.5)
    assert found["object_dice"] == pytest.approx((18 / 19 + 16 / 17) / 2)


def test_more_matches_come_before_better_ones() -> None:
    """Objects of 10, 18, 32 and masks of 6, 10, 18 from the same place: two of each are equal, IoU 1.

    Those two matches leave 32 and 6, IoU 6/32, without. There are three: 10 with 6, 18 with 10, 32 with 18, though their
    IoUs of 0.6, 0.556, 0.5625 sum to less than 2.
    """
    found = full_truth_metrics([strips([(0, 10), (0, 18), (0, 32)], [(0, 6), (0, 10), (0, 18)])])
    assert found["rq"] == 1 and found["pq"] == pytest.approx((0.6 + 10 / 18 + 18 / 32) / 3)
    # all three up to 0.55; from 0.60 on only the two of IoU 1: 2 TP, 1 FP, 1 FN
    assert found["nuclei_ap"] == pytest.approx((2 * 1 + 8 * 2 / 4) / 10)


@pytest.mark.parametrize("masks", [[(0, 10), (1, 11)], [(1, 11), (0, 10)]])
def test_better_ones_win_among_equally_many_matches(masks: list[Span]) -> None:
    """Crosswise there are two matches as well, of 9/11 each."""
    assert full_truth_metrics([strips([(0, 10), (1, 11)], masks)])["pq"] == 1


def test_ties() -> None:
    twice, thrice = [(0, 10)] * 2, [(0, 10)] * 3
    assert full_truth_metrics([strips(twice, twice)])["pq"] == 1
    assert full_truth_metrics([strips(twice, thrice)])["pq"] == pytest.approx(2 / 2.5)
    found = full_truth_metrics([strips(thrice, twice)])
    assert found["pq"] == pytest.approx(2 / 2.5) and found["nuclei_ap"] == pytest.approx(2 / 3)
    assert found["object_dice"] == 1 and found["boundary_f"] == 1


def test_a_part_of_two_objects_is_the_best_mask_of_both() -> None:
    """A mask of 10 over two objects of 4: IoU 4/10, no match, Dice 8/14."""
    found = full_truth_metrics([strips([(0, 4), (6, 10)], [(0, 10)])])
    assert found["object_dice"] == pytest.approx(8 / 14) and found["pq"] == 0 and found["sq"] == 0 and found["rq"] == 0
    assert found["foreground_dice"] == pytest.approx(2 * 8 / 18)


def test_overlapping_masks_are_one_foreground() -> None:
    """(0, 8) and (4, 12) cover 12 pixels, the object 10 of them."""
    assert full_truth_metrics([strips([(0, 10)], [(0, 8), (4, 12)])])["foreground_dice"] == pytest.approx(20 / 22)


def test_masks_without_a_pixel() -> None:
    """Each is a FP, small; it adds nothing to the foreground."""
    found = full_truth_metrics([strips([(0, 10)], [(5, 5), (0, 10), (7, 7)])])
    assert found["nuclei_ap"] == pytest.approx(1 / 3) and found["pq"] == pytest.approx(1 / 2)
    assert found["pq_small"] == found["pq"] and found["nuclei_ap50_small"] == found["nuclei_ap50"]
    assert found["foreground_dice"] == 1 and found["object_dice"] == 1 and found["boundary_f"] == 1
    found = full_truth_metrics([strips([(0, 10)], [(5, 5)])])
    assert {value for name, value in found.items()} == {0.0}


def test_objects_without_a_pixel_are_missed() -> None:
    found = full_truth_metrics([strips([(0, 10), (5, 5)], [(0, 10), (7, 7)])])
    assert found["nuclei_ap"] == pytest.approx(1 / 3) and found["pq"] == pytest.approx(1 / 2)
    assert found["object_dice"] == 1 / 2 and found["boundary_f"] == 1 / 2 and found["foreground_dice"] == 1


def test_image_without_masks() -> None:
    found = full_truth_metrics([strips([(0, 10), (20, 30)], [])])
    assert found["nuclei_ap"] == 0 and set(found.values()) == {0.0}


def test_image_without_objects() -> None:
    """Its mask is a FP: nuclei 0, and PQ of 1 TP and 1 FP; objects' means know nothing of it."""
    found = full_truth_metrics([strips([(0, 10)], [(0, 10)]), strips([], [(0, 10)])])
    assert found["nuclei_ap"] == 1 / 2 and found["pq"] == pytest.approx(1 / 1.5) and found["foreground_dice"] == 1 / 2
    assert found["object_dice"] == 1 and found["boundary_f"] == 1


def test_image_without_anything() -> None:
    """It is right, by nuclei and foreground; beside it an image with all missed."""
    found = full_truth_metrics([strips([(0, 10)], []), strips([], [])])
    assert found["nuclei_ap"] == 1 / 2 and found["nuclei_ap75"] == 1 / 2 and found["foreground_dice"] == 1 / 2
    assert found["pq"] == 0 and found["object_dice"] == 0
    # an empty mask is a mask, but no foreground
    found = full_truth_metrics([strips([(0, 10)], []), strips([], [(5, 5)])])
    assert found["nuclei_ap"] == 0 and found["foreground_dice"] == 1 / 2


def test_uncompressed_masks() -> None:
    """Runs of (10, 20) and (10, 18) in 60 pixels: IoU 0.8."""
    found = full_truth_metrics([
        ImageMasks(
            [{"size": [1, 60], "counts": [10, 10, 40]}],
            [{"segmentation": {"size": [1, 60], "counts": [10, 8, 42]}, "predicted_iou": 0.9}],
        )
    ])  # fmt: skip
    assert found == full_truth_metrics([strips([(10, 20)], [(10, 18)])]) and found["pq"] == pytest.approx(0.8)


def test_invalid_input_is_refused() -> None:
    for images in ([], [strips([], [])], [strips([], [(0, 10)])]):
        with pytest.raises(ValueError, match="holds an object"):
            full_truth_metrics(images)
    with pytest.raises(ValueError, match="size_limits"):
        full_truth_metrics([strips([(0, 10)], [])], size_limits=(10, 5))
    with pytest.raises(ValueError, match="different sizes"):
        full_truth_metrics([image_of([strip((0, 10))], [strip((0, 10), width=61)])])


# by size


def test_sizes() -> None:
    """Small object of 4, medium of 6; masks that match them are of the other's size; one small and one large FP."""
    crowded = strips([(0, 4), (10, 16)], [(0, 5), (10, 14), (30, 33), (40, 55)])
    found = full_truth_metrics([crowded], size_limits=(5, 10))
    # 1 TP of IoU 4/5, 1 FP of 3 pixels; the mask of 4 pixels belongs to the medium object
    assert found["pq_small"] == pytest.approx(0.8 / 1.5) and found["nuclei_ap50_small"] == pytest.approx(1 / 2)
    assert found["object_dice_small"] == pytest.approx(8 / 9)
    # 1 TP of IoU 4/6; the mask of 5 pixels belongs to the small object
    assert found["pq_medium"] == pytest.approx(4 / 6) and found["nuclei_ap50_medium"] == 1
    assert found["object_dice_medium"] == pytest.approx(8 / 10)
    assert not [name for name in found if name.endswith("_large")]  # there is a large mask, but no large object
    assert found["pq"] == pytest.approx((4 / 5 + 4 / 6) / 3) and found["nuclei_ap50"] == pytest.approx(2 / 4)

    # a second image: its large object is missed, and the large FP of the first counts now
    found = full_truth_metrics([crowded, strips([(0, 10)], [])], size_limits=(5, 10))
    assert found["pq_large"] == 0 and found["nuclei_ap50_large"] == 0 and found["boundary_f_large"] == 0
    assert found["nuclei_ap50_small"] == pytest.approx(1 / 2)  # it has nothing small: no part in the mean
    found = full_truth_metrics([crowded, strips([(0, 10)], [(0, 10), (20, 23)])], size_limits=(5, 10))
    assert found["nuclei_ap50_small"] == pytest.approx((1 / 2 + 0) / 2)  # a small FP
    assert found["pq_small"] == pytest.approx(0.8 / (1 + 2 / 2))
    assert found["nuclei_ap50_large"] == pytest.approx((0 + 1) / 2) and found["pq_large"] == pytest.approx(1 / 1.5)


def test_a_limit_belongs_to_the_larger_size() -> None:
    found = full_truth_metrics([strips([(0, 5), (20, 30)], [(0, 5), (20, 30), (40, 45)])], size_limits=(5, 10))
    assert "pq_small" not in found
    assert found["pq_medium"] == pytest.approx(1 / 1.5) and found["pq_large"] == 1


def test_every_object_of_one_size_counts() -> None:
    """Ten small objects, every second found, beside a large one that is found: 5/10, 1/1, and 6/11 together."""
    objects = [(3 * i, 3 * i + 2) for i in range(10)] + [(40, 60)]
    found = full_truth_metrics([strips(objects, objects[::2])], size_limits=(5, 10))
    assert found["object_dice_small"] == 1 / 2 and found["object_dice_large"] == 1
    assert found["nuclei_ap50_small"] == 1 / 2 and found["pq_small"] == pytest.approx(5 / 7.5)
    assert found["nuclei_ap50"] == pytest.approx(6 / 11) and found["object_dice"] == pytest.approx(6 / 11)


# boundaries: the tolerance is 1 pixel in images of 30 x 30


def test_identical_boundaries() -> None:
    for truth in (square(5, 5, 10), square(0, 0, 10), square(20, 20, 10), square(0, 0, 30), square(3, 3, 1)):
        assert boundary_f(truth, truth) == 1


def test_shifted_squares() -> None:
    truth = square(5, 5, 10)
    assert boundary_f(truth, square(5, 6, 10)) == 1  # each pixel has one beside it
    # down and right: of 36 pixels only the corner that sticks out has none nearer than the root of 2
    assert boundary_f(truth, square(6, 6, 10)) == pytest.approx(35 / 36)
    # two to the right: rows 9 of 10 each, of the near column the 2 pixels next to the other's rows, of the far one none
    assert boundary_f(truth, square(5, 7, 10)) == pytest.approx((9 + 9 + 2) / 36)


def test_precision_and_recall_of_boundaries_differ() -> None:
    """A square of 10 has 36 boundary pixels; a hole of 4 x 4 in it 16 more, the nearest 2 pixels inside the others."""
    truth = square(5, 5, 10)
    ring = truth & ~square(8, 8, 4)
    assert boundary_f(truth, ring) == pytest.approx(2 * (36 / 52) / (1 + 36 / 52))
    assert boundary_f(ring, truth) == pytest.approx(2 * (36 / 52) / (1 + 36 / 52))


@pytest.mark.parametrize(("size", "near"), [((60, 80), 1), ((90, 120), 2), ((150, 200), 2), ((180, 240), 3)])
def test_tolerance_grows_with_the_diagonal(size: tuple[int, int], near: int) -> None:
    """Diagonals of 100, 150, 250, 300: 0.8, 1.2, 2.0, 2.4 pixels, rounded up."""
    truth = square(5, 5, 20, size)
    assert boundary_f(truth, square(5, 5 + near, 20, size)) == 1
    assert boundary_f(truth, square(5, 6 + near, 20, size)) < 1


def test_boundaries_that_do_not_meet() -> None:
    assert boundary_f(square(13, 13, 3), square(4, 4, 21)) == 0  # far around it
    assert boundary_f(square(0, 0, 5), square(0, 5, 5)) == 0  # beside it: near, but no overlap
    assert boundary_f(square(0, 0, 5)) == 0


def test_the_best_mask_is_best_by_iou() -> None:
    """A frame along the object's edge has its boundary but only 36 of its 100 pixels, the middle 64."""
    truth = square(5, 5, 10)
    frame, middle = truth & ~square(6, 6, 8), square(6, 6, 8)
    assert boundary_f(truth, frame) > boundary_f(truth, middle)
    assert boundary_f(truth, frame, middle) == boundary_f(truth, middle)


# slow and independent: sets of pixels and fractions


Pixels = frozenset[tuple[int, int]]


def sets_of(label_map: np.ndarray) -> list[Pixels]:
    labels = sorted(set(label_map.ravel().tolist()) - {0})
    return [
        frozenset((y, x) for y in range(len(label_map)) for x in range(len(label_map[0])) if label_map[y, x] == label)
        for label in labels
    ]


def masks_of(pixels: list[Pixels], size: tuple[int, int]) -> list[np.ndarray]:
    masks = [np.zeros(size, bool) for _ in pixels]
    for mask, each in zip(masks, pixels, strict=True):
        for y, x in each:
            mask[y, x] = True
    return masks


def iou_of(a: Pixels, b: Pixels) -> Fraction:
    return Fraction(len(a & b), len(a | b))


def slow_matches(objects: list[Pixels], masks: list[Pixels], level: Fraction) -> list[Fraction]:
    """IoUs of the matches of label maps, which are unique above one half."""
    return [iou for a in objects for b in masks if (iou := iou_of(a, b)) > level]


def best_matches(objects: list[Pixels], masks: list[Pixels], level: Fraction) -> list[Fraction]:
    """IoUs of the matches of masks that overlap: the best of all ways to give objects masks, one by one or none."""
    padded = [*masks, *[frozenset()] * max(len(objects) - len(masks), 0)]
    ways = (
        [iou for a, b in zip(objects, chosen, strict=True) if (iou := iou_of(a, b)) > level]
        for chosen in permutations(padded, len(objects))
    )
    return max(ways, key=lambda way: (len(way), sum(way)))


def slow_metrics(images: list[tuple[list[Pixels], list[Pixels]]], matches_of=slow_matches) -> dict[str, float]:
    scores: dict[Fraction, list[Fraction]] = {level: [] for level in LEVELS}
    iou_sum, total, found = Fraction(0), Fraction(0), 0
    for objects, masks in images:
        for level in LEVELS:
            matches = matches_of(objects, masks, level)
            scores[level].append(Fraction(len(matches), len(objects) + len(masks) - len(matches)))
            if level == LEVELS[0]:
                iou_sum += sum(matches)
                found += len(matches)
                total += Fraction(len(objects) + len(masks), 2)  # TP + FP/2 + FN/2
    means = {level: sum(each) / len(each) for level, each in scores.items()}
    return {
        "nuclei_ap": float(sum(means.values()) / 10), "nuclei_ap50": float(means[Fraction(1, 2)]),
        "nuclei_ap75": float(means[Fraction(3, 4)]), "pq": float(iou_sum / total), "sq": float(iou_sum / found),
        "rq": float(found / total),
    }  # fmt: skip


def cells(centres: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """A label map of discs of radius 4.5 that end where another's centre is nearer."""
    distance = np.hypot(*(np.indices(size)[:, None] - centres.T[:, :, None, None]))
    return np.where(distance.min(axis=0) <= 4.5, distance.argmin(axis=0) + 1, 0)


@pytest.mark.parametrize("seed", range(3))
def test_label_maps_against_brute_force(seed: int) -> None:
    rng, size = np.random.default_rng(seed), (32, 40)
    pairs = []
    for _ in range(4):
        centres = rng.uniform(2, 30, size=(12, 2))
        moved = (centres + rng.normal(0, 0.8, size=centres.shape))[rng.permutation(12)[:10]]
        pairs.append((sets_of(cells(centres, size)), sets_of(cells(moved, size))))
    images = [image_of(masks_of(objects, size), masks_of(masks, size)) for objects, masks in pairs]
    found, slow = full_truth_metrics(images), slow_metrics(pairs)
    assert {name: found[name] for name in slow} == pytest.approx(slow, abs=1e-12)
    assert 0.1 < found["nuclei_ap"] < found["nuclei_ap50"] < 1  # the images tell good from bad

    # nothing hangs on an order
    mixed = [
        ImageMasks(
            [p.objects[i] for i in rng.permutation(len(p.objects))], [p.records[i] for i in rng.permutation(len(p.records))]
        )
        for p in images[::-1]
    ]
    assert full_truth_metrics(mixed) == pytest.approx(found, abs=1e-12)


def test_overlapping_masks_against_brute_force() -> None:
    """Four objects and five masks, then five and four, of nearly one place: many exceed 0.5 with many."""
    rng = np.random.default_rng(0)
    pairs = []
    for trial in range(20):
        counts = (4, 5) if trial % 2 else (5, 4)
        spans = [[(int(a), int(a + n)) for a, n in rng.integers((0, 6), (6, 14), (count, 2))] for count in counts]
        pairs.append([[frozenset((0, x) for x in range(*span)) for span in each] for each in spans])
    images = [image_of(masks_of(objects, (1, 20)), masks_of(masks, (1, 20))) for objects, masks in pairs]
    found, slow = full_truth_metrics(images), slow_metrics(pairs, best_matches)
    assert {name: found[name] for name in slow} == pytest.approx(slow, abs=1e-12)


def test_boundaries_against_brute_force() -> None:
    """All distances of all boundary pixels of random cells, in an image where the tolerance is 1."""
    rng, size = np.random.default_rng(0), (40, 40)
    centres = rng.uniform(2, 38, size=(12, 2))
    objects = sets_of(cells(centres, size))
    masks = sets_of(cells(centres + rng.normal(0, 1, size=centres.shape), size))

    def edge(pixels: Pixels) -> list[tuple[int, int]]:
        return [(y, x) for y, x in pixels if not {(y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)} <= pixels]

    def near(a: list[tuple[int, int]], b: list[tuple[int, int]]) -> float:
        return sum(any((y - v) ** 2 + (x - u) ** 2 <= 1 for v, u in b) for y, x in a) / len(a)

    values = []
    for each in objects:
        best = max(masks, key=lambda mask: iou_of(each, mask))
        precision, recall = near(edge(best), edge(each)), near(edge(each), edge(best))
        values.append(2 * precision * recall / (precision + recall) if each & best else 0.0)
    found = full_truth_metrics([image_of(masks_of(objects, size), masks_of(masks, size))])["boundary_f"]
    assert found == pytest.approx(np.mean(values)) and 0.3 < found < 1
