"""Automatic masks of shards go through a review by people into the quality audit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from pretend_predictor import write_pool

from samtrain.annotator.review import begin_review, end_review
from samtrain.annotator.store import NewMask, open_store
from samtrain.ops.rle import decode_rle, encode_mask
from samtrain.tasks import resolve
from samtrain.tasks import run as run_task

CONF = Path(__file__).resolve().parents[2] / "conf"


def test_masks_that_people_review_are_measured_by_the_audit(tmp_path: Path) -> None:
    """Of four images, one mask is corrected to half of it, one is rejected, and the others are accepted."""
    tars = write_pool(tmp_path / "shards", 4, num=3)
    store = open_store(str(tmp_path / "annotations.db"))
    for _ in range(2):  # a second start adds nothing
        begin_review(store, tars, None)
    assert store.count_images() == 4 and store.statistics()["masks"]["done"] == 12
    work = store.work()
    assert work is not None and work.kind == "review"

    corrected, rejected = store.images()[0], store.images()[1]
    first = store.masks(corrected.id)[0]
    half = decode_rle(first.segmentation)
    half[: int(first.bbox[1] + first.bbox[3] / 2)] = False
    lease = store.lease(corrected.id, "Ada", 60)
    new = NewMask(segmentation=encode_mask(half), origin="refined", parent=first.id)
    store.accept(corrected.id, "Ada", new, lease.token)
    store.finish(corrected.id, "Ada", lease.token)
    store.reject(store.masks(rejected.id)[0].id, "Ada")
    for image in store.images(state="open"):
        store.finish(image.id, "Ada")
    end_review(store, tmp_path / "corrected")

    with initialize_config_dir(str(CONF), version_base="1.3"):
        overrides = ["task=audit", f"audit.dataset={tmp_path / 'shards'}", f"audit.corrected={tmp_path / 'corrected'}"]
        config = resolve(compose("config", overrides=[*overrides, f"run_dir={tmp_path / 'audit'}"]))
    (tmp_path / "audit").mkdir()
    metrics = run_task(config, tmp_path / "audit")
    assert metrics is not None and metrics["audit/pairs"] == 11
    assert metrics["audit/share_above_90"] == pytest.approx(10 / 11)
    ious = [json.loads(line)["iou"] for line in (tmp_path / "audit" / "audit.jsonl").read_text().splitlines()]
    assert sorted(ious)[0] == pytest.approx(0.5, abs=0.1) and sorted(ious)[1:] == [1.0] * 10
