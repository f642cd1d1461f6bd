"""The HTTP contract of the annotator, as docs/annotate-api.md has it, on a running server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("fastapi", reason="needs the extra annotate")

from serving import SIZE, Client, pixels_of, serving  # noqa: E402

from samtrain.annotator.serve import Server  # noqa: E402
from samtrain.inference.predictor import SamPredictor  # noqa: E402
from samtrain.modeling.build import load_sam  # noqa: E402
from samtrain.ops.rle import decode_rle, encode_mask  # noqa: E402

CLICK = {"points": [[20, 30]], "labels": [1]}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("contract"), images=4) as (server, _):
        yield server


@pytest.fixture
def ask(server: Server) -> Client:
    return Client(server)


def square(row: int, column: int, side: int = 8) -> dict[str, Any]:
    mask = np.zeros(SIZE, dtype=bool)
    mask[row : row + side, column : column + side] = True
    return encode_mask(mask)


def test_health_session_and_images(ask: Client, server: Server) -> None:
    status, health = ask("GET", "/api/health")
    assert status == 200 and health["status"] == "ok" and {"version", "model", "queue"} <= set(health)
    status, session = ask("GET", "/api/session")
    assert session["annotator"] == "me" and session["settings"]["seconds_per_mask"] == 30
    assert session["status"]["images"]["total"] == 4 and session["status"]["metrics"] == {"val/miou_1": 0.5}
    status, images = ask("GET", "/api/images?state=open&limit=2&offset=1")
    assert [image["name"] for image in images] == ["image_1.png", "image_2.png"]
    assert images[0]["width"] == SIZE[1] and "source" not in images[0]  # where files lie is nobody's business
    status, image = ask("GET", f"/api/images/{images[0]['id']}")
    assert image["levels"] == 1 and image["tile_size"] == 512


@pytest.mark.parametrize(
    "prompts",
    [
        CLICK,
        {"points": [[20, 30], [50.5, 10.25]], "labels": [1, 0]},
        {"points": [], "labels": [], "box": [5, 5, 40, 44.5]},
        {"points": [[20, 30]], "labels": [0], "box": [5, 5, 40, 44]},
    ],
)
def test_candidates_equal_those_of_the_predictor(ask: Client, server: Server, prompts: dict[str, Any]) -> None:
    status, answer = ask("POST", "/api/images/1/prompts", {**prompts, "mask": None, "seq": 7})
    assert status == 200 and answer["seq"] == 7 and len(answer["candidates"]) == 3
    model = server.store.model()
    assert model is not None and answer["model"] == model.digest
    predictor = SamPredictor(load_sam(model.path))
    predictor.set_image(pixels_of(0))
    clicks = (np.array(prompts["points"]), np.array(prompts["labels"])) if prompts["points"] else (None, None)
    box = None if prompts.get("box") is None else np.array(prompts["box"])
    masks, scores, _ = predictor.predict(*clicks, box)
    assert [each["segmentation"] for each in answer["candidates"]] == [encode_mask(mask) for mask in masks]
    assert [each["score"] for each in answer["candidates"]] == pytest.approx(scores.tolist(), abs=1e-6)
    assert [each["area"] for each in answer["candidates"]] == masks.sum(axis=(1, 2)).tolist()


def test_a_preview_has_the_best_candidate(ask: Client) -> None:
    _, whole = ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 100})
    _, preview = ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 101, "preview": True})
    assert preview["candidates"] == [max(whole["candidates"], key=lambda each: each["score"])]


def test_candidates_come_line_by_line_if_a_client_wants_that(ask: Client) -> None:
    _, whole = ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 102})
    headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
    status, _, answer = ask.raw("POST", "/api/images/1/prompts", json.dumps({**CLICK, "seq": 103}).encode(), headers)
    lines = [json.loads(line) for line in answer.splitlines()]
    assert status == 200 and [(line["seq"], line["model"]) for line in lines] == [(103, whole["model"])] * 3
    assert [line["scores"] for line in lines] == [[each["score"] for each in whole["candidates"]]] * 3
    assert lines[0]["candidate"]["score"] == max(lines[0]["scores"]), "the best one comes first"
    assert sorted(line["index"] for line in lines) == [0, 1, 2]
    assert all(line["candidate"] == whole["candidates"][line["index"]] for line in lines)


def test_an_overtaken_preview_is_dropped(ask: Client) -> None:
    ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 1000})
    status, answer = ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 999, "preview": True})
    assert (status, answer["stale"], answer["seq"]) == (409, True, 999)
    # a click is answered however late it comes, and says which one it was
    status, answer = ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 998})
    assert (status, answer["seq"]) == (200, 998)
    # another image has numbers of its own
    assert ask("POST", "/api/images/2/prompts", {**CLICK, "seq": 1, "preview": True})[0] == 200


def test_a_mask_is_refined(ask: Client) -> None:
    mask = square(10, 10, 20)
    status, answer = ask("POST", "/api/images/1/prompts", {**CLICK, "mask": mask, "seq": 2000})
    alone = ask("POST", "/api/images/1/prompts", {"mask": mask, "seq": 2001})
    without = ask("POST", "/api/images/1/prompts", {**CLICK, "seq": 2002})[1]
    assert status == alone[0] == 200
    assert answer["candidates"] != without["candidates"]


@pytest.mark.parametrize(
    ("prompts", "complaint"),
    [
        ({}, "there are no prompts"),
        ({"points": [[1, 2]], "labels": []}, "1 points and 0 labels"),
        ({"points": [[1, 2]], "labels": [2]}, "labels are 1 for foreground and 0"),
        ({"points": [[1, 2]], "labels": [True]}, "labels are 1 for foreground and 0"),
        ({"points": [[1, 2]], "labels": [-1]}, "labels are 1 for foreground and 0"),
        ({"points": [[65, 2]], "labels": [1]}, "x is 65, outside of the image"),
        ({"points": [[1, -0.1]], "labels": [1]}, "y is -0.1, outside of the image"),
        ({"points": [[1]], "labels": [1]}, "a point is [x, y]"),
        ({"points": [[1, "2"]], "labels": [1]}, "y is 2: give a number"),
        ({"points": [[1, None]], "labels": [1]}, "y is None: give a number"),
        ({"points": [[10**400, 1]], "labels": [1]}, "x is too large"),
        ({"points": 7, "labels": [1]}, "points is 7: give a list"),
        ({"points": [[1, 1]] * 201, "labels": [1] * 201}, "annotate.max_points is 200"),
        ({"box": [1, 2, 3]}, "a box is [x0, y0, x1, y1]"),
        ({"box": [5, 5, 5, 9]}, "give the left upper corner first"),
        ({"box": [5, 5, 99, 9]}, "outside of the image"),
        ({"mask": {"size": [9, 9], "counts": "Q2"}}, "size (9, 9), but the image has (48, 64)"),
        ({"mask": {"size": [48, 64], "counts": "zzzz"}}, "RLE"),
        ({"mask": {"size": [48, 64], "counts": [3072]}}, "mask is empty"),
        ({"mask": "a"}, "an RLE is a mapping"),
        ({**CLICK, "seq": -1}, "seq is -1: give a whole number from 0"),
        ({**CLICK, "seq": 1.5}, "seq is 1.5"),
        ({**CLICK, "preview": 1}, "preview is 1: give true or false"),
        ({**CLICK, "point": []}, "point is not a field here (did you mean points?)"),
    ],
)
def test_wrong_prompts_are_refused_in_a_sentence(ask: Client, prompts: dict[str, Any], complaint: str) -> None:
    status, answer = ask("POST", "/api/images/1/prompts", prompts)
    assert status == 400 and complaint in answer["error"], answer


@pytest.mark.parametrize("word", [b"NaN", b"Infinity", b"-Infinity"])
def test_what_is_no_number_in_json_is_refused(ask: Client, word: bytes) -> None:
    body = b'{"points": [[' + word + b', 2]], "labels": [1]}'
    status, _, answer = ask.raw("POST", "/api/images/1/prompts", body, {"Content-Type": "application/json"})
    assert status == 400 and "is not a number in JSON" in json.loads(answer)["error"]


@pytest.mark.parametrize("text", ["\\u0000", "\\ud800"])
def test_what_is_no_text_is_refused(ask: Client, text: str) -> None:
    body = f'{{"content": "a{text}", "seq": 1}}'.encode()
    status, _, answer = ask.raw("PUT", "/api/images/1/draft", body, {"Content-Type": "application/json"})
    assert status == 400 and "no text" in json.loads(answer)["error"]
    assert ask("PUT", "/api/images/1/draft", {"content": "\U0001f600", "seq": 1})[0] == 200  # a whole pair is a character


def test_the_life_of_a_mask(ask: Client, server: Server) -> None:
    new = {"segmentation": square(2, 3), **CLICK, "seconds": 3.0, "score": 0.9, "request": "life", "story": [{"kind": "click"}]}
    status, mask = ask("POST", "/api/images/2/masks", new)
    model = server.store.model()
    assert status == 201 and mask["area"] == 64 and mask["score"] == 0.9 and mask["annotator"] == "me"
    assert model is not None and mask["model"] == model.digest
    assert ask("POST", "/api/images/2/masks", new)[1]["id"] == mask["id"]  # a repeated save is one mask
    assert server.store.mask(mask["id"]).story == [{"kind": "click"}]
    path = f"/api/images/2/masks/{mask['id']}"
    assert ask("GET", path) == ask("GET", f"/api/masks/{mask['id']}") == (200, mask)
    status, changed = ask("PUT", path, {"segmentation": square(2, 3, 9), "revision": 0, "label": "cat"})
    assert (status, changed["area"], changed["revision"], changed["label"]) == (200, 81, 1, "cat")
    status, answer = ask("PUT", path, {"label": "dog", "revision": 0})
    assert (status, answer["reason"]) == (409, "revision")
    assert ask("DELETE", path)[1]["state"] == "deleted"
    assert ask("GET", "/api/images/2/masks") == (200, [])
    assert len(ask("GET", "/api/images/2/masks?state=accepted,deleted")[1]) == 1
    assert ask("PUT", path, {"state": "accepted"})[0] == 200
    assert ask("GET", f"/api/images/1/masks/{mask['id']}")[0] == 404  # it is a mask of another image


def test_a_mask_is_refused_in_a_sentence(ask: Client) -> None:
    for body, status, complaint in (
        ({}, 400, "a mask has a segmentation"),
        ({"segmentation": None}, 400, "a mask has a segmentation"),
        ({"segmentation": square(0, 0), "score": "high"}, 400, "score is high: give a number"),
        ({"segmentation": {"size": [48, 64], "counts": [3072]}}, 400, "the mask is empty"),
        ({"segmentation": {"size": [4, 4], "counts": [0, 16]}}, 400, "RLE has size (4, 4)"),
        ({"segmentation": square(0, 0), "seconds": -1}, 400, "seconds is -1"),
        ({"segmentation": square(0, 0), "points": [[1, 1]], "labels": []}, 400, "one label each"),
        ({"segmentation": square(0, 0), "parent": 10**6}, 404, "there is no mask 1000000"),
        ({"segmentation": square(0, 0), "parent": 10**30}, 404, "there is no mask"),
        ({"segmentation": square(0, 0), "origin": "stolen"}, 400, "origin is 'stolen'"),
        ({"segmentation": square(0, 0), "locked": True}, 400, "locked is not a field here"),
        ({"segmentation": square(0, 0), "annotator": "ben"}, 400, "annotator is not a field here"),
    ):
        found, answer = ask("POST", "/api/images/3/masks", body)
        assert found == status and complaint in answer["error"], answer


def test_no_value_in_a_change_is_an_error_of_the_server(ask: Client) -> None:
    path = f"/api/masks/{ask('POST', '/api/images/3/masks', {'segmentation': square(1, 1)})[1]['id']}"
    fields = ("segmentation", "points", "labels", "box", "strokes", "story", "seconds", "score", "origin", "state", "model")
    for field in fields:
        for value in (None, [], {}, "x", True, 10**400):
            status, answer = ask("PUT", path, {field: value})
            assert status < 500, (field, value, answer)
    assert ask("PUT", path, {"points": None}) == (400, {"error": "points is null: give a value, or leave it out"})


def test_disjoint_masks_share_no_pixel(ask: Client, server: Server) -> None:
    first = ask("POST", "/api/images/4/masks", {"segmentation": square(0, 0, 20), "seconds": 1})[1]
    second = ask("POST", "/api/images/4/masks", {"segmentation": square(10, 10, 20), "seconds": 1, "disjoint": True})[1]
    a, b = decode_rle(first["segmentation"]), decode_rle(second["segmentation"])
    assert not (a & b).any() and (a | b).sum() == 700
    # a save that is said again is not cut by itself
    again = {"segmentation": square(30, 30, 5), "disjoint": True, "request": "again"}
    assert ask("POST", "/api/images/4/masks", again)[1] == ask("POST", "/api/images/4/masks", again)[1]
    status, answer = ask("POST", "/api/images/4/masks", {"segmentation": square(5, 5, 4), "disjoint": True})
    assert status == 400 and "nothing is left of it" in answer["error"]


def test_a_draft_is_kept_and_an_older_one_does_not_overwrite_it(ask: Client) -> None:
    assert ask("GET", "/api/images/3/draft") == (200, {"content": None, "seq": 0})
    assert ask("PUT", "/api/images/3/draft", {"content": {"points": [[1, 2]]}, "seq": 5}) == (200, {"seq": 5})
    assert ask("PUT", "/api/images/3/draft", {"content": "older", "seq": 4}) == (200, {"seq": 5})
    assert ask("GET", "/api/images/3/draft")[1] == {"content": {"points": [[1, 2]]}, "seq": 5}
    assert ask("DELETE", "/api/images/3/draft")[0] == 200
    assert ask("GET", "/api/images/3/draft")[1]["content"] is None


def test_leases_and_being_done(tmp_path: Path) -> None:
    with serving(tmp_path, images=2, tokens=True) as (server, tokens):
        anna, ben = Client(server, tokens["anna"]), Client(server, tokens["ben"])
        first = anna("POST", "/api/next")[1]
        assert first["image"]["name"] == "image_0.png" and first["lease"]["expires_in"] == 120
        place = f"/api/images/{first['image']['id']}"
        status, answer = ben("POST", f"{place}/lease")
        assert (status, answer["holder"]) == (409, "anna") and "anna works on image" in answer["error"]
        assert anna("POST", f"{place}/lease", {"token": first["lease"]["token"]})[0] == 200
        second = ben("POST", "/api/next")[1]
        assert second["image"]["name"] == "image_1.png"
        assert Client(server, tokens["anna"])("GET", "/api/images")[1][1]["leased_by"] == "ben"
        lease = first["lease"]["token"]
        assert anna("POST", f"{place}/finish", {"lease": lease}) [1]["state"] == "done"
        assert anna("POST", "/api/next")[1]["reason"] == "leased"
        assert ben("POST", f"/api/images/{second['image']['id']}/finish", {"state": "skipped"})[1]["state"] == "skipped"
        assert anna("POST", "/api/next")[1]["reason"] == "finished"
        assert anna("POST", f"{place}/finish", {"state": "open"})[1]["state"] == "open"
        assert anna("POST", "/api/next")[1]["image"]["name"] == "image_0.png"
        assert anna("DELETE", f"{place}/lease")[0] == 200
        assert ben("POST", "/api/next", {"after": 99})[1]["image"]["name"] == "image_0.png"


def test_events_tell_about_encoding(ask: Client, server: Server) -> None:
    found: list[bytes] = []
    ready = threading.Event()

    def listen() -> None:
        import http.client

        connection = http.client.HTTPConnection("127.0.0.1", ask.port, timeout=30)
        connection.request("GET", "/api/events")
        answer = connection.getresponse()
        while b"done" not in b"".join(found[1:]):
            found.append(answer.readline() + answer.readline() + answer.readline())
            ready.set()
        connection.close()

    thread = threading.Thread(target=listen, daemon=True)
    thread.start()
    assert ready.wait(20)
    ask("POST", "/api/images/4/encode")
    thread.join(20)
    text = b"".join(found).decode()
    assert text.startswith("event: status\ndata: {") and 'event: encoding\ndata: {"image": 4, "state": "done"' in text


def test_pixels_and_tiles(ask: Client) -> None:
    import io

    from PIL import Image

    status, headers, data = ask.raw("GET", "/api/images/1/pixels")
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(data))), pixels_of(0))
    small = ask.raw("GET", "/api/images/1/pixels?max_side=16&kind=jpeg")
    assert small[1]["content-type"] == "image/jpeg" and max(Image.open(io.BytesIO(small[2])).size) == 16
    status, headers, data = ask.raw("GET", "/api/images/1/tiles/0/0/0")
    assert Image.open(io.BytesIO(data)).size == (SIZE[1], SIZE[0])
    assert ask.raw("GET", "/api/images/1/tiles/0/0/0", headers={"If-None-Match": headers["etag"]})[0] == 304
    for path in ("/api/images/1/tiles/1/0/0", "/api/images/1/tiles/0/1/0", "/api/images/1/tiles/0/0/99999999"):
        assert ask("GET", path)[0] == 404


def test_unknown_things_are_not_found(ask: Client) -> None:
    for method, path in (
        ("GET", "/api/images/99"), ("GET", "/api/images/abc"), ("GET", "/api/images/-1"), ("GET", f"/api/images/{10**30}"),
        ("GET", "/api/masks/99"), ("GET", "/api/nothing"), ("POST", "/api/images/99/prompts"),
        ("POST", "/api/images/99/encode"),
        ("GET", "/api/images/99/draft"), ("PUT", "/api/images/99/draft"), ("POST", "/api/images/99/lease"),
        ("GET", "/api/images/99/tiles/0/0/0"), ("GET", "/docs"), ("GET", "/openapi.json"),
    ):  # fmt: skip
        status, answer = ask(method, path, CLICK if path.endswith("prompts") else None)
        assert status == 404 and answer["error"].startswith("there is no"), (path, answer)
    assert ask("PATCH", "/api/images")[0] == 405
    assert ask("GET", "/api/images?limit=-1")[0] == ask("GET", "/api/images?state=odd")[0] == 400
