"""Semi-automatic rounds with pretended training: what is prefilled, what is drawn, and that a kill changes nothing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from pretend_engine import CountedAnnotator, Killed, World, reproducible, round_config
from pretend_predictor import record_of, write_pool

from samtrain.data.shards import index_tar, read_record
from samtrain.data_engine import engine as engine_module
from samtrain.data_engine import stage_images
from samtrain.data_engine.engine import DataEngine
from samtrain.data_engine.engine_files import identify
from samtrain.data_engine.ledger import read_ledger, take_over
from samtrain.data_engine.prefill import PrefillConfig
from samtrain.data_engine.stages import Probe, Stage
from samtrain.ops.rle import decode_rle

QUALITIES = [3.0, 4.0, 5.0, 4.5]  # of the models of rounds 1 to 4: the last is worse
OBJECTS = 4  # of a scene
CONFIDENT = PrefillConfig(pred_iou_thresh=0.7, stability_score_thresh=0.9)  # the pretended predictor says 0.8 and 1


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[str]]:
    """Images for stage 1 and, with other names, for stage 2."""
    folder = tmp_path_factory.mktemp("pools")
    second = write_pool(folder / "second", 40, num=OBJECTS, first=20)
    return write_pool(folder / "first", 12, num=OBJECTS), second


def stage_1(world: World, pool: list[str]) -> Stage:
    return Stage(
        name="assisted_manual",
        rounds=[round_config(model="vit_tiny", images=2, steps=5)] * 2,
        pool=pool,
        annotator=CountedAnnotator(world, max_clicks=3, seed=7),
        probe=Probe(annotator=CountedAnnotator(world, max_clicks=3, leaves_image=False, seed=7), images=2),
    )


def stage_2(world: World, pool: list[str], images: int = 3) -> Stage:
    rounds = [round_config(stage="semi_automatic", model="vit_small", images=images, detector_steps=9)] * 2
    return replace(stage_1(world, pool), name="semi_automatic", rounds=rounds, pool=pool, prefill=CONFIDENT)


def engine(run_dir: Path, stages: list[Stage], world: World, quality: float = 1.0, **settings: Any) -> DataEngine:
    first = world.save(run_dir / "pretrain" / "best.ckpt", quality)
    return DataEngine(run_dir=run_dir, stages=stages, tools=world, initial=first, **settings)


def run(run_dir: Path, pools: tuple[list[str], list[str]], world: World) -> Path:
    engine(run_dir, [stage_1(world, pools[0]), stage_2(world, pools[1])], world).run()
    return run_dir


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory, pools: tuple[list[str], list[str]]) -> tuple[Path, World]:
    world = World(QUALITIES)
    return run(tmp_path_factory.mktemp("runs") / "both", pools, world), world


def annotations(run_dir: Path, number: int) -> dict[str, list[dict[str, Any]]]:
    """The annotations in the shards of a round, by image."""
    indices = [index_tar(run_dir / shard.path) for shard in read_ledger(run_dir)[number].shards]
    records = [read_record(index, i) for index in indices for i in range(len(index))]
    return {record.key: record.annotation["annotations"] for record in records}


def test_both_stages_share_one_ledger(both: tuple[Path, World]) -> None:
    run_dir, world = both
    lines = read_ledger(run_dir)
    assert [line.stage for line in lines] == ["assisted_manual"] * 3 + ["semi_automatic"] * 2
    assert [line.promoted for line in lines] == [True, True, True, True, False]
    assert [line.totals.masks for line in lines] == np.cumsum([line.annotated.masks for line in lines]).tolist()
    assert [len(request.train[0].urls) for request in world.requests] == [1, 2, 3, 4]
    assert [line.detector is None for line in lines] == [True] * 3 + [False] * 2


def test_the_detector_is_trained_again_in_each_round_on_the_first_stages_masks(both: tuple[Path, World]) -> None:
    run_dir, world = both
    first_stage = [str(run_dir / shard.path) for line in read_ledger(run_dir)[1:3] for shard in line.shards]
    assert [request.shards for request in world.detector_requests] == [first_stage, first_stage]
    assert [request.steps for request in world.detector_requests] == [9, 9]
    assert [request.init for request in world.detector_requests] == [None, run_dir / "rounds/3/detector/detector.pth"]


def test_the_detector_learns_from_all_rounds_on_request(tmp_path: Path, pools: tuple[list[str], list[str]]) -> None:
    world = World(QUALITIES)
    stages = [stage_1(world, pools[0]), stage_2(world, pools[1])]
    engine(tmp_path, stages, world, detector_train_on="all").run()
    assert [len(request.shards) for request in world.detector_requests] == [2, 3]


@pytest.mark.parametrize("number", [3, 4])
def test_every_mask_says_where_it_came_from(both: tuple[Path, World], number: int) -> None:
    run_dir, _ = both
    line, held = read_ledger(run_dir)[number], annotations(run_dir, number)
    assert len(held) == 3
    for key, masks in held.items():
        objects = [decode_rle(each["segmentation"]) for each in record_of(int(key.split("_")[1]), OBJECTS)[2]["annotations"]]
        automatic = [each for each in masks if each["source"] == "automatic"]
        assisted = [each for each in masks if each["source"] == "assisted"]
        # the detector misses one object, which is drawn; nothing is drawn twice
        assert (len(automatic), len(assisted)) == (OBJECTS - 1, 1)
        shown = [max(range(OBJECTS), key=lambda i: iou(decode_rle(each["segmentation"]), objects[i])) for each in masks]
        assert sorted(shown) == list(range(OBJECTS))
        for each in automatic:
            assert each["detector"] == line.detector.digest and each["seconds"] == 0 and each["point_coords"] == []
            x0, y0, x1, y1 = each["box_xyxy"]
            rows, columns = np.nonzero(objects[shown[masks.index(each)]])
            assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max(), rows.max()), "edges on the last pixels"
            assert 0.6 <= each["detector_score"] <= 1 and each["predicted_iou"] == pytest.approx(0.8)
        assert all(each["model"] == line.model.parent for each in masks)
        assert all(each["seconds"] > 0 and each["clicks"] > 0 and "detector" not in each for each in assisted)
        assert len({each["id"] for each in masks}) == len(masks)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return (a & b).sum() / (a | b).sum()


def test_the_ledger_counts_both_kinds(both: tuple[Path, World]) -> None:
    run_dir, _ = both
    for number in (3, 4):
        annotated, held = read_ledger(run_dir)[number].annotated, annotations(run_dir, number)
        automatic = [each for masks in held.values() for each in masks if each["source"] == "automatic"]
        assisted = [each for masks in held.values() for each in masks if each["source"] == "assisted"]
        assert (annotated.masks_automatic, annotated.masks) == (len(automatic), len(automatic) + len(assisted))
        assert annotated.masks_per_image == OBJECTS and annotated.assisted_per_image == 1
        assert annotated.seconds_per_mask == pytest.approx(sum(each["seconds"] for each in assisted) / len(assisted))
    first = read_ledger(run_dir)[1].annotated
    assert first.automatic_precision is None and first.masks_automatic == 0
    assert first.assisted_per_image == first.masks_per_image


def test_a_stage_opens_with_what_the_model_before_it_does_on_its_own_probe(both: tuple[Path, World]) -> None:
    run_dir, _ = both
    lines = read_ledger(run_dir)
    assert not any(line.probe_before for line in lines if line.round != 3)
    opening = lines[3].probe_before
    assert opening.masks == 2 * OBJECTS and opening.coverage == opening.coverage_alone
    assert lines[3].probe.seconds_per_mask < opening.seconds_per_mask, "the model of round 3 is better"
    assert lines[4].probe.seconds_per_mask == lines[3].probe.seconds_per_mask, "the old model stayed"
    first = {json.loads(path.read_text())["result"]["key"] for path in run_dir.glob("rounds/[0-2]/probe/*.json")}
    second = {json.loads(path.read_text())["result"]["key"] for path in run_dir.glob("rounds/[34]/probe*/*.json")}
    assert len(first) == len(second) == 2 and not first & second


def test_continuing_an_earlier_run_equals_one_run(
    both: tuple[Path, World], tmp_path: Path, pools: tuple[list[str], list[str]]
) -> None:
    world = World(QUALITIES)
    engine(tmp_path / "one", [stage_1(world, pools[0])], world).run()
    for _ in range(2):  # again changes nothing
        take_over(tmp_path / "two", tmp_path / "one")
    assert len(read_ledger(tmp_path / "two")) == 3
    engine(tmp_path / "two", [stage_2(world, pools[1])], world, first_round=3).run()
    apart, whole = reproducible(tmp_path / "two"), reproducible(both[0])
    assert apart[3:] == whole[3:]
    assert (tmp_path / "two" / apart[2]["checkpoint"]).is_file()
    assert identify(tmp_path / "two/checkpoints/best.ckpt") == identify(both[0] / "checkpoints/best.ckpt")


def test_an_earlier_run_that_cannot_be_continued_is_refused(tmp_path: Path, pools: tuple[list[str], list[str]]) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty has no finished round \(stage1_run\)"):
        take_over(tmp_path / "new", tmp_path / "empty")
    world = World(QUALITIES)
    engine(tmp_path / "one", [stage_1(world, pools[0])], world).run()
    shard = tmp_path / "one" / read_ledger(tmp_path / "one")[1].shards[0].path
    shard.unlink()
    for _ in range(2):  # each time it is begun
        with pytest.raises(ValueError, match=rf"{shard} is missing, .*restore the file to that place"):
            take_over(tmp_path / "new", tmp_path / "one")


def test_a_pool_that_stage_1_used_up_is_annotated_again(tmp_path: Path, pools: tuple[list[str], list[str]]) -> None:
    """Existing masks stay as they are, missing ones are added, and the probe is that of stage 1."""
    world = World(QUALITIES)
    first = stage_1(world, pools[0])
    # so little time that each image is left after the first mask
    hasty = CountedAnnotator(world, max_clicks=3, seed=7, time_limit=1.0)
    first = replace(first, annotator=hasty, rounds=[replace(first.rounds[0], images=5)] * 2)
    run_dir = tmp_path / "run"
    engine(run_dir, [first, stage_2(world, pools[0], images=5)], world, quality=5.0).run()
    before, after = {}, {}
    for number in (1, 2):
        before |= annotations(run_dir, number)
    for number in (3, 4):
        after |= annotations(run_dir, number)
    assert len(before) == 10 and before.keys() == after.keys()
    for key, masks in after.items():
        assert masks[: len(before[key])] == before[key] and len(before[key]) == 1
        assert len(masks) == OBJECTS, "nothing has two masks"
    lines = read_ledger(run_dir)
    annotated = lines[3].annotated
    assert annotated.masks == 5 * (OBJECTS - 1) and annotated.masks_per_image == OBJECTS
    assert lines[-1].totals.masks == 10 * OBJECTS and lines[-1].totals.images == 10
    # what stage 1 drew counts among the masks that are there and are not automatic
    automatic = [sum(each["source"] == "automatic" for each in masks) for masks in annotations(run_dir, 3).values()]
    assert annotated.assisted_per_image == OBJECTS - sum(automatic) / 5 and sum(automatic) == annotated.masks_automatic > 0
    probes = [{json.loads(p.read_text())["result"]["key"] for p in run_dir.glob(f"rounds/{n}/probe*/*.json")} for n in (0, 3)]
    assert probes[0] == probes[1] and not probes[0] & before.keys()


@pytest.mark.parametrize("finds", ["nothing", "all", "everything"])
def test_detectors_of_every_kind(tmp_path: Path, pools: tuple[list[str], list[str]], finds: str) -> None:
    world, run_dir = World(QUALITIES, finds=finds), tmp_path / "run"
    engine(run_dir, [stage_1(world, pools[0]), stage_2(world, pools[1])], world, quality=6.0).run()
    line, held = read_ledger(run_dir)[3], annotations(run_dir, 3)
    annotated = line.annotated
    if finds == "nothing":
        assert annotated.masks_automatic == 0 and annotated.automatic_precision is None
        assert annotated.assisted_per_image == OBJECTS
    if finds == "all":
        # no object is left in any image: nothing to draw, and nobody's time to speak of
        assert annotated.masks_automatic == annotated.masks == 3 * OBJECTS and annotated.automatic_precision == 1
        assert annotated.assisted_per_image == 0 and annotated.seconds_per_mask is None and annotated.images_left == 0
    if finds == "everything":
        # a box on the ground gives the ground, once an image; the objects are there once each
        assert all(len(masks) == OBJECTS + 1 for masks in held.values())
        assert annotated.automatic_precision == pytest.approx(OBJECTS / (OBJECTS + 1))
    assert annotated.coverage["all"] == line.probe.coverage["all"] == 1


def test_prefilled_masks_are_kept_if_the_annotator_leaves(
    tmp_path: Path, pools: tuple[list[str], list[str]]
) -> None:
    """An annotator who leaves each image after one mask covers one object, and with prefilling all that are found."""
    world, run_dir = World(QUALITIES), tmp_path / "run"
    second = stage_2(world, pools[1])
    second = replace(second, annotator=CountedAnnotator(world, max_clicks=3, seed=7, time_limit=1.0))
    patient = CountedAnnotator(world, max_clicks=3, leaves_image=False, seed=7, time_limit=1.0)
    second = replace(second, probe=Probe(annotator=patient, images=2))
    engine(run_dir, [stage_1(world, pools[0]), second], world, quality=6.0).run()
    line = read_ledger(run_dir)[3]
    assert line.probe_before.coverage["all"] == line.probe.coverage_alone["all"] == 1 / OBJECTS
    assert line.probe.coverage["all"] == line.annotated.coverage["all"] == 1


PLACES = [(stage_images, "collected_masks"), (engine_module, "digest"), (engine_module, "summarise_coverage")]


@pytest.mark.parametrize(("module", "place"), PLACES)
def test_killed_inside_a_round_it_ends_as_an_undisturbed_run(
    both: tuple[Path, World],
    tmp_path: Path,
    pools: tuple[list[str], list[str]],
    monkeypatch: pytest.MonkeyPatch,
    module: ModuleType,
    place: str,
) -> None:
    """After the detector, between drawing and shards, and after the last step of a round."""
    real, left = getattr(module, place), [2]

    def fragile(*arguments: Any) -> Any:
        left[0] -= 1
        if left[0] == 0:
            raise Killed(place)
        return real(*arguments)

    monkeypatch.setattr(module, place, fragile)
    with pytest.raises(Killed):
        run(tmp_path / "killed", pools, World(QUALITIES))
    run(tmp_path / "killed", pools, World(QUALITIES))
    assert reproducible(tmp_path / "killed") == reproducible(both[0])


def test_killed_again_and_again_it_ends_as_an_undisturbed_run(
    both: tuple[Path, World], tmp_path: Path, pools: tuple[list[str], list[str]]
) -> None:
    for die_at in (2, 3, 4, 7):
        run_dir, killed = tmp_path / f"killed_{die_at}", 0
        while killed < 200:
            try:
                run(run_dir, pools, World(QUALITIES, die_at))
                break
            except Killed:
                killed += 1
        assert killed > 3
        assert reproducible(run_dir) == reproducible(both[0])
        for path in sorted(both[0].rglob("*.tar")):
            assert (run_dir / path.relative_to(both[0])).read_bytes() == path.read_bytes()
        assert not list(run_dir.rglob("*.partial")) and not list(run_dir.rglob("*.tmp"))
