"""A real Chromium for the tests of the annotation page; without it they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import samtrain

STATIC = Path(samtrain.__file__).parent / "annotator" / "static"
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css"}


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """One browser for all tests; each test opens contexts of its own."""
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: pip install samtrain[dev]")
    path = next((found for name in CHROMIUM if (found := shutil.which(name))), None)
    if path is None:
        pytest.skip("there is no Chromium: apt-get install chromium")
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
