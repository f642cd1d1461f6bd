"""What annotation tools export is read without loss: YOLO's polygons, CVAT's XML, Label Studio's JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.prepare.label_studio import decode_brush
from samtrain.data.shards import index_tar, read_record
from samtrain.ops.rle import decode_rle

H, W = 24, 32
POLYGON = [1.0, 2.0, 12.0, 2.0, 12.0, 9.0, 1.0, 9.0]
OTHER = [15.0, 12.0, 30.0, 12.0, 22.0, 22.0]


def _images(folder: Path, *names: str) -> None:
    for number, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (H, W, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name, format="png")


def _prepared(tmp_path: Path, root: Path, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    """The annotations by image, of all splits."""
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(root), val=0, test=0, **settings))
    indexes = [index_tar(path) for path in folder.glob("*/*.tar")]
    records = [read_record(index, i) for index in indexes for i in range(len(index))]
    return {each.annotation["image"]["source_name"]: each.annotation["annotations"] for each in records}


def _mask(*polygons: list[float]) -> np.ndarray:
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(list(polygons), H, W))).astype(bool)


def _same(annotation: dict[str, Any], mask: np.ndarray) -> bool:
    return np.array_equal(decode_rle(annotation["segmentation"]), mask)


def _brush() -> np.ndarray:
    mask = np.random.default_rng(3).random((H, W)) > 0.6
    mask[5:9, 3:20] = True
    return mask


# ---- YOLO


def _shares(polygon: list[float]) -> str:
    return " ".join(f"{value / (W, H)[i % 2]!r}" for i, value in enumerate(polygon))


@pytest.mark.parametrize("images", ["images/train", "images", "."])
def test_yolo_polygons_are_read_by_class(tmp_path: Path, images: str) -> None:
    root = tmp_path / "set"
    _images(root / images, "a.png", "b.png")
    labels = root / images.replace("images", "labels")
    labels.mkdir(parents=True, exist_ok=True)
    (labels / "a.txt").write_text(f"0 {_shares(POLYGON)}\n1 {_shares(OTHER)}\n\n")
    (labels / "b.txt").write_text(f"1 {_shares(OTHER)}\n")
    (root / "data.yaml").write_text("names: {0: cell, 1: nucleus}\n")
    found = _prepared(tmp_path, root, form="yolo")
    (first, second), (alone,) = (found[(Path(images) / name).as_posix()] for name in ("a.png", "b.png"))
    assert _same(first, _mask(POLYGON)) and _same(second, _mask(OTHER)) and _same(alone, _mask(OTHER))
    assert [each["category_name"] for each in (first, second, alone)] == ["cell", "nucleus", "nucleus"]
    chosen = _prepared(tmp_path, root, form="yolo", categories=["cell"])
    assert [len(objects) for objects in chosen.values()] == [1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("0 0.5 0.5 0.2 0.2", "the labels are boxes, not polygons"),
        ("0 0.5 0.5 0.2 0.2 0.7", "a line of labels is no polygon"),
        ("0 5 5 20 5 20 9", "corners are not shares of the image's sides"),
        ("cat 0.1 0.1 0.2 0.2 0.1 0.3", "a line of labels is no list of numbers"),
    ],
)
def test_yolo_lines_that_are_no_polygon_are_refused(tmp_path: Path, line: str, said: str) -> None:
    _images(tmp_path / "set", "a.png")
    (tmp_path / "set/a.txt").write_text(line)
    with pytest.raises(ValueError, match=said):
        _prepared(tmp_path, tmp_path / "set", form="yolo")


# ---- CVAT


def _runs(mask: np.ndarray) -> str:
    flat = np.concatenate([[False], mask.flatten(), [not mask.flatten()[-1]]])
    changes = np.flatnonzero(flat[1:] != flat[:-1])
    return ", ".join(map(str, np.diff(np.concatenate([[0], changes]))))


def _cvat(tmp_path: Path, shapes: str, head: str = "") -> Path:
    _images(tmp_path / "set", "a.png")
    path = tmp_path / "annotations.xml"
    path.write_text(
        f'<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>{head}'
        f'<image id="7" name="a.png" width="{W}" height="{H}">{shapes}</image></annotations>'
    )
    return path


def _points(polygon: list[float]) -> str:
    return ";".join(f"{x},{y}" for x, y in zip(polygon[::2], polygon[1::2], strict=True))


def test_cvat_shapes_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    brush = _brush()
    window = brush[2:20, 1:30]
    shapes = (
        f'<polygon label="cell" points="{_points(POLYGON)}" group_id="0"/>'
        f'<polygon label="cell" points="{_points(POLYGON)}" group_id="4"/>'
        f'<polygon label="cell" points="{_points(OTHER)}" group_id="4"/>'
        f'<mask label="brush" rle="{_runs(window)}" left="1" top="2" width="29" height="18"/>'
        '<ellipse label="cell" cx="16" cy="12" rx="10" ry="5" rotation="90"/>'
        '<box label="cell" xtl="1" ytl="1" xbr="5" ybr="5"/>'
    )
    found = _prepared(tmp_path, tmp_path / "set", annotations=str(_cvat(tmp_path, shapes)))["a.png"]
    in_window = np.zeros_like(brush)
    in_window[2:20, 1:30] = window
    masks = [_mask(POLYGON), _mask(POLYGON, OTHER), in_window]
    assert all(_same(each, mask) for each, mask in zip(found[:3], masks, strict=True))
    ellipse = decode_rle(found[3]["segmentation"])
    rows, columns = np.nonzero(ellipse)
    assert abs(ellipse.sum() - np.pi * 50) < 8 and np.ptp(rows) >= 18 and np.ptp(columns) <= 10  # it is turned
    assert [each["category_name"] for each in found] == ["cell", "cell", "brush", "cell"]
    assert "shapes that outline no object, and they are left out: 1 box" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("<annotations><track id='0'/></annotations>", "holds a video's tracks: export the task .* 'CVAT for images 1.1'"),
        ("<annotation><object/></annotation>", "holds an XML of <annotation> without images"),
        ("<annotations", "cannot be parsed as XML"),
    ],
)
def test_other_xmls_are_refused(tmp_path: Path, text: str, said: str) -> None:
    path = _cvat(tmp_path, "")
    path.write_text(text)
    with pytest.raises(ValueError, match=said):
        _prepared(tmp_path, tmp_path / "set", form="cvat", annotations=str(path))


def test_a_brush_mask_that_does_not_fill_its_box_is_refused(tmp_path: Path) -> None:
    path = _cvat(tmp_path, '<mask label="a" rle="3, 4" left="0" top="0" width="3" height="3"/>')
    with pytest.raises(ValueError, match="a brush mask of 7 pixels does not fill its box of 3 x 3"):
        _prepared(tmp_path, tmp_path / "set", annotations=str(path))


# ---- Label Studio


def encode_brush(mask: np.ndarray, *, literal: bool = False) -> list[int]:
    """Label Studio's stream for a mask, as repeated values or value by value."""
    values = np.repeat(mask.astype(np.uint8).flatten() * 255, 4)
    bits = f"{len(values):032b}" + f"{8 - 1:05b}" + "".join(f"{length - 1:04b}" for length in (3, 4, 8, 16))
    starts = np.flatnonzero(np.diff(values.astype(int), prepend=-1))
    for start, end in zip(starts, [*starts[1:], len(values)], strict=True):
        count, value = end - start, values[start]
        bits += ("0" if literal else "1") + f"{3:02b}" + f"{count - 1:016b}" + f"{value:08b}" * (count if literal else 1)
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("literal", [False, True])
def test_a_brush_is_decoded_without_loss(literal: bool) -> None:
    mask = _brush()
    assert np.array_equal(decode_rle(decode_brush(encode_brush(mask, literal=literal), (H, W))), mask)
    with pytest.raises(ValueError, match="a brush mask has 3072 values, in an image of 9 x 9 pixels"):
        decode_brush(encode_brush(mask), (9, 9))
    with pytest.raises(ValueError, match="ends too early"):
        decode_brush(encode_brush(mask)[:-9], (H, W))


def _task(image: str, *results: dict[str, Any], **more: Any) -> dict[str, Any]:
    sized = [{"original_width": W, "original_height": H, "image_rotation": 0, **each} for each in results]
    cancelled = {"was_cancelled": True, "result": []}
    return {"id": 1, "data": {"image": image}, "annotations": [cancelled, {"result": sized}], **more}


def test_label_studio_results_are_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    _images(tmp_path / "set", "a.png", "sub/b c.png", "12345678-c.png")
    percent = [[x / W * 100, y / H * 100] for x, y in zip(POLYGON[::2], POLYGON[1::2], strict=True)]
    polygon = {"type": "polygonlabels", "value": {"points": percent, "polygonlabels": ["cell"]}}
    brush = {"type": "brushlabels", "value": {"format": "rle", "rle": encode_brush(_brush()), "brushlabels": ["brush"]}}
    ellipse = {
        "type": "ellipselabels",
        "value": {"x": 50, "y": 50, "radiusX": 25, "radiusY": 25, "rotation": 0, "ellipselabels": ["cell"]},
    }
    box = {"type": "rectanglelabels", "value": {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["cell"]}}
    tasks = [
        _task("/data/upload/3/0a1b2c3d-a.png", polygon, box),
        _task("/data/local-files/?d=sub/b%20c.png", brush),
        _task("/data/upload/3/12345678-c.png", ellipse),
    ]
    (tmp_path / "project.json").write_text(json.dumps(tasks))
    settings = {"form": "label_studio", "annotations": str(tmp_path / "project.json")}
    found = _prepared(tmp_path, tmp_path / "set", **settings)
    assert found.keys() == {"a.png", "sub/b c.png", "12345678-c.png"}
    assert _same(found["a.png"][0], _mask(POLYGON)) and _same(found["sub/b c.png"][0], _brush())
    assert abs(decode_rle(found["12345678-c.png"][0]["segmentation"]).sum() - np.pi * 48) < 8
    assert found["sub/b c.png"][0]["category_name"] == "brush"
    assert "more than outlines of objects, and this is left out: rectanglelabels (1)" in caplog.text
    assert len(_prepared(tmp_path, tmp_path / "set", categories=["cell"], **settings)) == 2


@pytest.mark.parametrize("content", [[{"image": "a.png", "label": []}], {"images": []}])
def test_other_jsons_are_refused(tmp_path: Path, content: Any) -> None:
    _images(tmp_path / "set", "a.png")
    (tmp_path / "p.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="is not Label Studio's full export.* as JSON, not as JSON-MIN"):
        _prepared(tmp_path, tmp_path / "set", form="label_studio", annotations=str(tmp_path / "p.json"))
