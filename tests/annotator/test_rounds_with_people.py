"""Rounds of the data engine with people, who are threads that write to the store; trainings are pretended."""

from __future__ import annotations

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pretend_engine import Killed, World, round_config
from pretend_predictor import record_of, write_pool

from samtrain.annotator.open_round import close_now
from samtrain.annotator.rounds import WebAnnotator
from samtrain.annotator.store import Conflict, NewMask, Store, open_store
from samtrain.data.shards import index_tar, read_record
from samtrain.data_engine.engine import DataEngine
from samtrain.data_engine.ledger import read_ledger
from samtrain.data_engine.prefill import PrefillConfig
from samtrain.data_engine.stages import Stage
from samtrain.report import write_report

OBJECTS = 4
CONFIDENT = PrefillConfig(pred_iou_thresh=0.7, stability_score_thresh=0.9)


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_pool(tmp_path_factory.mktemp("pool"), 12, num=OBJECTS)


class Person(threading.Thread):
    """Draws the objects of each image that the store hands out, as a page would; stops after `masks` masks.

    rejects: of the locked masks of an image, the first is rejected
    """

    def __init__(self, store: Store, name: str, masks: int = 10**9, rejects: bool = False) -> None:
        super().__init__(daemon=True)
        self.store, self.name_, self.left, self.rejects = store, name, masks, rejects
        self.stop = threading.Event()
        self.accepted: list[int] = []
        self.start()

    def run(self) -> None:
        while not self.stop.wait(0.005):
            lease = self.store.lease_next(self.name_, 30.0)
            try:
                if lease is not None and self._draw(lease.image_id, lease.token):
                    self.store.finish(lease.image_id, self.name_, lease.token)
            except Conflict as error:
                assert error.reason in ("closed", "expired"), error

    def _draw(self, image_id: int, token: str) -> bool:
        image = self.store.image(image_id)
        objects = [each["segmentation"] for each in record_of(int(image.name[-3:]), OBJECTS)[2]["annotations"]]
        locked = [each for each in self.store.masks(image_id) if each.locked]
        if self.rejects and locked:
            self.store.reject(locked[0].id, self.name_, token)
        missing = objects[-1:] if locked else objects
        drawn = sum(not each.locked for each in self.store.masks(image_id))
        for number, segmentation in enumerate(missing[drawn:], drawn):
            if not self.left:
                return False
            mask = NewMask(
                segmentation=segmentation,
                point_coords=[[3.0, 4.0], [5.0, 6.0]],
                point_labels=[1, 0],
                seconds=2.0 + number,
                predicted_iou=0.9,
                stability_score=0.8,
                request=f"{self.name_} {number}",
            )
            self.accepted.append(self.store.accept(image_id, self.name_, mask, token).id)
            self.left -= 1
        return True


def engine(run_dir: Path, pool: list[str], world: World, annotator: Any, rounds: int = 2, **changes: Any) -> DataEngine:
    first = world.save(run_dir / "pretrain" / "best.ckpt", 1.0)
    configs = [round_config(images=3)] * rounds
    stage = Stage(name="assisted_manual", rounds=configs, pool=pool, annotator=annotator)
    return DataEngine(run_dir=run_dir, stages=[replace(stage, **changes)], tools=world, initial=first)


def web(run_dir: Path, **settings: Any) -> WebAnnotator:
    run_dir.mkdir(exist_ok=True)
    return WebAnnotator(run_dir=str(run_dir), poll=0.01, **settings)


def masks_of_shards(run_dir: Path) -> dict[str, list[dict[str, Any]]]:
    indices = [index_tar(run_dir / shard.path) for line in read_ledger(run_dir) for shard in line.shards]
    records = [read_record(index, i) for index in indices for i in range(len(index))]
    return {record.key: record.annotation["annotations"] for record in records}


def accepted(store: Store) -> dict[str, list[Any]]:
    """Returns the masks of each image by its name; an image that a round has left untouched is there a second time."""
    masks = [(image.name, store.masks(image.id)) for image in store.images()]
    return {name: [row.segmentation for row in own] for name, own in masks if own}


def test_two_people_annotate_two_rounds_and_the_shards_hold_what_they_accepted(tmp_path: Path, pool: list[str]) -> None:
    run_dir, world = tmp_path / "run", World([3.0, 5.0])
    annotator = web(run_dir)
    people = [Person(annotator.store, name) for name in ("Ada", "Bo")]
    engine(run_dir, pool, world, annotator).run()
    for person in people:
        person.stop.set()
        person.join()

    found = masks_of_shards(run_dir)
    assert {key: [each["segmentation"] for each in own] for key, own in found.items()} == accepted(annotator.store)
    masks = [each for own in found.values() for each in own]
    assert len(masks) == 6 * OBJECTS == sum(len(person.accepted) for person in people)
    assert len({each["id"] for each in masks}) == len(masks)
    assert {each["annotator"] for each in masks} <= {"Ada", "Bo"}
    assert all(each["source"] == "assisted" and each["origin"] == "clicked" for each in masks)
    assert masks[0]["point_labels"] == [1, 0] and masks[0]["predicted_iou"] == 0.9 and masks[0]["clicks"] == 2

    # the ledger has measured seconds and clicks, in all and for each person; there is no probe
    lines = read_ledger(run_dir)
    for line in lines[1:]:
        assert line.annotated.images == 3 and line.annotated.masks == 3 * OBJECTS
        assert line.annotated.seconds_per_mask == pytest.approx(2 + (OBJECTS - 1) / 2)
        assert line.annotated.clicks_per_mask == 2.0
        people_of_round = line.annotated.people
        assert people_of_round is not None and people_of_round.rejected_share is None
        assert sum(each.masks for each in people_of_round.by_name.values()) == 3 * OBJECTS
        assert line.probe.seconds_per_mask is None
    assert lines[1].to_flat()["people"]["by_name"].keys() <= {"Ada", "Bo"}


def test_a_round_closes_at_its_goal_and_what_nobody_began_comes_later(tmp_path: Path, pool: list[str]) -> None:
    run_dir, world = tmp_path / "run", World([3.0, 5.0])
    annotator = web(run_dir, masks=OBJECTS + 1)
    person = Person(annotator.store, "Ada")
    engine(run_dir, pool, world, annotator).run()
    person.stop.set()
    person.join()
    first, second = (line.annotated for line in read_ledger(run_dir)[1:])
    assert first.masks >= OBJECTS + 1 and first.people is not None
    assert first.images + first.people.images_untouched == 3
    assert {key: len(own) for key, own in masks_of_shards(run_dir).items()} == {
        key: len(own) for key, own in accepted(annotator.store).items()
    }
    # the images that were left are the first of the next round
    untouched = [row.name for row in annotator.store.images(round=1) if not row.masks]
    assert [row.name for row in annotator.store.images(round=2)][: len(untouched)] == untouched
    assert second.images > 0


def test_a_round_that_is_closed_by_hand_keeps_the_masks_of_unfinished_images(tmp_path: Path, pool: list[str]) -> None:
    run_dir, world = tmp_path / "run", World([3.0])
    annotator = web(run_dir)
    with pytest.raises(ValueError, match="no round is open"):
        close_now(annotator.store)
    person = Person(annotator.store, "Ada", masks=2)

    def close() -> None:
        person.join(timeout=0.01)
        while len(person.accepted) < 2:
            person.join(timeout=0.01)
        close_now(annotator.store)

    closer = threading.Thread(target=close)
    closer.start()
    engine(run_dir, pool, world, annotator, rounds=1).run()
    closer.join()
    person.stop.set()
    annotated = read_ledger(run_dir)[1].annotated
    assert annotated.masks == 2 and annotated.people is not None and annotated.people.images_unfinished == 1
    assert annotated.people.images_untouched == 2


@pytest.mark.parametrize("die_at", range(1, 6))
def test_a_killed_engine_resumes_with_what_was_accepted(tmp_path: Path, pool: list[str], die_at: int) -> None:
    run_dir = tmp_path / "run"
    annotator = web(run_dir)
    person = Person(annotator.store, "Ada")
    with pytest.raises(Killed):
        engine(run_dir, pool, World([3.0, 5.0], die_at=die_at), annotator).run()
    engine(run_dir, pool, World([3.0, 5.0]), web(run_dir)).run()
    person.stop.set()
    person.join()
    found = masks_of_shards(run_dir)
    assert {key: [each["segmentation"] for each in own] for key, own in found.items()} == accepted(annotator.store)
    assert sum(map(len, found.values())) == 6 * OBJECTS == len(person.accepted)


def test_a_round_interrupted_while_people_work_continues(tmp_path: Path, pool: list[str], monkeypatch: Any) -> None:
    """The engine dies while it waits: the store keeps what was accepted, and the next process waits for the rest."""
    run_dir = tmp_path / "run"
    store = open_store(str(tmp_path / "annotations.db"))
    slow = Person(store, "Ada", masks=3)

    def die(_: float) -> None:
        while slow.left:
            slow.join(timeout=0.01)
        raise Killed("while waiting")

    monkeypatch.setattr("samtrain.annotator.open_round.time.sleep", die)
    url = {"store": str(tmp_path / "annotations.db")}
    with pytest.raises(Killed):
        engine(run_dir, pool, World([3.0]), web(run_dir, annotate=url), rounds=1).run()
    monkeypatch.undo()
    slow.stop.set()
    slow.join()
    people = Person(store, "Ada")
    engine(run_dir, pool, World([3.0]), web(run_dir, annotate=url), rounds=1).run()
    people.stop.set()
    people.join()
    found = masks_of_shards(run_dir)
    assert {key: [each["segmentation"] for each in own] for key, own in found.items()} == accepted(store)
    assert sum(map(len, found.values())) == 3 * OBJECTS == 3 + len(people.accepted)


def test_prefilled_masks_are_locked_and_rejected_ones_are_counted_and_in_no_shard(tmp_path: Path, pool: list[str]) -> None:
    run_dir, world = tmp_path / "run", World([3.0, 4.0, 5.0], finds="some")
    annotator = web(run_dir)
    person = Person(annotator.store, "Ada", rejects=True)
    configs = [round_config(stage="semi_automatic", images=3, detector_steps=2)]
    first = world.save(run_dir / "pretrain" / "best.ckpt", 1.0)
    stages = [
        Stage(name="assisted_manual", rounds=[round_config(images=2)], pool=pool, annotator=annotator),
        Stage(name="semi_automatic", rounds=configs, pool=pool, annotator=annotator, prefill=CONFIDENT),
    ]
    DataEngine(run_dir=run_dir, stages=stages, tools=world, initial=first).run()
    person.stop.set()
    person.join()

    annotated = read_ledger(run_dir)[2].annotated
    people = annotated.people
    assert people is not None and people.prefilled > 0 and people.rejected == 3
    assert people.rejected_share == people.rejected / people.prefilled
    assert annotated.masks_automatic == people.prefilled - people.rejected
    found = masks_of_shards(run_dir)
    assert {key: [each["segmentation"] for each in own] for key, own in found.items()} == {
        key: own for key, own in accepted(annotator.store).items()
    }
    automatic = [each for own in found.values() for each in own if each["source"] == "automatic"]
    assert len(automatic) == annotated.masks_automatic and all(each["detector_score"] >= 0.5 for each in automatic)
    # seconds are those of drawn masks alone
    masks = [each for own in found.values() for each in own if each["id"] > 2 * 10**13]
    drawn = [each["seconds"] for each in masks if each["source"] == "assisted"]
    assert annotated.seconds_per_mask == pytest.approx(sum(drawn) / len(drawn))


def test_without_validation_the_newest_model_is_promoted_and_everybody_says_so(
    tmp_path: Path, pool: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    class Unmeasured(World):
        def measure(self, path: Path) -> dict[str, float]:
            return {}

    run_dir = tmp_path / "run"
    annotator = web(run_dir)
    person = Person(annotator.store, "Ada")
    with caplog.at_level("INFO"):
        engine(run_dir, pool, Unmeasured([3.0, 2.0]), annotator).run()
    person.stop.set()
    person.join()
    assert [line.promoted for line in read_ledger(run_dir)] == [True, True, True]
    assert "no measurement, because no image is held back for validation" in caplog.text
    assert "Nothing was measured" in write_report(run_dir).read_text()
