"""A data set of your own, given as arrays: a subclass yields images with masks, and they are written to shards once."""

from __future__ import annotations

import hashlib
import io
import json
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from samtrain.data.image_set import DataConfig, ImageSet, open_prepared
from samtrain.data.shards import ShardWriter
from samtrain.files import build_once
from samtrain.ops.rle import encode_mask

SPLITS = ("pool", "val", "test")  # pool: trained on by task=fit, annotated by task=rounds


@dataclass(frozen=True, kw_only=True)
class ArrayDataConfig(DataConfig):
    """The base class for `data._target_`: implement `images`, and declare settings as dataclass fields.

    The shards are written below `data_dir` at the first use, and again for other settings or another `version`: raise it when
    the images behind the same settings change.
    """

    version: int = 0

    @abstractmethod
    def images(self, split: str) -> Iterable[tuple[str, np.ndarray, Sequence[np.ndarray]]]:
        """Yields (key, (H, W, 3) uint8 RGB image, (H, W) bool masks) for the split "pool", "val" or "test".

        Keys are unique. A split without images is left out.
        """

    def open(self, data_dir: str) -> ImageSet:
        """Returns the shards, after writing them if they do not exist yet."""
        settings = json.dumps([type(self).__module__, type(self).__qualname__, asdict(self)], sort_keys=True, default=str)
        name = f"{type(self).__name__}_{hashlib.sha256(settings.encode()).hexdigest()[:12]}"
        return open_prepared(build_once(Path(data_dir) / name, self._write, "arrays.json"))

    def _write(self, folder: Path) -> dict[str, Any]:
        """Writes the shards of all splits and returns the numbers of their images."""
        counts = dict.fromkeys(SPLITS, 0)
        for split in SPLITS:
            with ShardWriter(folder / split, split) as writer:
                for number, (key, image, masks) in enumerate(self.images(split)):
                    writer.write(key, _png(key, image), "png", _annotation(number, key, image, masks))
                    counts[split] += 1
        if not counts["pool"]:
            raise ValueError(f"data._target_ is {type(self).__qualname__}, which yields no image for the split pool")
        return counts


def _png(key: str, image: np.ndarray) -> bytes:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"image {key} of data._target_ is {image.dtype} {image.shape}: give (H, W, 3) uint8 RGB")
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def _annotation(number: int, key: str, image: np.ndarray, masks: Sequence[np.ndarray]) -> dict[str, Any]:
    """Returns the record's JSON; empty masks are left out."""
    height, width = image.shape[:2]
    annotations: list[dict[str, Any]] = []
    for mask in masks:
        if mask.shape != (height, width):
            raise ValueError(f"a mask of image {key} of data._target_ is {mask.shape}: give the image's {(height, width)}")
        if not mask.any():
            continue
        rle = encode_mask(mask)
        bbox = [float(value) for value in coco_mask.toBbox({**rle, "counts": str(rle["counts"]).encode()})]
        annotations.append({"id": len(annotations) + 1, "segmentation": rle, "area": int(mask.sum()), "bbox": bbox})
    return {"image": {"image_id": number, "width": width, "height": height}, "annotations": annotations}
