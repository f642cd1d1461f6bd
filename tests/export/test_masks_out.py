"""Masks that are written for other tools come back from their files without loss."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import ShardWriter, index_tar, read_record
from samtrain.export.config import ExportConfig
from samtrain.export.masks_out import label_pages, write_masks
from samtrain.ops.rle import decode_rle, encode_mask
from samtrain.tasks import export

SIZE = (40, 60)


def _masks(seed: int) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    masks = [generator.random(SIZE) > 0.7]
    masks += [np.zeros(SIZE, bool) for _ in range(3)]
    masks[1][5:20, 5:30] = masks[2][10:25, 20:50] = masks[3][30:35, 1:9] = True  # the first two overlap
    return masks


@pytest.fixture
def shards(tmp_path: Path, making: Any) -> Path:
    with ShardWriter(tmp_path / "shards", "set") as writer:
        for seed in range(2):
            image = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), dtype=np.uint8)
            annotation = making.annotate(_masks(seed), SIZE)
            for number, each in enumerate(annotation["annotations"]):
                each |= {"category_id": 3 + number % 2, "category_name": ("cell", "nucleus")[number % 2]}
            writer.write(f"image_{seed}", making.encode_png(image), "png", annotation)
    return tmp_path / "shards"


def _read(root: Path, folder: Path, **settings: Any) -> dict[str, list[dict[str, Any]]]:
    prepared = prepare(root / "again", PrepareConfig(root=str(folder), val=0, test=0, **settings))
    indexes = [index_tar(path) for path in prepared.glob("*/*.tar")]
    records = [read_record(index, i) for index in indexes for i in range(len(index))]
    return {Path(each.annotation["image"]["source_name"]).stem: each.annotation["annotations"] for each in records}


def _bytes(objects: list[Any]) -> list[bytes]:
    return sorted(np.asarray(each, bool).tobytes() for each in objects)


@pytest.mark.parametrize("form", ["coco", "sa1b", "label_maps"])
def test_masks_come_back(tmp_path: Path, shards: Path, form: str) -> None:
    write_masks(str(shards), [form], tmp_path / "out")
    settings: dict[str, Any] = {
        "coco": {"form": "coco", "annotations": str(tmp_path / "out/instances.json")},
        "sa1b": {"form": "sa1b"},
        "label_maps": {"form": "label_maps", "masks": str(tmp_path / "out/labels/{stem}.*")},
    }[form]
    found = _read(tmp_path, tmp_path / "out/images", **settings)
    for seed in range(2):
        objects = found[f"image_{seed}"]
        assert _bytes([decode_rle(each["segmentation"]) for each in objects]) == _bytes(_masks(seed))
        if form != "label_maps":
            assert sorted(each["category_name"] for each in objects) == ["cell", "cell", "nucleus", "nucleus"]


@pytest.mark.parametrize(("count", "kind"), [(3, np.uint8), (300, np.uint16)])
def test_label_maps_have_the_smallest_type(count: int, kind: Any) -> None:
    masks = np.zeros((count, 20, 20), bool)
    for i in range(count):
        masks[i, i // 20, i % 20] = True
    (page,) = label_pages([encode_mask(mask) for mask in masks], (20, 20))
    assert page.dtype == kind and all((page == i + 1).sum() == 1 for i in range(count))


def test_the_task_writes_masks_and_checks_its_settings(tmp_path: Path, shards: Path) -> None:
    export.run({"checkpoint": None, "export": {"dataset": str(shards), "formats": ["coco", "sa1b"]}}, tmp_path / "run")
    content = json.loads((tmp_path / "run/instances.json").read_text())
    assert len(content["images"]) == 2 and len(content["annotations"]) == 8
    assert {each["name"] for each in content["categories"]} == {"cell", "nucleus"}
    with Image.open(tmp_path / "run/images/image_0.png") as image:
        assert image.size == SIZE[::-1]
    with pytest.raises(ValueError, match="export.dataset is set: set export.formats to some of coco, sa1b, label_maps"):
        ExportConfig(dataset="a")
    with pytest.raises(ValueError, match=r"export.formats is \['onnx'\]: give a list of one or more of coco"):
        ExportConfig(dataset="a", formats=["onnx"])
