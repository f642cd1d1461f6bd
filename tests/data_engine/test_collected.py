"""What earlier rounds have collected: images count once, also those in which no mask was found."""

from __future__ import annotations

import json
from pathlib import Path

from samtrain.data_engine.collected import annotated_keys, collected_keys


def test_images_without_a_mask_were_annotated_too(tmp_path: Path, write_set) -> None:
    """The ledger's images_total once counted such an image again in the next stage."""
    (shard,) = write_set(tmp_path / "1" / "shards", n=2)
    drawings = [("set_0", False), ("set_1", False), ("bare", False), ("broken", True)]
    (tmp_path / "1" / "annotations").mkdir()
    for number, (key, skipped) in enumerate(drawings):
        text = json.dumps({"result": {"key": key, "skipped": skipped}, "wall": 0.0})
        (tmp_path / "1" / "annotations" / f"{number:06d}.json").write_text(text)
    assert collected_keys([shard]) == {"set_0", "set_1"}
    assert annotated_keys([shard]) == {"set_0", "set_1", "bare"}
    assert annotated_keys([]) == set()
