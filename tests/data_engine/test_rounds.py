"""Rounds with pretended training: what is promoted, what is written, and that a kill anywhere changes nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pretend_engine import CountedAnnotator, Killed, World, reproducible, round_config
from pretend_predictor import PretendPredictor, eroded, record_of, write_pool

from samtrain.data.shards import ShardWriter, index_tar, read_record
from samtrain.data_engine import engine as engine_module
from samtrain.data_engine import stage_images
from samtrain.data_engine.annotators import SimulatedAnnotator
from samtrain.data_engine.engine import DataEngine
from samtrain.data_engine.engine_files import identify
from samtrain.data_engine.ledger import read_ledger
from samtrain.data_engine.stages import Probe, Stage
from samtrain.files import digest
from samtrain.ops.rle import decode_rle


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pool(tmp_path_factory.mktemp("pool"), 12, num=3)


QUALITIES = [3.0, 2.0, 5.0]  # of the models of rounds 1 to 3: the second is worse than the first


def engine(run_dir: Path, pool: list[str], world: World, **settings) -> DataEngine:
    annotator = CountedAnnotator(world, max_clicks=3, seed=7)
    probe = Probe(annotator=CountedAnnotator(world, max_clicks=3, leaves_image=False, seed=7), images=2)
    configs = [round_config(model=model, images=2, steps=5) for model in ("vit_tiny", "vit_tiny", "vit_small")]
    first = world.save(run_dir / "pretrain" / "best.ckpt", 1.0)
    known = {"name": "assisted_manual", "rounds": configs, "pool": pool, "annotator": annotator, "probe": probe}
    stage = Stage(**(known | {key: settings.pop(key) for key in known.keys() & settings.keys()}))
    return DataEngine(run_dir=run_dir, stages=[stage], tools=world, initial=first, **settings)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, pool: list[str]) -> tuple[Path, World]:
    run_dir, world = tmp_path_factory.mktemp("runs") / "undisturbed", World(QUALITIES)
    engine(run_dir, pool, world).run()
    return run_dir, world


def test_better_models_are_promoted_and_the_others_not(undisturbed: tuple[Path, World]) -> None:
    run_dir, world = undisturbed
    lines = read_ledger(run_dir)
    assert [line.promoted for line in lines] == [True, True, False, True]
    assert [line.promotion.encoder for line in lines] == ["unknown", "vit_tiny", "vit_tiny", "vit_small"]
    assert lines[2].promotion.before == lines[1].promotion.after
    assert lines[3].promotion.before == lines[1].promotion.after, "round 3 is measured against the model that stayed"
    assert lines[3].model.parent == lines[1].model.digest
    assert world.quality(run_dir / "checkpoints" / "best.ckpt") == 5.0
    assert world.calls.count("measure") == 4


def test_training_starts_from_the_promoted_model_on_all_masks_so_far(undisturbed: tuple[Path, World]) -> None:
    run_dir, world = undisturbed
    assert [len(request.train[0].urls) for request in world.requests] == [1, 2, 3]
    assert [request.images_seen for request in world.requests] == [0, 10, 20]
    assert world.requests[0].init == run_dir / "pretrain/best.ckpt"
    assert world.requests[1].init == world.requests[2].init == run_dir / "rounds/1/fit/best.ckpt"
    assert all(Path(shard).is_file() for shard in world.requests[2].train[0].urls)


def test_the_ledger_agrees_with_the_shards(undisturbed: tuple[Path, World]) -> None:
    run_dir, _ = undisturbed
    lines = read_ledger(run_dir)
    for line in lines[1:]:
        (shard,) = line.shards
        assert shard.sha256 == digest(run_dir / shard.path)
        index = index_tar(run_dir / shard.path)
        annotations = [a for i in range(len(index)) for a in read_record(index, i).annotation["annotations"]]
        assert len(annotations) == shard.masks == line.annotated.masks
        assert line.annotated.masks_per_image == line.annotated.masks / 2
        work = sum(annotation["seconds"] for annotation in annotations)
        assert line.annotated.seconds_per_mask >= work / line.annotated.masks - 1e-9
    assert lines[-1].totals.masks == sum(line.annotated.masks for line in lines)


def test_shards_are_complete_records_with_their_origin_and_no_ground_truth(undisturbed: tuple[Path, World]) -> None:
    run_dir, _ = undisturbed
    ids = []
    for line in read_ledger(run_dir)[1:]:
        index = index_tar(run_dir / line.shards[0].path)
        for i in range(len(index)):
            record = read_record(index, i)
            image, _, truth = record_of(int(record.key.removeprefix("scene_")), num=3)
            assert record.image_bytes == image
            objects = [decode_rle(item["segmentation"]) for item in truth["annotations"]]
            for annotation in record.annotation["annotations"]:
                ids.append(annotation["id"])
                mask = decode_rle(annotation["segmentation"], (64, 80))
                assert annotation["area"] == mask.sum() and annotation["crop_box"] == [0, 0, 80, 64]
                assert annotation["source"] == "assisted" and annotation["model"] == line.model.parent
                assert annotation["clicks"] >= 1 and 0 <= annotation["stability_score"] <= 1
                assert not any((mask == item).all() for item in objects)
                best = max((mask & item).sum() / (mask | item).sum() for item in objects)
                assert best >= 0.5
    assert len(set(ids)) == len(ids)


def test_the_probe_is_a_fixed_set_that_is_never_trained_on(undisturbed: tuple[Path, World]) -> None:
    run_dir, world = undisturbed
    lines = read_ledger(run_dir)
    assert {line.probe.masks for line in lines} == {6}
    assert lines[2].probe == lines[1].probe, "the old model stayed"
    assert lines[3].probe.seconds_per_mask < lines[0].probe.seconds_per_mask
    keys = {json.loads(p.read_text())["result"]["key"] for p in run_dir.glob("rounds/*/probe/*.json")}
    drawn = {json.loads(p.read_text())["result"]["key"] for p in run_dir.glob("rounds/*/annotations/*.json")}
    assert len(keys) == 2 and len(drawn) == 6 and not keys & drawn


def run_with_kills(run_dir: Path, pool: list[str], die_at: int) -> int:
    """Runs again and again, each process killed at call `die_at`, until one finishes; returns how many were killed."""
    for killed in range(200):
        world = World(QUALITIES, die_at)
        try:
            engine(run_dir, pool, world).run()
            return killed
        except Killed:
            continue
    raise AssertionError("it never ended")


@pytest.mark.parametrize("die_at", [2, 3, 5])
def test_killed_again_and_again_it_ends_as_an_undisturbed_run(
    undisturbed: tuple[Path, World], tmp_path: Path, pool: list[str], die_at: int
) -> None:
    run_dir = tmp_path / "killed"
    assert run_with_kills(run_dir, pool, die_at) > 3
    assert reproducible(run_dir) == reproducible(undisturbed[0])
    assert identify(run_dir / "checkpoints/best.ckpt") == identify(undisturbed[0] / "checkpoints/best.ckpt")
    assert not list(run_dir.rglob("*.partial")) and not list(run_dir.rglob("*.tmp"))


PLACES = [
    (engine_module, "append_line"),
    (stage_images, "write_shards"),
    (engine_module.DataEngine, "_publish"),
    (engine_module, "identify"),
]


@pytest.mark.parametrize(("owner", "place"), PLACES)
@pytest.mark.parametrize("after", [False, True])
def test_killed_before_or_after_a_step_it_ends_as_an_undisturbed_run(
    undisturbed: tuple[Path, World],
    tmp_path: Path,
    pool: list[str],
    monkeypatch: pytest.MonkeyPatch,
    owner: Any,
    place: str,
    after: bool,
) -> None:
    real, left = getattr(owner, place), [3]

    def fragile(*arguments):
        left[0] -= 1
        result = real(*arguments) if after or left[0] != 0 else None
        if left[0] == 0:
            raise Killed(place)
        return result

    monkeypatch.setattr(owner, place, fragile)
    run_dir = tmp_path / "killed"
    with pytest.raises(Killed):
        engine(run_dir, pool, World(QUALITIES)).run()
    engine(run_dir, pool, World(QUALITIES)).run()
    assert reproducible(run_dir) == reproducible(undisturbed[0])


def test_a_finished_run_does_nothing_again(undisturbed: tuple[Path, World], pool: list[str]) -> None:
    run_dir, _ = undisturbed
    world = World(QUALITIES, die_at=1)
    assert engine(run_dir, pool, world).run() == run_dir / "checkpoints" / "best.ckpt"


def test_a_lost_copy_of_the_best_model_is_made_again(tmp_path: Path, pool: list[str]) -> None:
    world = World([2.0])
    configs = [round_config(model="vit_tiny", images=2, steps=5)]
    best = engine(tmp_path / "run", pool, world, rounds=configs, probe=None).run()
    best.unlink()
    engine(tmp_path / "run", pool, world, rounds=configs, probe=None).run()
    assert world.quality(best) == 2.0
    assert read_ledger(tmp_path / "run")[0].probe.masks == 0


def test_each_line_is_reported_as_it_is_written(tmp_path: Path, pool: list[str]) -> None:
    reported = []
    configs = [round_config(model="vit_tiny", images=2, steps=5)]
    engine(tmp_path / "run", pool, World([2.0]), rounds=configs, on_line=reported.append).run()
    assert reported == read_ledger(tmp_path / "run")


def test_a_model_that_diverged_is_not_promoted(tmp_path: Path, pool: list[str]) -> None:
    configs = [round_config(model="vit_tiny", images=2, steps=5)]
    world = World([2.0])
    world.load_predictor = lambda path: PretendPredictor(eroded(2))
    measured = world.measure
    world.measure = lambda path: dict.fromkeys(measured(path), float("nan")) if "rounds" in path.parts else measured(path)
    engine(tmp_path / "run", pool, world, rounds=configs).run()
    line = read_ledger(tmp_path / "run")[1]
    assert not line.promoted and line.promotion.after["val/miou_1"] is None


def test_wrong_settings_are_refused(tmp_path: Path, pool: list[str]) -> None:
    with pytest.raises(ValueError, match="rounds is empty"):
        engine(tmp_path / "a", pool, World(QUALITIES), rounds=[])
    with pytest.raises(ValueError, match="engine.promote_metric is 'val/best', but validation measures val/miou_1, val/miou_3"):
        engine(tmp_path / "b", pool, World(QUALITIES), promote_metric="val/best").run()
    blind = SimulatedAnnotator(min_iou=0.89, max_clicks=1, time_limit=1.0)
    world = World(QUALITIES)
    world.load_predictor = lambda path: PretendPredictor(lambda whole, clicks: np.zeros_like(whole))
    with pytest.raises(ValueError, match="no mask was kept in 2 images"):
        engine(tmp_path / "c", pool, world, annotator=blind).run()


def test_images_that_cannot_be_read_are_left_out_where_asked(tmp_path: Path) -> None:
    """Four of eight images cannot be decoded: they are refused by name, or logged and counted."""
    with ShardWriter(tmp_path, "pool") as writer:
        for n in range(8):
            image, ext, annotation = record_of(n, num=3)
            writer.write(f"scene_{n:03d}", b"no image" if n % 2 else image, ext, annotation)
    pool = [str(tmp_path / "pool_000000.tar")]
    configs = [round_config(model="vit_tiny", images=8, steps=5)]
    with pytest.raises(ValueError, match=r"pool_000000.tar, record scene_00[1357]"):
        engine(tmp_path / "a", pool, World(QUALITIES), rounds=configs, probe=None).run()
    engine(tmp_path / "b", pool, World(QUALITIES), rounds=configs, probe=None, on_error="skip").run()
    line = read_ledger(tmp_path / "b")[1]
    assert (line.annotated.images, line.annotated.images_skipped) == (4, 4)
    assert (line.totals.images, line.shards[0].images) == (4, 4)
    assert line.annotated.masks_per_image == line.annotated.masks / 4


def test_another_pool_under_an_old_run_is_refused(tmp_path: Path, pool: list[str]) -> None:
    with pytest.raises(Killed):
        engine(tmp_path / "run", pool, World(QUALITIES, die_at=6)).run()
    other = write_pool(tmp_path / "other", 9, num=3)
    with pytest.raises(ValueError, match="the pool has changed since this run began"):
        engine(tmp_path / "run", other, World(QUALITIES)).run()
