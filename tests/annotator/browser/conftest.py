"""A real Chromium and a real server for the tests of the annotation page; without Chromium they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import samtrain

pytest.importorskip("fastapi", reason="needs the extra annotate")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which is in the extra dev")

from disc_sam import load_disc_sam  # noqa: E402
from page_driver import Desk  # noqa: E402

from samtrain.annotator import encoding  # noqa: E402
from samtrain.annotator.config import AnnotateConfig, ServeConfig  # noqa: E402
from samtrain.annotator.serve import Server  # noqa: E402
from samtrain.annotator.store import Model, NewImage, Store, Work  # noqa: E402

STATIC = Path(samtrain.__file__).parent / "annotator" / "static"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css"}
GREY = (110, 110, 110)
SIZE = (480, 640)  # (H, W) of the tests' images


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests; each test opens contexts of its own."""
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium (Debian: apt-get install chromium)")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def modules(chromium: Any) -> Iterator[Any]:
    """A blank page on which the page's modules can be imported: `import("/static/rle.js")`. There is no server behind it."""
    context = chromium.new_context()
    page = context.new_page()

    def answer(route: Any) -> None:
        path = STATIC / route.request.url.partition("/static/")[2]
        if path.is_file():
            route.fulfill(body=path.read_bytes(), content_type=TYPES[path.suffix])
        else:
            route.fulfill(body="<title>blank</title>", content_type="text/html")

    page.route("**/*", answer)
    page.goto("http://samtrain.test/")
    yield page
    context.close()


class Site:
    """A server with `DiscSam`, to which tests add images."""

    def __init__(self, folder: Path, settings: AnnotateConfig) -> None:
        self.folder, self.number = folder, 0
        url = f"sqlite:///{folder / 'annotations.db'}"
        self.server = Server(ServeConfig(annotate=settings, store=url, embeddings=str(folder / "embeddings")))

    @property
    def store(self) -> Store:
        return self.server.store

    @property
    def url(self) -> str:
        return self.server.url

    def use_model(self, radius: int = 24) -> None:
        self.store.set_model(
            Model(str(self.folder / f"discs_{radius}"), f"digest-{radius}", f"discs of {radius}", {"val/miou_1": 0.71})
        )

    def add_image(self, pixels: np.ndarray | None = None, *, rank: float = 0.0, round: int | None = None) -> int:
        """Adds an image, grey unless it is given, and returns its id; a higher rank is handed out later."""
        self.number += 1
        path = self.folder / f"image_{self.number}.png"
        Image.fromarray(np.full((*SIZE, 3), GREY, np.uint8) if pixels is None else pixels).save(path, compress_level=1)
        height, width = SIZE if pixels is None else pixels.shape[:2]
        image = NewImage(key=path.stem, name=path.name, source=str(path), width=width, height=height, rank=rank, round=round)
        return self.store.add_images([image])[0].id


def start_site(folder: Path, settings: AnnotateConfig | None = None) -> Iterator[Site]:
    """Yields a running site; the model is loaded by `load_disc_sam`."""
    real, encoding.load_sam = encoding.load_sam, load_disc_sam  # type: ignore[assignment]
    try:
        site = Site(folder, replace(settings or AnnotateConfig(annotator="anna", prefetch=0), port=0))
        site.use_model()
        site.store.set_work(Work("annotate"))
        with site.server:
            yield site
    finally:
        encoding.load_sam = real


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server for one annotator, shared by the tests of a module; each test adds the images that it needs."""
    yield from start_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def desk(chromium: Any, site: Site) -> Iterator[Desk]:
    """A page of a person who has been here before."""
    context = chromium.new_context(viewport={"width": 1200, "height": 760})
    context.add_init_script("localStorage.setItem('samtrain-coach-seen', '1')")
    desk = Desk(context.new_page(), site.url)
    desk.page.set_default_timeout(45_000)
    yield desk
    context.close()
    assert desk.errors == []
