"""A person who is a script: clicks each object over HTTP, takes the best candidate, and paints what the model does not find."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from samtrain.ops.rle import RLE, decode_rle, rle_area, rle_iou


class ScriptedUser(threading.Thread):
    """Works on whatever the server of a run hands out until it is stopped, whether the server goes and comes back or not.

    truth:    the objects of each image, by its name
    rejects:  rejects the first mask of each image that is there already
    accepted: (image name, segmentation) of each mask that the server has said to be on disk
    models:   digests of the models that have answered
    """

    def __init__(self, run_dir: Path, truth: Mapping[str, list[RLE]], *, rejects: bool = False) -> None:
        super().__init__(daemon=True)
        self.address, self.truth, self.rejects = run_dir / "annotate.address.json", truth, rejects
        self.accepted: list[tuple[str, RLE]] = []
        self.rejected: list[RLE] = []
        self.requests: set[str] = set()
        self.models: list[str] = []
        self.messages: list[str] = []
        self.processes: set[int] = set()
        self.stop, self.error = threading.Event(), ""
        self.start()

    def run(self) -> None:
        with httpx.Client(timeout=60) as self.client:
            while not self.stop.wait(0.05):
                try:
                    self._next()
                except (httpx.TransportError, FileNotFoundError):
                    time.sleep(0.1)  # there is no server now
                except Exception as error:
                    self.error = repr(error)
                    raise

    def end(self) -> None:
        self.stop.set()
        self.join(timeout=30)
        assert not self.error, self.error

    def _call(self, method: str, path: str, content: Any = None) -> Any:
        said = json.loads(self.address.read_text())
        self.processes.add(said["process"])
        answer = self.client.request(method, f"{said['url']}/api/{path}", json=content)
        if answer.status_code >= 500 or answer.status_code == 409 and "closed" in answer.text:
            raise httpx.TransportError(answer.text)  # the server ends, or the round was closed meanwhile
        assert answer.status_code in (200, 201), f"{method} {path}: {answer.status_code} {answer.text}"
        return answer.json()

    def _next(self) -> None:
        given = self._call("POST", "next", {})
        if given["image"] is None:
            self.messages.append(given["message"])
            return
        image, lease = given["image"], given["lease"]["token"]
        here = self._call("GET", f"images/{image['id']}/masks")
        if self.rejects and here and not self._was_rejected(image):
            self._call("PUT", f"masks/{here[0]['id']}", {"state": "rejected", "lease": lease})
            self.rejected.append(here[0]["segmentation"])
        there = [each["segmentation"] for each in here if each["locked"]]
        for number, target in enumerate(self.truth[image["name"]]):
            request = f"{image['id']}/{number}"  # a save that is repeated, because the server went away, is one mask
            if request not in self.requests and not (there and rle_iou([target], there).max() >= 0.9):
                self._draw(image, lease, target, request)
                self.requests.add(request)
        self._call("POST", f"images/{image['id']}/finish", {"state": "done", "lease": lease})

    def _was_rejected(self, image: dict[str, Any]) -> bool:
        return bool(self._call("GET", f"images/{image['id']}/masks?state=rejected"))

    def _draw(self, image: dict[str, Any], lease: str, target: RLE, request: str) -> None:
        """Clicks the middle of an object; a candidate that shows something else is painted over."""
        rows, columns = np.nonzero(decode_rle(target))
        point = [float(columns.mean()), float(rows.mean())]
        asked = {"points": [point], "labels": [1], "box": None, "mask": None, "seq": 1}
        answer = self._call("POST", f"images/{image['id']}/prompts", asked)
        self.models.append(answer["model"])
        found = [each for each in answer["candidates"] if rle_area(each["segmentation"])]
        ious = [float(rle_iou([target], [each["segmentation"]])[0, 0]) for each in found]
        mask = {"points": [point], "labels": [1], "seconds": 2.5, "lease": lease, "request": request}
        if ious and max(ious) >= 0.5:
            best = found[int(np.argmax(ious))]
            scores = {"score": best["score"], "stability_score": best["stability_score"]}
            mask |= {"segmentation": best["segmentation"], "origin": "clicked", **scores}
        else:
            mask |= {"segmentation": target, "origin": "drawn", "strokes": [{"tool": "brush", "width": 5, "points": [point]}]}
        stored = self._call("POST", f"images/{image['id']}/masks", mask)
        self.accepted.append((image["name"], stored["segmentation"]))
