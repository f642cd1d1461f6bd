"""Images are known by their pixels, under any name and in any file format."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samtrain.data import contents
from samtrain.data.contents import content_digest, contents_of
from samtrain.data.prepare.importers import PrepareConfig, prepare
from samtrain.data.shards import ShardWriter
from samtrain.ops.rle import encode_mask

SIZE = (12, 16)


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)


def mask() -> dict:
    return encode_mask(np.pad(np.ones((4, 5), bool), ((2, 6), (3, 8))))


def test_digests_tell_images_apart_and_nothing_else() -> None:
    grey = pixels(0)[..., 0]
    assert content_digest(grey) == content_digest(np.repeat(grey[..., None], 3, axis=2)) == content_digest(grey.copy("F"))
    others = [pixels(1), pixels(0), grey.T, grey.astype(np.uint16), grey.reshape(16, 12), np.flip(grey, 1)]
    digests = [content_digest(each) for each in (grey, *others)]
    assert len(set(digests)) == 7 and all(len(digest) == 16 for digest in digests)


def test_the_list_of_a_prepared_set_equals_what_decoding_finds(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for number in range(7):
        Image.fromarray(pixels(number)).save(tmp_path / "in" / f"{number}.{'bmp' if number % 2 else 'png'}")
        content = {"image": {}, "annotations": [{"segmentation": mask()}]}
        (tmp_path / "in" / f"{number}.json").write_text(json.dumps(content))
    folder = prepare(tmp_path / "out", PrepareConfig(root=str(tmp_path / "in"), val=0.3, test=0.0, max_count=2))
    tars = sorted(map(str, folder.glob("*/*.tar")))
    listed = {tar: contents_of([tar]) for tar in tars}
    for path in folder.glob("*/contents.txt"):
        path.unlink()
    assert listed == {tar: contents_of([tar]) for tar in tars}
    assert set.union(*listed.values()) == {content_digest(pixels(number)) for number in range(7)}


def test_tars_that_are_too_large_to_decode_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ShardWriter(tmp_path, "a", max_count=1) as writer:
        for number in range(3):
            stream = io.BytesIO()
            Image.fromarray(pixels(number)).save(stream, "png")
            annotation = {"image": {"width": SIZE[1], "height": SIZE[0]}, "annotations": []}
            writer.write(f"a_{number}", stream.getvalue(), "png", annotation)
    tars = [str(path) for path in writer.paths]
    assert len(contents_of(tars)) == 3
    monkeypatch.setattr(contents, "MAX_DECODED", 2 * writer.paths[0].stat().st_size)
    assert len(contents_of([*tars, "https://host/a.tar"])) == 2
