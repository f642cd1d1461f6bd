"""loader.train_images draws from the whole set by the seed, not its first images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samtrain.data.image_set import ImageSet, records
from samtrain.run.image_sets import open_set
from samtrain.tasks.fit import fit_request


def config_of(urls: str, seed: int) -> dict[str, Any]:
    return {
        "seed": seed,
        "checkpoint": None,
        "data": {"kind": "shards", "train": {"a": {"urls": urls}}, "val": urls},
        "model": {"name": "vit_tiny", "image_size": 32},
        "loader": {"batch_size": 1, "train_images": 4},
        "trainer": {"max_steps": 1},
        "optim": {},
    }


def test_some_images_are_drawn_by_the_seed(tmp_path: Path, write_set) -> None:
    write_set(tmp_path / "set", n=30)

    def chosen(seed: int, folder: str) -> list[str]:
        config = config_of(str(tmp_path / "set"), seed)
        images: ImageSet = open_set(config["data"], str(tmp_path))
        (source,) = fit_request(config, tmp_path / folder, images).train
        return [record.key for record in records(list(source.urls))]

    one, again, other = chosen(0, "a"), chosen(0, "b"), chosen(1, "c")
    assert one == again != other and len(one) == len(set(one)) == 4
    assert one != [f"set_{i}" for i in range(4)]
