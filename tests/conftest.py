"""Fixtures that several test files share: small shards made on the fly, and the shared images."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from samtrain.data.shards import ShardWriter
from samtrain.ops.rle import encode_mask, rle_area, rle_to_box_xywh

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real images that lies beside the project where we develop; a plain clone has none."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"needs the shared images, {SHARED_DATA} is not there")
    return SHARED_DATA


def encode_png(image: np.ndarray) -> bytes:
    """An image as PNG bytes."""
    stream = io.BytesIO()
    Image.fromarray(image).save(stream, "png")
    return stream.getvalue()


def encode_16_bit_tiff(samples: np.ndarray, order: str, planes: int = 1) -> bytes:
    """(H, W, 3) uint16 as TIFF, which PIL cannot write for colours; `order` is "<" or ">"."""
    height, width, channels = samples.shape
    entries = {
        256: (4, 1, width), 257: (4, 1, height), 258: (3, channels, 8), 259: (4, 1, 1), 262: (4, 1, 2),
        273: (4, 1, 8 + 2 * channels), 277: (4, 1, channels), 278: (4, 1, height), 279: (4, 1, samples.nbytes),
        284: (4, 1, planes),
    }  # fmt: skip
    data = struct.pack(f"{order}{channels}H", *[16] * channels) + samples.astype(f"{order}u2").tobytes()
    head = {"<": b"II", ">": b"MM"}[order] + struct.pack(f"{order}HI", 42, 8 + len(data))
    body = b"".join(struct.pack(f"{order}HHII", tag, *entry) for tag, entry in entries.items())
    return head + data + struct.pack(f"{order}H", len(entries)) + body + bytes(4)


def annotate(masks: list[np.ndarray], size: tuple[int, int]) -> dict:
    """Masks of an image of `size` (H, W) as SA-1B's JSON."""
    rles = [encode_mask(mask) for mask in masks]
    objects = [
        {"id": i, "segmentation": rle, "area": rle_area(rle), "bbox": rle_to_box_xywh(rle)}
        for i, rle in enumerate(rles)
    ]
    return {"image": {"image_id": 1, "width": size[1], "height": size[0], "file_name": ""}, "annotations": objects}


def rectangle(size: tuple[int, int], box: tuple[int, int, int, int]) -> np.ndarray:
    """A (H, W) mask that is a box (xyxy, exclusive)."""
    mask = np.zeros(size, dtype=bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@pytest.fixture
def making():
    """The functions above, for tests: `making.annotate(...)`."""
    return SimpleNamespace(
        encode_png=encode_png, encode_16_bit_tiff=encode_16_bit_tiff, annotate=annotate, rectangle=rectangle
    )


@pytest.fixture
def write_set() -> Callable[..., list[Path]]:
    """Writes n images of 40 x 60 with three boxes each; image i is filled with the value i, but for a corner if `varied`."""

    def write(folder: Path, n: int = 6, prefix: str = "set", max_count: int = 1000, varied: bool = False) -> list[Path]:
        size = (40, 60)
        boxes = [(2, 3, 22, 13), (30, 10, 50, 35), (5, 20, 8, 23)]
        annotation = annotate([rectangle(size, box) for box in boxes], size)
        with ShardWriter(folder, prefix, max_count=max_count) as writer:
            for i in range(n):
                image = np.full((*size, 3), i, dtype=np.uint8)
                image[0, 0] += varied  # images of one value have no digest
                writer.write(f"{prefix}_{i}", encode_png(image), "png", annotation)
        return writer.paths

    return write


@pytest.fixture
def write_tar() -> Callable[..., Path]:
    """Writes any members into a tar: the ways in which a shard can be odd or broken."""

    def write(path: Path, members: list[tuple[str, bytes]]) -> Path:
        with tarfile.open(path, "w") as tar:
            for name, data in members:
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
        return path

    return write
