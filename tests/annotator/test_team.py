"""A team on PostgreSQL: two servers, three annotators with tokens, 300 saves, and one server that is killed."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from store_objects import image, square

pytest.importorskip("httpx", reason="needs httpx")
pytest.importorskip("fastapi", reason="needs the extra annotate")

import httpx  # noqa: E402

from samtrain.annotator.config import AnnotateConfig, ServeConfig  # noqa: E402
from samtrain.annotator.store import Store, open_store  # noqa: E402

IMAGES, MASKS_PER_IMAGE = 15, 20
ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def two_servers(url: str, folder: Path) -> Iterator[list[tuple[subprocess.Popen[str], str]]]:
    """Two server processes on one database, with their addresses."""
    settings = AnnotateConfig(port=0, prefetch=0)
    started = []
    try:
        for number in range(2):
            path = folder / f"server_{number}.json"
            path.write_text(ServeConfig(annotate=settings, store=url, embeddings=str(folder / "embeddings")).to_json())
            command = [sys.executable, "-m", "samtrain.annotator.serve", "--config", str(path)]
            started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT))
        yield [(each, json.loads(each.stdout.readline())["url"]) for each in started if each.stdout is not None]
    finally:
        for each in started:
            each.kill()
            each.communicate()


class Person:
    """A scripted annotator: takes an image, saves its masks, finishes it, and turns to the other server when one is gone."""

    def __init__(self, urls: list[str], token: str, place: int, saved: Any) -> None:
        self.urls, self.place, self.saved = urls, place, saved
        self.client = httpx.Client(headers={"Authorization": f"Bearer {token}"}, timeout=60)
        self.requests: list[str] = []

    def work(self) -> None:
        while (found := self.post("/api/next", {}))["image"] is not None or found["reason"] != "finished":
            if found["image"] is None:
                continue
            path, lease = f"/api/images/{found['image']['id']}", found["lease"]["token"]
            there = self.client.get(f"{self.urls[self.place]}{path}/masks").json()
            for number in range(len(there), MASKS_PER_IMAGE):
                request = str(uuid.uuid4())
                body = {"segmentation": square(number % 4).segmentation, "seconds": 1.0, "request": request, "lease": lease}
                for _ in range(2 if number % 7 == 0 else 1):  # a page asks again when it has not understood the answer
                    assert self.post(f"{path}/masks", body)["request"] == request
                self.requests.append(request)
                self.saved()
            assert self.post(f"{path}/finish", {"state": "done", "lease": lease})["state"] == "done"

    def post(self, path: str, body: dict[str, Any]) -> Any:
        """Sends a request until it is answered; a server that has gone is replaced by the other."""
        for _ in range(3):
            try:
                answer = self.client.post(f"{self.urls[self.place]}{path}", json=body)
            except httpx.TransportError:
                self.place = 1
                continue
            assert answer.status_code in (200, 201), answer.text
            return answer.json()
        raise AssertionError("no server answers")


@pytest.mark.postgres
def test_a_team_saves_300_masks_through_two_servers_of_which_one_dies(postgres_url: str, tmp_path: Path) -> None:
    with open_store(postgres_url) as store:
        rows = store.add_images([image(f"{number:02d}") for number in range(IMAGES)])
        tokens = [store.add_annotator(name) for name in ("anna", "ben", "cid")]
        with two_servers(postgres_url, tmp_path) as servers:
            saves, lock = [0], threading.Lock()

            def saved() -> None:
                with lock:
                    saves[0] += 1
                    if saves[0] == 100:
                        servers[0][0].kill()

            urls = [url for _, url in servers]
            people = [Person(urls, token, number % 2, saved) for number, token in enumerate(tokens)]
            with ThreadPoolExecutor(3) as pool:
                list(pool.map(Person.work, people))
        check(store, [row.id for row in rows], [request for person in people for request in person.requests])


def check(store: Store, image_ids: list[int], requests: list[str]) -> None:
    """Every mask is there once, and of one person per image."""
    masks = [mask for image_id in image_ids for mask in store.masks(image_id)]
    assert len(masks) == len(requests) == IMAGES * MASKS_PER_IMAGE == 300
    assert sorted(str(mask.request) for mask in masks) == sorted(requests)
    for image_id in image_ids:
        found = store.image(image_id)
        assert {mask.annotator for mask in store.masks(image_id)} == {found.done_by}
        assert found.state == "done" and found.leased_by is None
    people = store.statistics()["annotators"]
    assert set(people) == {"anna", "ben", "cid"} and sum(each["masks"] for each in people.values()) == 300
