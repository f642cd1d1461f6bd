"""A real Chromium and a real server for the tests of the annotation page; without Chromium they are skipped."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="needs the extra annotate")
sync_api = pytest.importorskip("playwright.sync_api", reason="needs Playwright, which is in the extra dev")

from browser_site import STATIC, Site, start_site  # noqa: E402
from page_driver import Desk  # noqa: E402

from samtrain.annotator.store import Work  # noqa: E402

CHROMIUM = ("chromium", "chromium-browser", "google-chrome")
TYPES = {".js": "text/javascript", ".html": "text/html", ".css": "text/css"}


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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A server for one annotator, shared by the tests of a module; each test adds the images that it needs."""
    yield from start_site(tmp_path_factory.mktemp("site"))


@pytest.fixture
def desk(chromium: Any, site: Site) -> Iterator[Desk]:
    """A page of a person who has been here before."""
    site.store.set_work(Work("annotate"))  # whatever the test before has left
    context = chromium.new_context(viewport={"width": 1200, "height": 760})
    context.add_init_script("localStorage.setItem('samtrain-coach-seen', '1')")
    desk = Desk(context.new_page(), site.url)
    desk.page.set_default_timeout(45_000)
    yield desk
    context.close()
    assert desk.errors == []
