"""Times the annotator's server as its page sees it: clicks and previews, first and second visits, many masks, a large image.

The server runs in a process of its own, with a ViT-B of random weights unless --checkpoint names a model. A request takes from
its sending until its JSON is parsed; what the browser adds is not counted.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from paired import arguments, machine
from PIL import Image

from samtrain.annotator.config import AnnotateConfig, ServeConfig
from samtrain.annotator.store import Model, NewImage, NewMask, open_store
from samtrain.files import digest
from samtrain.modeling.build import build_sam
from samtrain.modeling.checkpoints import save_safetensors
from samtrain.ops.rle import encode_mask

SIZE = (1000, 1500)  # of the image that is clicked on (H, W)
POOL_IMAGES, POOL_MASKS = 500, 10_000
LARGE = 10_000  # pixels of a side


class Client:
    """One connection that stays open, as a browser's does."""

    def __init__(self, url: str) -> None:
        self.connection = http.client.HTTPConnection(url.removeprefix("http://"), timeout=3600)

    def raw(self, method: str, path: str, body: Any = None) -> bytes:
        data = None if body is None else json.dumps(body)
        self.connection.request(method, path, data, {"Content-Type": "application/json"})
        answer = self.connection.getresponse()
        content = answer.read()
        assert answer.status < 300, content[:500]
        return content

    def __call__(self, method: str, path: str, body: Any = None) -> Any:
        return json.loads(self.raw(method, path, body))

    def seconds_to_best(self, path: str, body: Any) -> float:
        """Returns the time until the best candidate is there, which the page shows first; the others are read, too."""
        headers = {"Content-Type": "application/json", "Accept": "application/x-ndjson"}
        begin = time.perf_counter()
        self.connection.request("POST", path, json.dumps(body), headers)
        answer = self.connection.getresponse()
        json.loads(answer.readline())
        seconds = time.perf_counter() - begin
        answer.read()
        return seconds


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=None, help="any SAM; without it a ViT-B of random weights")
    parser.add_argument("--clicks", type=int, default=50)
    parser.add_argument("--parts", nargs="+", default=["clicks", "pool", "large"], choices=("clicks", "pool", "large"))
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = options.checkpoint or random_vit_b(Path(folder))
        jobs: dict[str, Callable[..., dict[str, Any]]] = {"clicks": time_clicks, "pool": time_pool, "large": time_large}
        found = {}
        for part in options.parts:
            found[part] = jobs[part](Path(folder) / part, checkpoint, options)
            for name, value in found[part].items():
                print(f"{part}: {name}: {value}", flush=True)
    if options.json is not None:
        given = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        content = {"benchmark": "annotate", "machine": machine(), "options": given, "results": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def time_clicks(folder: Path, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times clicks with one to five points and previews on an image that is encoded, and both visits to it."""
    prepare(folder, checkpoint, [write_image(folder / "image.png", SIZE)])
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    with server(folder) as url:
        ask = Client(url)
        found["first visit, encoded (s)"] = timed(lambda: ask("POST", "/api/images/1/prompts", question(rng, 1)))
        for _ in range(3):
            ask("POST", "/api/images/1/prompts", question(rng, 1))
        clicks = [
            timed(lambda n=n: ask("POST", "/api/images/1/prompts", question(rng, 1 + n % 5))) for n in range(options.clicks)
        ]
        bests = [ask.seconds_to_best("/api/images/1/prompts", question(rng, 1 + n % 5)) for n in range(options.clicks)]
        previews = [
            timed(lambda: ask("POST", "/api/images/1/prompts", {**question(rng, 1), "preview": True, "seq": 10**6}))
            for _ in range(options.clicks)
        ]
        found["bytes of an answer"] = len(ask.raw("POST", "/api/images/1/prompts", question(rng, 1)))
        saves = [timed(lambda: save(ask, 1, rng, SIZE)) for _ in range(20)]
    with server(folder) as url:  # started again, so that nothing is in memory
        ask = Client(url)
        while not ask("GET", "/api/health")["model"]:
            time.sleep(0.05)
        found["second visit, found on disk (s)"] = timed(lambda: ask("POST", "/api/images/1/prompts", question(rng, 1)))
        counts = ask("GET", "/api/status")["encoder"]
        assert counts.get("encoded", 0) == 0 and counts["found"] == 1, counts
    times = {"click": clicks, "click, until the best candidate is there": bests, "preview": previews, "save": saves}
    return {**found, **{name: value for each in times for name, value in spread(each, times[each]).items()}}


def time_pool(folder: Path, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times what the page asks for when it opens, and saves, with many images and masks in the store."""
    image = write_image(folder / "image.png", SIZE)
    prepare(folder, checkpoint, [replace(image, key=str(number)) for number in range(POOL_IMAGES)])
    with open_store(store_url(folder)) as store:
        rng = np.random.default_rng(0)
        masks = [random_mask(rng, SIZE) for _ in range(POOL_MASKS // POOL_IMAGES)]
        for row in store.images():
            store.add_masks(row.id, "somebody", masks)
        for row in store.images()[: POOL_IMAGES // 2]:
            store.finish(row.id, "somebody")
    with server(folder) as url:
        opens = [timed(lambda: open_page(Client(url))) for _ in range(10)]
        ask = Client(url)
        saves = [timed(lambda: save(ask, POOL_IMAGES, rng, SIZE)) for _ in range(30)]
    return {**spread("session, list, next image, its masks and tiles", opens), **spread("save", saves)}


def time_large(folder: Path, checkpoint: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Times the first tile, further tiles, a click that encodes, and further clicks on an image of 100 megapixels."""
    prepare(folder, checkpoint, [write_image(folder / "image.jpg", (LARGE, LARGE))])
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {}
    with server(folder) as url:
        ask = Client(url)
        levels = ask("GET", "/api/images/1")["levels"]
        found["whole image on the screen (s)"] = timed(lambda: ask.raw("GET", f"/api/images/1/tiles/{levels - 1}/0/0"))
        tiles = [timed(lambda n=n: ask.raw("GET", f"/api/images/1/tiles/0/{n}/{n}")) for n in range(19)]
        found["first click, encoded (s)"] = timed(lambda: ask("POST", "/api/images/1/prompts", question(rng, 1, LARGE)))
        clicks = [timed(lambda: ask("POST", "/api/images/1/prompts", question(rng, 1, LARGE))) for _ in range(10)]
        bests = [ask.seconds_to_best("/api/images/1/prompts", question(rng, 1, LARGE)) for _ in range(10)]
        process = int(json.loads((folder / "serve.address.json").read_text())["process"])
        status = Path(f"/proc/{process}/status").read_text()
        found["peak memory of the server (GB)"] = int(status.split("VmHWM:")[1].split()[0]) / 1e6
    first = spread("click, until the best candidate is there", bests)
    return {**found, **spread("tile", tiles), **spread("click", clicks), **first}


# ---- what is asked


def question(rng: np.random.Generator, points: int, side: int | None = None) -> dict[str, Any]:
    height, width = (side, side) if side else SIZE
    coords = (rng.random((points, 2)) * (width - 1, height - 1)).round(1).tolist()
    return {"points": coords, "labels": [1] + [0] * (points - 1), "box": None, "mask": None, "seq": 1}


def open_page(ask: Client) -> None:
    for path in ("/", "/api/session", "/api/images"):
        ask.raw("GET", path)
    opened = ask("POST", "/api/next", {})
    number = opened["image"]["id"]
    ask.raw("GET", f"/api/images/{number}/masks")
    ask.raw("GET", f"/api/images/{number}/draft")
    for column, row in np.ndindex(3, 2):
        ask.raw("GET", f"/api/images/{number}/tiles/0/{column}/{row}")


def save(ask: Client, image: int, rng: np.random.Generator, size: tuple[int, int]) -> None:
    ask("POST", f"/api/images/{image}/masks", {"segmentation": random_mask(rng, size).segmentation, "seconds": 3.0})


def random_mask(rng: np.random.Generator, size: tuple[int, int]) -> NewMask:
    """An ellipse."""
    y, x = rng.random(2) * size
    rows, columns = np.ogrid[: size[0], : size[1]]
    mask = ((rows - y) / rng.uniform(20, 120)) ** 2 + ((columns - x) / rng.uniform(20, 120)) ** 2 < 1
    return NewMask(segmentation=encode_mask(mask), seconds=3.0)


# ---- the server


def prepare(folder: Path, checkpoint: Path, images: list[NewImage]) -> None:
    folder.mkdir(exist_ok=True)
    with open_store(store_url(folder)) as store:
        store.add_images(images)
        store.set_model(Model(path=str(checkpoint), digest=digest(checkpoint), name=checkpoint.name))
    settings = AnnotateConfig(port=0, annotator="benchmark", prefetch=0, lease_seconds=86_400)
    config = ServeConfig(annotate=settings, store=store_url(folder), embeddings=str(folder / "embeddings"))
    (folder / "serve.json").write_text(config.to_json())


@contextmanager
def server(folder: Path) -> Iterator[str]:
    """Yields the address of a server that runs in a process of its own."""
    command = [sys.executable, "-m", "samtrain.annotator.serve", "--config", str(folder / "serve.json")]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None and process.stdin is not None
    try:
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.stdin.close()
        process.wait(60)


def store_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'annotations.db'}"


def random_vit_b(folder: Path) -> Path:
    torch.manual_seed(0)
    return save_safetensors(build_sam("vit_b"), folder / "vit_b.safetensors")


def write_image(path: Path, size: tuple[int, int]) -> NewImage:
    """A smooth image with some texture; noise alone would make tiles unusually large."""
    path.parent.mkdir(exist_ok=True)
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 255, (size[0] // 50, size[1] // 50, 3), dtype=np.uint8))
    coarse.resize((size[1], size[0]), Image.Resampling.BILINEAR).save(path)
    return NewImage(key=path.name, source=str(path), width=size[1], height=size[0], digest=digest(path))


# ---- times


def timed(job: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    job()
    return time.perf_counter() - begin


def spread(name: str, seconds: list[float]) -> dict[str, float]:
    """Returns the median and the 95th percentile in milliseconds."""
    low, high = statistics.median(seconds), float(np.percentile(seconds, 95))
    return {f"{name}, median (ms)": round(1e3 * low, 1), f"{name}, 95th percentile (ms)": round(1e3 * high, 1)}


if __name__ == "__main__":
    main()
