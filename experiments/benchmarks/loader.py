"""Times one loader process in images per second on SA-1B-like shards: 2250 x 1500, 100 masks each, 64 chosen, 1024 px out.

The peer is the usual code with pycocotools, PIL and NumPy: it decodes and resizes the JPEG, decodes every mask at full size,
chooses 64 of them, resizes these by nearest neighbour and stacks them. The images come from a folder with SA-1B's JSON files;
they are enlarged and their masks shifted until there are 100. Without the folder, photographs of scikit-image get ellipses.
"""

from __future__ import annotations

import io
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from paired import Row, arguments, begin, compare, finish
from PIL import Image
from pycocotools import mask as coco_mask

from samtrain.data.datasets import SamDataset
from samtrain.data.shards import ShardWriter
from samtrain.data.transforms import ResizeLongestSide
from samtrain.ops.rle import decode_rle, encode_mask

HEIGHT, WIDTH, MASKS, CHOSEN, SIDE = 1500, 2250, 100, 64, 1024
SHARED = Path(__file__).resolve().parents[3] / "shared" / "data" / "coco-cc" / "images"


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--images", type=int, default=8)
    parser.add_argument("--folder", type=Path, default=SHARED, help="images, each with an SA-1B JSON file beside it")
    parser.set_defaults(threads=1)
    options = parser.parse_args()
    begin(options)
    with tempfile.TemporaryDirectory() as folder:
        with ShardWriter(folder, "bench") as writer:
            for number, (image, masks) in zip(range(options.images), sources(options.folder), strict=False):
                write(writer, number, image, masks)
        shard = Path(folder) / "bench_000000.tar"
        rows = [measure(shard, exact, options) for exact in (True, False)]
    finish(options, "loader", rows, {"images/s, ours": ", ".join(f"{options.images / r.our_seconds:.1f}" for r in rows)})


def measure(shard: Path, exact: bool, options) -> Row:
    dataset = SamDataset([str(shard)], ResizeLongestSide(image_size=SIDE), max_masks=CHOSEN, reduced_jpeg=not exact)
    full = SamDataset([str(shard)], ResizeLongestSide(image_size=SIDE), max_masks=CHOSEN)
    gap = np.mean([np.abs(full[i].image.float() - dataset[i].image.float()).mean() for i in range(options.images)])
    return compare(
        f"{options.images} images, {'exact' if exact else 'JPEGs decoded at a reduced scale'}",
        "pycocotools, PIL, NumPy",
        lambda: [load_plainly(data, annotation, i) for i, (data, annotation) in enumerate(read_plainly(shard))],
        lambda: [dataset[i] for i in range(options.images)],
        pairs=options.pairs,
        difference=f"to the exact image: {gap:.2f} of 255",
    )


# ---- the data


def sources(folder: Path) -> Iterator[tuple[np.ndarray, list[np.ndarray]]]:
    """Returns images with bool masks."""
    import json

    for path in sorted(folder.glob("*.json")) if folder.is_dir() else []:
        content = json.loads(path.read_text())
        image = np.asarray(Image.open(path.with_name(content["image"]["file_name"])).convert("RGB"))
        masks = [decode_rle(each["segmentation"]) for each in content["annotations"]]
        if len(masks) >= 5:
            yield image, masks
    if not folder.is_dir():
        from skimage import data

        y, x = np.mgrid[:300, :451]
        for image in [data.astronaut(), data.chelsea(), data.coffee(), data.rocket()] * 8:
            yield image, [((x - 30 * i) / (5 + 3 * i)) ** 2 + ((y - 20 * i) / (40 - i)) ** 2 < 1 for i in range(1, 12)]


def write(writer: ShardWriter, number: int, image: np.ndarray, masks: list[np.ndarray]) -> None:
    rng = np.random.default_rng(number)
    buffer = io.BytesIO()
    Image.fromarray(image).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    large = [np.asarray(Image.fromarray(mask).resize((WIDTH, HEIGHT), Image.Resampling.NEAREST)) for mask in masks]
    annotations = []
    while len(annotations) < MASKS:
        mask = large[len(annotations) % len(large)]
        if len(annotations) >= len(large):  # use the masks again, shifted and at half the size
            small, moved = mask[::2, ::2], np.zeros_like(mask)
            top, left = rng.integers(0, HEIGHT // 2), rng.integers(0, WIDTH // 2)
            moved[top : top + HEIGHT // 2, left : left + WIDTH // 2] = small
            mask = moved
        rle = encode_mask(mask)
        box = coco_mask.toBbox({"size": rle["size"], "counts": rle["counts"].encode()}).tolist()
        annotations.append({"id": len(annotations), "segmentation": rle, "bbox": box, "area": int(mask.sum())})
    header = {"image_id": number, "width": WIDTH, "height": HEIGHT, "file_name": ""}
    writer.write(f"sa_{number}", buffer.getvalue(), "jpg", {"image": header, "annotations": annotations})


# ---- the peer


def read_plainly(shard: Path) -> Iterator[tuple[bytes, dict]]:
    import json

    with tarfile.open(shard) as tar:
        members = {member.name: member for member in tar}
        for name in sorted(name for name in members if name.endswith(".json")):
            image = tar.extractfile(members[name.replace(".json", ".jpg")])
            text = tar.extractfile(members[name])
            assert image is not None and text is not None
            yield image.read(), json.loads(text.read())


def load_plainly(data: bytes, annotation: dict, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    image = Image.open(io.BytesIO(data)).convert("RGB")
    scale = SIDE / max(image.size)
    width, height = int(image.width * scale + 0.5), int(image.height * scale + 0.5)
    pixels = np.zeros((SIDE, SIDE, 3), dtype=np.uint8)
    pixels[:height, :width] = np.asarray(image.resize((width, height), Image.Resampling.BILINEAR))
    decoded = [
        coco_mask.decode({"size": each["segmentation"]["size"], "counts": each["segmentation"]["counts"].encode()})
        for each in annotation["annotations"]
    ]
    keep = [mask for mask in decoded if 0 < mask.sum() <= 0.9 * mask.size]
    chosen = np.random.default_rng(seed).permutation(len(keep))[:CHOSEN]
    masks = np.zeros((len(chosen), SIDE, SIDE), dtype=bool)
    for row, index in enumerate(chosen):
        small = Image.fromarray(keep[index]).resize((width, height), Image.Resampling.NEAREST)
        masks[row, :height, :width] = np.asarray(small)
    return torch.from_numpy(pixels).permute(2, 0, 1), torch.from_numpy(masks)


if __name__ == "__main__":
    main()
