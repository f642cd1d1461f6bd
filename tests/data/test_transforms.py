from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from samtrain.data import windows
from samtrain.data.decode import decode_image
from samtrain.data.transforms import LargeScaleJitter, NativeCrop, ResizeLongestSide
from samtrain.ops.masks import longest_side_size
from samtrain.ops.rle import decode_rle, encode_mask


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def make_image(size: tuple[int, int]) -> np.ndarray:
    return rng(9).integers(0, 256, (*size, 3), dtype=np.uint8)


def disc(size: tuple[int, int], centre: tuple[float, float], radius: float) -> np.ndarray:
    rows, columns = np.mgrid[: size[0], : size[1]]
    return (columns - centre[0]) ** 2 + (rows - centre[1]) ** 2 <= radius**2


def test_resize_equals_sams(making):
    """The photo equals PIL's bilinear resize of the full image, padded at the bottom and on the right."""
    image = make_image((90, 120))
    sample = ResizeLongestSide(image_size=64)(image, [], 4, rng())
    expected = np.asarray(Image.fromarray(image).resize((64, 48), Image.Resampling.BILINEAR))
    assert (sample.image[:, :48].permute(1, 2, 0).numpy() == expected).all()
    assert not sample.image[:, 48:].any()
    assert (sample.input_size, sample.original_size) == ((48, 64), (90, 120))
    assert sample.masks.shape == (0, 64, 64)
    assert longest_side_size((1500, 2247), 1024) == (684, 1024)


def test_masks_match_a_resize_of_the_full_mask(making):
    """Rendering only an object's extent gives the same as resizing the full mask by area."""
    size = (93, 131)
    masks = [disc(size, (rng(i).uniform(0, 131), rng(i).uniform(0, 93)), rng(i).uniform(4, 40)) for i in range(12)]
    sample = ResizeLongestSide(image_size=50)(make_image(size), making.annotate(masks, size)["annotations"], 64, rng())
    assert len(sample.masks) == 12
    height, width = sample.input_size
    for mask, ours in zip(masks, sample.masks.numpy(), strict=True):
        whole = Image.fromarray(mask.astype(np.uint8) * 255).resize((width, height), Image.Resampling.BOX)
        expected = np.asarray(whole) >= 128
        assert (ours[:height, :width] != expected).mean() < 0.002
        assert not ours[height:].any() and not ours[:, width:].any()


def test_enlarging_keeps_the_place(making):
    size = (20, 30)
    mask = making.rectangle(size, (4, 5, 14, 12))
    sample = ResizeLongestSide(image_size=90)(make_image(size), making.annotate([mask], size)["annotations"], 4, rng())
    rows, columns = np.nonzero(sample.masks[0].numpy())
    assert (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) == (12, 15, 42, 36)


@pytest.mark.parametrize("where", [(0, 0), (511, 0), (0, 511), (511, 511), (100, 333)])
def test_an_object_never_becomes_empty(making, where):
    size = (512, 512)
    mask = making.rectangle(size, (*where, where[0] + 1, where[1] + 1))
    annotations = making.annotate([mask], size)["annotations"]
    sample = ResizeLongestSide(image_size=32)(make_image(size), annotations, 4, rng())
    assert sample.masks.sum() == 1
    row, column = np.argwhere(sample.masks[0].numpy())[0]
    assert (column, row) == (where[0] // 16, where[1] // 16)
    assert len(ResizeLongestSide(image_size=32, min_mask_area=2)(make_image(size), annotations, 4, rng()).masks) == 0


def test_at_most_max_masks_are_decoded(making, monkeypatch):
    size = (64, 64)
    masks = [disc(size, (i % 8 * 8 + 4, i // 8 * 8 + 4), 3) for i in range(64)]
    annotations = making.annotate(masks, size)["annotations"]
    decoded = []
    original = windows.decode_rle_box
    monkeypatch.setattr(windows, "decode_rle_box", lambda rle, box: decoded.append(box) or original(rle, box))
    for transform in (ResizeLongestSide(image_size=32), NativeCrop(image_size=32), LargeScaleJitter(image_size=32)):
        decoded.clear()
        sample = transform(make_image(size), annotations, 5, rng())
        assert len(sample.masks) <= len(decoded) <= 5
    draws = [ResizeLongestSide(image_size=32)(make_image(size), annotations, 5, rng(i)).masks.numpy() for i in range(9)]
    assert not all((draw == draws[0]).all() for draw in draws), "chosen at random"
    assert (ResizeLongestSide(image_size=32)(make_image(size), annotations, 5, rng(3)).masks.numpy() == draws[3]).all()


def test_masks_of_almost_the_whole_image_are_dropped(making):
    size = (50, 50)
    large, small = making.rectangle(size, (0, 0, 50, 46)), making.rectangle(size, (0, 0, 50, 44))
    annotations = making.annotate([large, small], size)["annotations"]
    assert len(ResizeLongestSide(image_size=50)(make_image(size), annotations, 4, rng()).masks) == 1
    assert len(ResizeLongestSide(image_size=50, max_mask_area=1.0)(make_image(size), annotations, 4, rng()).masks) == 2


@pytest.mark.parametrize("centre", [False, True])
def test_native_crop_shows_the_images_own_pixels(making, centre):
    size = (70, 90)
    masks = [making.rectangle(size, (60, 40, 72, 50)), making.rectangle(size, (3, 3, 9, 9))]
    image, annotations = make_image(size), making.annotate(masks, size)["annotations"]
    for seed in range(20):
        sample = NativeCrop(image_size=32, centre=centre)(image, annotations, 4, rng(seed))
        assert len(sample.masks) > 0, "the crop holds an object"
        assert sample.masks.sum((1, 2)).max() in (120, 36), "and holds it whole"
        crop = sample.image.permute(1, 2, 0).numpy()
        corners = np.argwhere((image[:39, :59] == crop[0, 0]).all(axis=-1))
        y, x = next((y, x) for y, x in corners if (image[y : y + 32, x : x + 32] == crop).all())
        for mask in sample.masks.numpy():
            assert any((mask == m[y : y + 32, x : x + 32]).all() for m in masks)
        if centre:
            assert (y, x) == (19, 41), "the central place, moved to hold the nearest object and a pixel to spare"


def test_native_crop_varies_and_is_drawn_from_the_generator(making):
    size = (70, 90)
    annotations = making.annotate([disc(size, (45, 35), 10)], size)["annotations"]
    crops = [NativeCrop(image_size=32)(make_image(size), annotations, 4, rng(i)).image.numpy() for i in range(12)]
    assert len({crop.tobytes() for crop in crops}) > 8
    again = NativeCrop(image_size=32)(make_image(size), annotations, 4, rng(4)).image.numpy()
    assert (again == crops[4]).all()


def test_native_crop_of_a_smaller_image_and_of_larger_objects(making):
    size = (20, 50)
    mask = making.rectangle(size, (2, 2, 48, 18))
    sample = NativeCrop(image_size=32)(make_image(size), making.annotate([mask], size)["annotations"], 4, rng())
    assert sample.input_size == (20, 32)
    assert not sample.image[:, 20:].any()
    assert sample.masks.shape == (1, 32, 32)


def test_the_visible_part_decides(making):
    """An object whose box meets the crop but whose pixels do not is left out; one that fills the crop too."""
    size = (200, 200)
    ring = disc(size, (100, 100), 95) & ~disc(size, (100, 100), 85)
    transform = NativeCrop(image_size=32, centre=True)
    assert len(transform(make_image(size), making.annotate([ring], size)["annotations"], 4, rng()).masks) == 0
    filled = making.rectangle(size, (20, 20, 180, 180))
    assert len(transform(make_image(size), making.annotate([filled], size)["annotations"], 4, rng()).masks) == 0


def test_jitter_scales_within_its_range(making):
    size = (100, 150)
    image, annotations = make_image(size), making.annotate([disc(size, (75, 50), 45)], size)["annotations"]
    sides, transform = [], LargeScaleJitter(image_size=64)
    for seed in range(40):
        sample = transform(image, annotations, 4, rng(seed))
        height, width = sample.input_size
        sides.append(width)
        assert not sample.image[:, height:].any() and not sample.image[:, :, width:].any()
        assert max(height, width) <= 64
    assert min(sides) < 20 and sides.count(64) > 10
    with pytest.raises(ValueError, match="loader.large_scale_jitter is .*smallest, largest"):
        LargeScaleJitter(scale=(2.0, 0.1))


def test_jitter_moves_image_and_mask_alike(making):
    """A white square on black: the white pixels of the input are those of the mask."""
    size = (100, 150)
    mask = making.rectangle(size, (40, 30, 100, 80))
    image = np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255
    for seed in range(30):
        transform = LargeScaleJitter(image_size=64, max_mask_area=1.0, flip_probability=0.5)
        sample = transform(image, making.annotate([mask], size)["annotations"], 4, rng(seed))
        white = sample.image[0].numpy() >= 128
        if len(sample.masks):
            assert (white != sample.masks[0].numpy()).mean() < 0.02
        else:
            assert not white.any()


def test_flip_mirrors_the_part_that_is_not_padding(making):
    size = (40, 20)
    mask = making.rectangle(size, (2, 3, 7, 30))
    image, annotations = make_image(size), making.annotate([mask], size)["annotations"]
    plain = ResizeLongestSide(image_size=40)(image, annotations, 4, rng())
    flipped = ResizeLongestSide(image_size=40, flip_probability=1.0)(image, annotations, 4, rng())
    assert (flipped.image[:, :, :20] == plain.image[:, :, :20].flip(-1)).all()
    assert (flipped.masks[:, :, :20] == plain.masks[:, :, :20].flip(-1)).all()
    assert not flipped.image[:, :, 20:].any() and not flipped.masks[:, :, 20:].any()


def test_box_decoding_equals_full_decoding():
    """All kinds of masks and boxes; runs that cross columns, touch borders, or begin in the foreground."""
    for seed in range(60):
        draw = rng(seed)
        size = tuple(draw.integers(1, 40, 2).tolist())
        mask = draw.random(size) < draw.choice([0.02, 0.5, 0.98, 1.1])
        xs, ys = (np.sort(draw.choice(side + 1, 2, replace=False)).tolist() for side in size[::-1])
        rle = windows.to_compressed(encode_mask(mask), size)
        part = windows.decode_rle_box(rle, (xs[0], ys[0], xs[1], ys[1]))
        assert (part == decode_rle(rle)[ys[0] : ys[1], xs[0] : xs[1]]).all()


def test_the_masks_decide_not_the_numbers_of_the_json(making):
    """A wrong bbox or area once dropped a good mask, without a word."""
    size = (30, 30)
    (annotation,) = making.annotate([making.rectangle(size, (5, 6, 6, 9))], size)["annotations"]
    boxes = [[9000, 9000, 5, 5], [20, 20, 3, 3], [0, 0, 0, 0], [], [5, 6, 1], ["5", 6, 1, 3], [float("nan")] * 4, "5 6 1 3"]
    wrong = [{**annotation, "bbox": box} for box in boxes]
    wrong += [{**annotation, "area": area} for area in (10**9, 0, -1, float("nan"), "3", None)]
    for given in (annotation, {"segmentation": annotation["segmentation"]}, *wrong):
        for transform in (ResizeLongestSide(image_size=30), NativeCrop(image_size=12), NativeCrop(image_size=12, centre=True)):
            assert transform(make_image(size), [given], 4, rng()).masks.sum() == 3


def test_as_many_masks_are_drawn_as_are_visible(making):
    """A mask with a box that is in the window, but no pixel, once left the sample with fewer masks than there are."""
    size = (40, 40)
    frame = making.rectangle(size, (0, 0, 40, 40)) & ~making.rectangle(size, (2, 2, 38, 38))
    masks = [frame] * 6 + [making.rectangle(size, (x, 18, x + 3, 21)) for x in range(5, 35, 4)]
    annotations = making.annotate(masks, size)["annotations"]
    crop = NativeCrop(image_size=20)
    crop.window = lambda *_: windows.Window((10, 10, 30, 30), (20, 20))
    for seed in range(20):
        assert len(crop(make_image(size), annotations, 4, rng(seed)).masks) == 4


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"segmentation": encode_mask(np.ones((9, 9)))}, r"annotation 0: RLE has size \(9, 9\), but the image"),
        ({"segmentation": {"size": [30, 30], "counts": "0"}}, "annotation 0: RLE runs sum to"),
        ({"segmentation": encode_mask(np.zeros((30, 30)))}, "annotation 0: the mask is empty"),
        ({"segmentation": encode_mask(np.zeros((30, 30))), "area": 0}, "annotation 0: the mask is empty"),
        ({"segmentation": [[1, 2, 3, 4, 5, 6]]}, "annotation 0: an RLE is a mapping"),
    ],
)
def test_broken_masks_are_named(making, change, complaint):
    size = (30, 30)
    annotations = making.annotate([making.rectangle(size, (5, 6, 9, 9))], size)["annotations"]
    with pytest.raises(ValueError, match=f"{complaint}.*: "):
        ResizeLongestSide(image_size=30)(make_image(size), [{**annotations[0], **change}], 4, rng())


def test_real_images_keep_their_objects(shared_data):
    """Nuclei and facades, shrunk and cropped: no chosen object vanishes, areas shrink with the scale."""
    for name, size in (("dsb2018-cc0", 128), ("facades-ccby", 256)):
        for path in sorted((shared_data / name / "images").glob("*.json"))[:4]:
            annotation = json.loads(path.read_text())
            info = annotation["image"]
            data = path.with_name(info["file_name"]).read_bytes()
            image = decode_image(data, info["width"], info["height"], path.name)
            objects = [a for a in annotation["annotations"] if a["area"] <= 0.85 * info["width"] * info["height"]]
            sample = ResizeLongestSide(image_size=size)(image, objects, 10**6, rng())
            areas = np.array([a["area"] for a in objects]) * (size / max(image.shape)) ** 2
            assert len(sample.masks) == len(objects)
            large = areas > 100
            assert np.abs(sample.masks.sum((1, 2)).numpy()[large] / areas[large] - 1).max(initial=0) < 0.2
