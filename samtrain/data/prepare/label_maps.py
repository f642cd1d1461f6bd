"""Takes the objects out of mask files, and notes what looks as if it were meant otherwise."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from samtrain.data.prepare.mask_files import Refused
from samtrain.ops.rle import RLE, encode_labels, encode_mask, rle_area, rle_to_box_xywh

VOID = 255  # PASCAL VOC's border between objects, and what others leave out, in 8-bit maps
SMALL_NUMBERS = 100  # a map with 255 and otherwise only numbers up to this has a special value, not 255 objects
SAMPLE = 64  # values of a map that are looked at more closely
TOUCH = ndimage.generate_binary_structure(2, 2)  # pixels that share a corner are connected, as in scikit-image's label

SEVERAL_REGIONS = "one value covers several separate regions"
NEGATIVE = "a label map has negative values"
VOID_FOUND = "255 is taken for void"
TOUCHES_MOST = "one value of a label map touches most others"
SURROUNDS = "a mask surrounds a hole, as inverted masks do"

Note = tuple[str, str]  # what was noticed, and what was found where


@dataclass(frozen=True)
class LabelRules:
    """How a mask file is read; the fields are keys of `data=folder`, see `PrepareConfig`."""

    background: int | None = None
    ignore_values: tuple[int, ...] | None = None
    components: bool = False


def objects_of_labels(labels_HW: np.ndarray, rules: LabelRules, name: str) -> tuple[list[dict[str, Any]], list[Note]]:
    """Returns an object for each value of a label map, and what was noticed; raises Refused for blurred values."""
    found = encode_labels(labels_HW)
    touching = _touching(labels_HW, np.array(list(found), labels_HW.dtype))
    background, notes = _background(found, rules)
    # leave out what is no object
    ignored = {background, *(rules.ignore_values or ()), *(value for value in found if value < 0 and value != background)}
    others = {value for value in found if value not in ignored}
    if rules.ignore_values is None and labels_HW.dtype == np.uint8 and _is_void(others, touching):
        ignored.add(VOID)
        notes.append((VOID_FOUND, "set data.ignore_values=[] if it is an object, or data.ignore_values=[255] to agree"))
    objects = {value: rle for value, rle in found.items() if value not in ignored}
    # look for other meanings
    if _looks_blurred(labels_HW, objects):
        raise Refused(
            "the values of the label map look blurred",
            f"{name}: {len(objects)} values, many of them only in scattered pixels: resize label maps with the nearest "
            "neighbour, and save them without loss",
        )
    if rules.components:
        return list(_pieces(labels_HW, objects)), notes
    for value in _touching_most(objects, touching, [VOID, np.iinfo(labels_HW.dtype).max] if background in found else objects):
        cure = f"set data.background={value} if it is the background, or data.ignore_values=[{value}] if it is void"
        notes.append((TOUCHES_MOST, f"value {value}: {cure}"))
    notes += _several_regions(labels_HW, objects)
    return [{"segmentation": rle, "label": value} for value, rle in objects.items()], notes


def objects_of_binary(
    values_HW: np.ndarray, rules: LabelRules, name: str, *, alone: bool
) -> tuple[list[dict[str, Any]], list[Note]]:
    """Returns the object of a mask that is bright inside of it, or each of its regions; `alone`: the image has no other mask.

    Raises Refused for a mask that holds several values instead of soft edges.
    """
    negative = values_HW.dtype.kind == "i" and values_HW.min() < 0  # -1 stands for true in some programs
    values = np.abs(values_HW.astype(np.int64)) if negative else values_HW
    # half of the maximum fits 0/1, 0/255, and edges that a resize or JPEG has softened
    mask = values > int(values.max()) // 2
    if several := _plateaus(values):
        raise Refused(
            "the mask file holds several values",
            f"{name}: {', '.join(map(str, several))}, expected one object, or set data.form=label_maps",
        )
    found = {1: encode_mask(mask)}
    if rules.components:
        return list(_pieces(mask.astype(np.uint8), found)), []
    notes = _several_regions(mask.astype(np.uint8), found) if alone else []
    if _surrounds_hole(mask):
        notes.append((SURROUNDS, f"{name}: it covers {mask.mean():.0%} of the image; if it is inverted, save its complement"))
    return [{"segmentation": found[1]}], notes


def _touching(labels_HW: np.ndarray, values: np.ndarray) -> dict[int, set[int]]:
    """Returns the values that each value has beside or below it somewhere."""
    codes = set()
    for first, second in ((labels_HW[:, :-1], labels_HW[:, 1:]), (labels_HW[:-1], labels_HW[1:])):
        differ = first != second
        pair = np.searchsorted(values, first[differ]) * len(values) + np.searchsorted(values, second[differ])
        codes |= set(np.unique(pair).tolist())
    touching: dict[int, set[int]] = {int(value): set() for value in values}
    for code in codes:
        one, other = int(values[code // len(values)]), int(values[code % len(values)])
        touching[one].add(other)
        touching[other].add(one)
    return touching


def _background(found: dict[int, RLE], rules: LabelRules) -> tuple[int, list[Note]]:
    """Returns the background's value: the one that is set, else 0, or a negative value that covers more pixels than 0 does.

    A negative void touches more values than the background does, but it covers less.
    """
    negative = [value for value in found if value < 0 and value not in (rules.ignore_values or ())]
    if rules.background is not None or not negative:
        return 0 if rules.background is None else rules.background, []
    best = max((0, *negative), key=lambda value: rle_area(found[value]) if value in found else 0)
    cure = f"set data.background={best} to agree, or data.ignore_values to the values that are no object"
    return best, [(NEGATIVE, f"{negative[0]} is there, and {best} is taken for the background: {cure}")]


def _is_void(others: set[int], touching: dict[int, set[int]]) -> bool:
    """Returns whether 255 is void: the other values are small numbers, and it touches most of them."""
    numbers = others - {VOID}
    return VOID in others and 0 < len(numbers) < 2 * len(numbers & touching[VOID]) and max(numbers) <= SMALL_NUMBERS


def _touching_most(objects: dict[int, RLE], touching: dict[int, set[int]], special: Collection[int]) -> list[int]:
    """Returns the value that touches more than half of the others: of three or more, or one of the `special` values.

    Two objects may touch each other, so among few values only those are suspicious that programs give to void, and all values
    of a map in which the background is missing.
    """
    several = [value for value in objects if len(objects) >= 4 or value in special]
    if len(objects) < 2 or not several:
        return []
    value = max(several, key=lambda each: len(touching[each] & objects.keys()))
    return [value] if 2 * len(touching[value] & objects.keys()) > len(objects) - 1 else []


def _window(rle: RLE) -> tuple[slice, slice]:
    x, y, width, height = map(int, rle_to_box_xywh(rle))
    return slice(y, y + height), slice(x, x + width)


def _num_pieces(labels_HW: np.ndarray, value: int, rle: RLE) -> int:
    return ndimage.label(labels_HW[_window(rle)] == value, TOUCH)[1]


def _sampled(objects: dict[int, RLE]) -> dict[int, RLE]:
    """Returns a few of the objects, so that the work does not grow with their number."""
    every = -(-len(objects) // SAMPLE) or 1
    return dict(list(objects.items())[::every])


def _several_regions(labels_HW: np.ndarray, objects: dict[int, RLE]) -> list[Note]:
    """Returns a note if at least half of the values cover more than one region."""
    pieces = {value: _num_pieces(labels_HW, value, rle) for value, rle in _sampled(objects).items()}
    split = [value for value, count in pieces.items() if count > 1]
    if not split or 2 * len(split) < len(pieces):
        return []
    cure = "if each region is an object, set data.components=true"
    return [(SEVERAL_REGIONS, f"value {split[0]} covers {pieces[split[0]]} regions: {cure}")]


def _pieces(labels_HW: np.ndarray, objects: dict[int, RLE]) -> Iterator[dict[str, Any]]:
    """Yields an object for each connected region of each value."""
    pieces = np.zeros(labels_HW.shape, np.int32)
    labels = [0]
    for value, rle in objects.items():
        if not rle_area(rle):
            continue
        window = _window(rle)
        numbered, count = ndimage.label(labels_HW[window] == value, TOUCH)
        pieces[window] += np.where(numbered, numbered + len(labels) - 1, 0).astype(np.int32)
        labels += [value] * count
    for number, rle in encode_labels(pieces).items():
        if number:
            yield {"segmentation": rle, "label": labels[number]}


def _looks_blurred(labels_HW: np.ndarray, objects: dict[int, RLE]) -> bool:
    """Returns whether half of the values only come in scattered pixels, as at edges after a resize or a lossy compression."""
    if len(objects) < 4:
        return False
    sample = _sampled(objects)
    masks = (labels_HW[_window(rle)] == value for value, rle in sample.items())
    scattered = sum(ndimage.label(mask, TOUCH)[1] > 1 and not ndimage.binary_erosion(mask).any() for mask in masks)
    return 2 * scattered >= len(sample)


def _plateaus(values_HW: np.ndarray) -> list[int]:
    """Returns up to five values of a binary mask that are between dark and bright, and cover areas of their own."""
    highest = int(values_HW.max())
    between = (values_HW > 0.1 * highest) & (values_HW < 0.9 * highest)
    if not between.any():
        return []
    # soft edges have no pixels that equal all four neighbours
    for axis in (0, 1):
        for shift in (1, -1):
            between &= np.roll(values_HW, shift, axis) == values_HW
    if np.count_nonzero(between) * 100 <= np.count_nonzero(values_HW):
        return []
    return sorted([value for value, _ in Counter(values_HW[between].tolist()).most_common(4)] + [highest])


def _surrounds_hole(mask_HW: np.ndarray) -> bool:
    """Returns whether a mask covers most of the image and all of its border, and leaves out something inside."""
    border = np.concatenate([mask_HW[0], mask_HW[-1], mask_HW[:, 0], mask_HW[:, -1]])
    return bool(border.all() and 0.5 < mask_HW.mean() < 1)
