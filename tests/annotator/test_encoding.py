"""The encoder: what comes first, what is never done twice, what happens to a new model, and how failures are told."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("sqlalchemy", reason="needs the extra annotate")

from serving import Client, model_of, pixels_of, serving, write_checkpoint, write_images  # noqa: E402

from samtrain.annotator import (
    encoding,  # noqa: E402
    prompting,  # noqa: E402
)
from samtrain.annotator.encoding import AHEAD, CLICKED, OPENED, Encoder  # noqa: E402
from samtrain.annotator.errors import Refused  # noqa: E402
from samtrain.annotator.prompting import Question, answer  # noqa: E402
from samtrain.annotator.store import ImageRow, Model, open_store  # noqa: E402
from samtrain.annotator.tiles import Images  # noqa: E402
from samtrain.inference.embeddings import EmbeddingStore  # noqa: E402
from samtrain.inference.predictor import SamPredictor  # noqa: E402
from samtrain.modeling.build import load_sam  # noqa: E402
from samtrain.ops.rle import decode_rle, encode_mask, rle_to_box_xywh  # noqa: E402

WAIT = 60


@pytest.fixture
def events() -> list[tuple[str, dict[str, Any]]]:
    return []


@pytest.fixture
def encoder(tmp_path: Path, events: list[tuple[str, dict[str, Any]]]) -> Iterator[Encoder]:
    store = EmbeddingStore(tmp_path / "embeddings", round_to_half=False)
    encoder = Encoder(Images(10**8), store, torch.device("cpu"), lambda kind, content: events.append((kind, content)))
    yield encoder
    encoder.stop()


def rows(folder: Path, count: int, size: tuple[int, int] = (48, 64)) -> list[ImageRow]:
    with open_store(f"sqlite:///{folder / 'a.db'}") as store:
        return store.add_images(write_images(folder / "images", count, size))


def wait_for(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < end, "nothing happened"
        time.sleep(0.01)


def use(encoder: Encoder, checkpoint: Path) -> None:
    model = model_of(checkpoint)
    encoder.use(model, None)
    wait_for(lambda: encoder.model is not None and encoder.model.about == model)


def test_what_is_looked_at_comes_first(tmp_path: Path, encoder: Encoder, events: list[tuple[str, dict[str, Any]]]) -> None:
    images = rows(tmp_path, 5)
    # without a model everything waits, and nothing fails
    jobs = [encoder.request(image, AHEAD) for image in images[:3]]
    jobs += [encoder.request(images[3], OPENED), encoder.request(images[4], CLICKED), encoder.request(images[2], CLICKED)]
    assert jobs[5] is jobs[2] and len(encoder) == 5 and encoder.position(jobs[0]) == 4
    use(encoder, write_checkpoint(tmp_path / "sam.safetensors"))
    for job in jobs:
        job.future.result(WAIT)
    done = [content["image"] for kind, content in events if kind == "encoding" and content["state"] == "done"]
    assert done == [images[i].id for i in (4, 2, 3, 0, 1)]
    states = [content["state"] for kind, content in events if content.get("image") == images[0].id]
    assert states == ["queued", "running", "done"]
    assert encoder.counts["encoded"] == 5 and encoder.encoded() == {image.id for image in images}


def test_a_second_visit_never_encodes(tmp_path: Path, encoder: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoding, "KEPT", 2)
    use(encoder, write_checkpoint(tmp_path / "sam.safetensors"))
    images = rows(tmp_path, 4)
    for image in images * 2:
        encoder.request(image, OPENED).future.result(WAIT)
    assert encoder.counts["encoded"] == 4 and encoder.counts["found"] == 4
    assert encoder.prepared(images[0].id) is None and encoder.prepared(images[3].id) is not None
    # another process finds them as well, by image and weights
    second = Encoder(Images(10**8), encoder.store, torch.device("cpu"), lambda *_: None)
    use(second, write_checkpoint(tmp_path / "copy.safetensors"))
    second.request(images[0], OPENED).future.result(WAIT)
    assert (second.counts["encoded"], second.counts["found"]) == (0, 1)
    second.stop()


def test_the_stored_embedding_gives_the_predictors_own_masks(tmp_path: Path, encoder: Encoder) -> None:
    path = write_checkpoint(tmp_path / "sam.safetensors")
    use(encoder, path)
    (image,) = rows(tmp_path, 1)
    encoder.request(image, OPENED).future.result(WAIT)
    predictor = SamPredictor(load_sam(path))
    predictor.set_image(pixels_of(0))
    again = encoder.prepared(image.id)
    assert again is not None and torch.equal(again.predictor.get_image_embedding(), predictor.get_image_embedding())


def test_a_new_model_takes_over_with_the_images_in_use(
    tmp_path: Path, encoder: Encoder, events: list[tuple[str, dict[str, Any]]]
) -> None:
    old, new = write_checkpoint(tmp_path / "old.safetensors"), write_checkpoint(tmp_path / "new.safetensors", seed=1)
    use(encoder, old)
    image, other = rows(tmp_path, 2)
    before = encoder.request(image, OPENED).future.result(WAIT)
    use(encoder, new)
    after = encoder.prepared(image.id)
    assert after is not None and after.model is not before.model  # nobody waits after the swap
    assert encoder.encoded() == {image.id} and encoder.counts["encoded"] == 2
    question = Question(points=((5.0, 5.0),), labels=(1,))
    assert answer(before.predictor, question) != answer(after.predictor, question)
    assert encoder.request(other, OPENED).future.result(WAIT).model is after.model
    assert [content["name"] for kind, content in events if kind == "model"] == ["old.safetensors", "new.safetensors"]


def test_a_model_that_cannot_be_loaded_is_told_and_the_old_one_stays(
    tmp_path: Path, encoder: Encoder, events: list[tuple[str, dict[str, Any]]]
) -> None:
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"no model")
    (image,) = rows(tmp_path, 1)
    job = encoder.request(image, CLICKED)
    encoder.use(model_of(broken), None)
    with pytest.raises(Refused, match="broken.safetensors cannot be loaded"):
        job.future.result(WAIT)
    with pytest.raises(Refused, match="broken.safetensors cannot be loaded"):  # and whoever asks later
        encoder.request(image, CLICKED).future.result(WAIT)
    use(encoder, write_checkpoint(tmp_path / "sam.safetensors"))
    encoder.request(image, CLICKED).future.result(WAIT)
    encoder.use(model_of(broken), None)
    wait_for(lambda: [content for kind, content in events if kind == "model"][-1].get("error"))
    assert encoder.request(image, CLICKED).future.result(WAIT).model is encoder.model


def test_a_failure_is_told_with_its_cause_and_tried_again(
    tmp_path: Path, encoder: Encoder, events: list[tuple[str, dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    use(encoder, write_checkpoint(tmp_path / "sam.safetensors"))
    (image,) = rows(tmp_path, 1)
    data = (tmp_path / "images" / "image_0.png").read_bytes()
    (tmp_path / "images" / "image_0.png").write_bytes(data[:100])
    with pytest.raises(Refused, match="image_0.png: its image cannot be read"):
        encoder.request(image, CLICKED).future.result(WAIT)
    kind, content = events[-1]
    assert (kind, content["state"]) == ("encoding", "failed") and "cannot be read" in content["error"]
    (tmp_path / "images" / "image_0.png").write_bytes(data)
    encoder.request(image, CLICKED).future.result(WAIT)
    # an error of ours is told without its text
    def fail(*_: Any) -> None:
        raise KeyError("secret")

    monkeypatch.setattr(encoder.store, "set_image", fail)
    encoder._prepared.clear()
    with pytest.raises(Refused, match=r"could not be encoded \(KeyError\)") as error:
        encoder.request(image, CLICKED).future.result(WAIT)
    assert "secret" not in error.value.sentence


def test_a_large_native_image_is_encoded_tile_by_tile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its candidates equal those of the predictor that has encoded everything, and a tile is encoded once."""
    monkeypatch.setattr(encoding, "TILES_AHEAD", 3)
    path = write_checkpoint(tmp_path / "native.safetensors", frame="native")
    with serving(tmp_path, images=0, checkpoint=path) as (server, _):
        size = (150, 130)
        (image,) = server.store.add_images(write_images(tmp_path / "large", 1, size))
        predictor = SamPredictor(load_sam(path))
        predictor.set_image(pixels_of(0, size))
        for _ in range(2):
            for point in ([10, 10], [120, 140]):
                status, found = Client(server)("POST", f"/api/images/{image.id}/prompts", {"points": [point], "labels": [1]})
                assert status == 200
                want = answer(predictor, Question(points=(tuple(point),), labels=(1,)))  # type: ignore[arg-type]
                assert [each["segmentation"] for each in found["candidates"]] == [each.segmentation for each in want]
        assert server.service.encoder.counts["encoded"] == 2  # of the image's 12 tiles


def test_a_mask_that_is_refined_in_a_tile_keeps_what_lies_beyond_it(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "native.safetensors", frame="native")
    predictor = SamPredictor(load_sam(path))
    predictor.set_image(pixels_of(0, (150, 130)))
    before = np.zeros((150, 130), dtype=bool)
    before[5:145, 20:30] = True  # taller than a tile of 64 pixels
    question = Question(points=((25.0, 75.0),), labels=(1,), mask=encode_mask(before))
    y, x = (int(side) for side in predictor.tiles[prompting.tile_of(predictor, question)].flip(0))  # type: ignore[attr-defined]
    inside = np.zeros_like(before)
    inside[y : y + 64, x : x + 64] = True
    for found in answer(predictor, question):
        mask = decode_rle(found.segmentation)
        assert (mask == before)[~inside].all() and not (mask == before)[inside].all()
        assert found.area == mask.sum() and list(found.bbox) == rle_to_box_xywh(found.segmentation)


def test_prefetching_is_counted(tmp_path: Path) -> None:
    with serving(tmp_path, images=4, prefetch=2) as (server, _):
        ask, encoder = Client(server), server.service.encoder
        first = ask("POST", "/api/next")[1]["image"]["id"]
        wait_for(lambda: encoder.counts["encoded"] == 3 and not len(encoder))  # the image and the two behind it
        ask("POST", f"/api/images/{first}/finish")
        assert ask("POST", "/api/next")[1]["image"]["encoded"] is True
        assert encoder.hit_rate == 0.5
        assert ask("GET", "/api/status")[1]["encoder"]["hit_rate"] == 0.5


def test_no_image_is_handed_out_while_a_newer_model_takes_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else the first clicks of a round would be answered by the old model."""
    with serving(tmp_path, images=2) as (server, _):
        ask, may_load, load = Client(server), threading.Event(), encoding.load_sam
        wait_for(lambda: ask("GET", "/api/health")[1]["model"] is not None)
        monkeypatch.setattr(encoding, "load_sam", lambda path: load(path) if may_load.wait(WAIT) else None)
        newer = model_of(write_checkpoint(tmp_path / "newer.safetensors", seed=1))
        server.store.set_model(newer)
        assert ask("POST", "/api/next")[1]["reason"] == "waiting"
        may_load.set()
        wait_for(lambda: ask("POST", "/api/next")[1]["image"] is not None)
        assert ask("GET", "/api/health")[1]["model"]["digest"] == newer.digest
        # a model that cannot be loaded holds up nobody
        server.store.set_model(Model(path=str(tmp_path / "none"), digest="none", name="none"))
        wait_for(lambda: ask("POST", "/api/next")[1]["image"] is not None)


def test_the_model_is_swapped_under_a_running_server(tmp_path: Path) -> None:
    """Drafts and leases stay, answers say which model they are of, and no click fails while it happens."""
    with serving(tmp_path) as (server, _):
        ask = Client(server)
        lease = ask("POST", "/api/images/1/lease")[1]["token"]
        ask("PUT", "/api/images/1/draft", {"content": "in the works", "seq": 1})
        new = model_of(write_checkpoint(tmp_path / "new.safetensors", seed=1))
        answers: list[tuple[int, str]] = []
        stop = threading.Event()

        def click() -> None:
            while not stop.is_set():
                status, content = ask("POST", "/api/images/1/prompts", {"points": [[9, 9]], "labels": [1]})
                answers.append((status, content.get("model")))

        thread = threading.Thread(target=click)
        thread.start()
        old = server.store.model()
        server.store.set_model(new)
        try:
            wait_for(lambda: answers and answers[-1][1] == new.digest)
        finally:
            stop.set()
            thread.join(WAIT)
        assert old is not None and {status for status, _ in answers} == {200}
        assert {model for _, model in answers} <= {old.digest, new.digest}
        assert ask("GET", "/api/health")[1]["model"]["digest"] == new.digest
        assert ask("GET", "/api/images/1/draft")[1]["content"] == "in the works"
        assert ask("POST", "/api/images/1/lease", {"token": lease})[0] == 200


def test_a_checkpoint_that_is_replaced_is_noticed(tmp_path: Path) -> None:
    path = write_checkpoint(tmp_path / "sam.safetensors")
    with serving(tmp_path, checkpoint=path) as (server, _):
        wait_for(lambda: server.service.encoder.model)
        before = server.service.model_digest()
        write_checkpoint(path, seed=1)
        wait_for(lambda: server.service.model_digest() != before)
        assert server.store.model() == model_of(path)


def test_without_a_model_the_answer_says_so(tmp_path: Path) -> None:
    with serving(tmp_path) as (server, _), open_store(f"sqlite:///{tmp_path / 'other.db'}") as store:
        server.service.store = store  # an engine that has not set a model yet
        server.service._model = server.service.encoder.model = None
        status, content = Client(server)("POST", "/api/images/1/prompts", {"points": [[9, 9]], "labels": [1], "seq": 2})
    assert status in (404, 503) and content["error"].startswith("there is no")


def test_masks_of_large_images_equal_the_predictors(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is computed in strips equals what is computed at once, run by run."""
    predictor = SamPredictor(load_sam(write_checkpoint(tmp_path / "sam.safetensors")))
    predictor.set_image(pixels_of(0, (150, 211)))
    questions = [Question(points=((100.0, 50.0),), labels=(1,)), Question(box=(10.0, 20.0, 200.0, 140.0))]
    whole = [answer(predictor, question) for question in questions]
    monkeypatch.setattr(prompting, "WHOLE_PIXELS", 0)
    for pixels in (1, 999, 10**6):
        monkeypatch.setattr(prompting, "STRIP_PIXELS", pixels)
        assert [answer(predictor, question) for question in questions] == whole
    masks, _, _ = predictor.predict(*questions[0].arrays())
    assert [each.area for each in whole[0]] == masks.sum(axis=(1, 2)).tolist()
    assert np.all([0 <= each.stability_score <= 1 for each in whole[0]])
