"""The objects of label maps and binary masks: background, void, regions, and what is noticed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

from samtrain.data.prepare.formats import BinaryMasks, Entry, LabelMaps
from samtrain.data.prepare.label_maps import (
    NEGATIVE,
    SEVERAL_REGIONS,
    SURROUNDS,
    TOUCHES_MOST,
    VOID_FOUND,
    LabelRules,
    objects_of_binary,
    objects_of_labels,
)
from samtrain.data.prepare.mask_files import Refused
from samtrain.ops.rle import decode_rle

H, W = 48, 64
LABELS = np.zeros((H, W), np.uint8)
for _number, (_y, _x) in enumerate([(4, 5), (4, 35), (28, 5), (28, 35)], start=1):
    LABELS[_y : _y + 14, _x : _x + 20] = _number
MASKS = [value == LABELS for value in (1, 2, 3, 4)]


def read(labels: np.ndarray, **rules) -> tuple[list[np.ndarray], list[str]]:
    """Returns the masks and what was noticed."""
    objects, notes = objects_of_labels(labels, LabelRules(**rules), "m.png")
    return [decode_rle(each["segmentation"], labels.shape) for each in objects], [note for note, _ in notes]


def in_order(masks: list[np.ndarray]) -> list[bytes]:
    return sorted(mask.tobytes() for mask in masks)


def voc() -> np.ndarray:
    border = ndimage.binary_dilation(LABELS > 0) & ~ndimage.binary_erosion(LABELS > 0)
    return np.where(border, np.uint8(255), LABELS)


def test_each_value_is_an_object() -> None:
    found, noticed = read(LABELS)
    assert np.array_equal(found, MASKS) and not noticed


def test_the_void_of_voc_is_no_object() -> None:
    expected = [voc() == value for value in (1, 2, 3, 4)]
    found, noticed = read(voc())
    assert np.array_equal(found, expected) and noticed == [VOID_FOUND]
    found, noticed = read(voc(), ignore_values=(255,))
    assert np.array_equal(found, expected) and not noticed
    found, noticed = read(voc(), ignore_values=())
    assert np.array_equal(found, [*expected, voc() == 255]) and noticed == [TOUCHES_MOST]


def test_255_among_many_numbers_is_an_object() -> None:
    labels = np.where(LABELS == 4, 255, np.where(LABELS == 3, 254, LABELS)).astype(np.uint8)
    assert len(read(labels)[0]) == 4
    assert len(read(np.where(LABELS > 0, np.uint8(255), np.uint8(0)))[0]) == 1


@pytest.mark.parametrize("dtype", [np.int8, np.int32, np.int64])
def test_a_negative_background(dtype: type) -> None:
    """Objects 0 to 3 on -1, as some tools number them."""
    labels = LABELS.astype(dtype) - dtype(1)
    found, noticed = read(labels)
    assert np.array_equal(found, MASKS) and noticed == [NEGATIVE]
    found, noticed = read(labels, background=-1)
    assert np.array_equal(found, MASKS) and not noticed


def test_negative_values_on_a_background_of_0_are_no_objects() -> None:
    labels = LABELS.astype(np.int32)
    labels[:3, :5] = -1
    found, noticed = read(labels)
    assert np.array_equal(found, MASKS) and noticed == [NEGATIVE]
    assert read(labels, ignore_values=(-1,))[1] == []


def test_a_negative_void_around_objects_is_not_taken_for_the_background() -> None:
    labels = np.where(voc() == 255, -1, voc().astype(np.int32))
    found, noticed = read(labels)
    assert np.array_equal(found, [labels == value for value in (1, 2, 3, 4)]) and noticed == [NEGATIVE]


@pytest.mark.parametrize(("dtype", "value"), [(np.uint16, 65535), (np.uint16, 255), (np.int32, 255)])
def test_a_void_of_other_types_is_noticed_around_a_single_object_too(dtype: type, value: int) -> None:
    labels = np.where(voc() == 255, dtype(value), voc().astype(dtype))
    for count in (1, 2, 4):
        few = np.where((labels <= count) | (labels == value), labels, 0).astype(dtype)
        assert TOUCHES_MOST in read(few)[1]
        assert len(read(few, ignore_values=(value,))[0]) == count


def test_a_background_with_a_number_can_be_named() -> None:
    assert read(LABELS + 1)[1] == [TOUCHES_MOST]
    assert read((LABELS == 1).astype(np.uint8) + 1)[1] == [TOUCHES_MOST]
    touching = LABELS.copy()  # two cells that touch each other are two cells
    touching[:, 32:], touching[LABELS > 2] = 0, 0
    touching[18:30, 5:25] = 2
    assert read(touching)[1] == []
    found, noticed = read(LABELS + 1, background=1)
    assert np.array_equal(found, MASKS) and not noticed


def test_one_value_for_all_objects_is_noticed_and_can_be_split() -> None:
    foreground = (LABELS > 0).astype(np.uint8) * 255
    found, noticed = read(foreground)
    assert len(found) == 1 and noticed == [SEVERAL_REGIONS]
    found, noticed = read(foreground, components=True)
    assert not noticed and in_order(found) == in_order(MASKS)
    # regions of each class
    found, _ = read(np.where(LABELS > 0, LABELS % 2 + 1, 0), components=True)
    assert in_order(found) == in_order(MASKS)


def test_blurred_labels_are_refused() -> None:
    small = Image.fromarray(LABELS * 40).resize((W // 2, H // 2), Image.Resampling.NEAREST)
    with pytest.raises(Refused, match="look blurred.*nearest neighbour"):
        read(np.asarray(small.resize((W, H), Image.Resampling.BILINEAR)))


def test_thin_and_tiny_objects_are_not_taken_for_blur() -> None:
    labels = np.zeros((H, W), np.uint8)
    for number in range(1, 9):
        labels[4 * number, 3:50] = number  # lines of one pixel
        labels[4 * number + 2, 2 * number : 2 * number + 2] = number + 10
    assert len(read(labels)[0]) == 16


def test_a_binary_mask_may_have_soft_edges_but_not_several_values() -> None:
    soft = np.asarray(Image.fromarray(MASKS[0].astype(np.uint8) * 255).resize((2 * W, 2 * H), Image.Resampling.BILINEAR))
    objects, _ = objects_of_binary(soft, LabelRules(), "m.png", alone=True)
    assert np.mean(decode_rle(objects[0]["segmentation"]) != np.kron(MASKS[0], np.ones((2, 2), bool))) < 0.01
    with pytest.raises(Refused, match="several values.*data.form=label_maps"):
        objects_of_binary(LABELS, LabelRules(), "m.png", alone=True)


def test_binary_masks_of_many_objects_and_inverted_ones_are_noticed() -> None:
    foreground = (LABELS > 0).astype(np.uint8)
    assert [note for note, _ in objects_of_binary(foreground, LabelRules(), "m.png", alone=True)[1]] == [SEVERAL_REGIONS]
    assert not objects_of_binary(foreground, LabelRules(), "m.png", alone=False)[1]
    assert len(objects_of_binary(foreground, LabelRules(components=True), "m.png", alone=True)[0]) == 4
    inverted = (~MASKS[0]).astype(np.uint8)
    assert [note for note, _ in objects_of_binary(inverted, LabelRules(), "m.png", alone=False)[1]] == [SURROUNDS]
    minus_one = -MASKS[0].astype(np.int8)  # true in some programs
    (found,), _ = objects_of_binary(minus_one, LabelRules(), "m.png", alone=True)
    assert np.array_equal(decode_rle(found["segmentation"]), MASKS[0])


def save_pages(path: Path, pages: list[np.ndarray]) -> None:
    first, *rest = [Image.fromarray(page.astype(np.uint8)) for page in pages]
    first.save(path, save_all=True, append_images=rest)


def test_every_page_of_a_mask_file_is_read(tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    save_pages(tmp_path / "m" / "binary.tif", MASKS)
    save_pages(tmp_path / "m" / "labels.tif", [np.where(LABELS <= 2, LABELS, 0), np.where(LABELS > 2, LABELS, 0)])
    for source, name in ((BinaryMasks(tmp_path, "m"), "binary.tif"), (LabelMaps(tmp_path, "m"), "labels.tif")):
        raw = source.read(Entry("p.png", tmp_path / "p.png", (tmp_path / "m" / name,)))
        assert np.array_equal([decode_rle(each["segmentation"]) for each in raw.objects], MASKS)
