"""Times the annotator's page in a real browser: click to painted mask, previews per second, and opening a full store.

The server runs in a process of its own with a ViT-B of random weights unless --checkpoint names a model, and headless Chromium
shares the machine with it. The clock is the page's: from the release of the button to the frame that shows the mask.
"""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from annotate import POOL_IMAGES, POOL_MASKS, SIZE, prepare, random_mask, random_vit_b, server, spread, store_url, write_image
from paired import arguments, machine
from playwright.sync_api import sync_playwright

from samtrain.annotator.store import NewImage, open_store

WATCH = """() => {
    const canvas = document.querySelector("canvas");
    window.shown = [];
    window.previews = 0;
    let released = null;
    canvas.addEventListener("pointerup", () => (released = performance.now()), true);
    canvas.addEventListener("painted", () => {
        if (released === null || canvas.dataset.painted !== "shown") return;
        window.shown.push(performance.now() - released);
        released = null;
    });
    const send = window.fetch;
    window.fetch = async (path, options) => {
        const answer = await send(path, options);
        if (answer.ok && options?.body?.includes('"preview":true')) window.previews++;
        return answer;
    };
}"""


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--checkpoint", type=Path, default=None, help="any SAM; without it a ViT-B of random weights")
    parser.add_argument("--clicks", type=int, default=50)
    options = parser.parse_args()
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        checkpoint = options.checkpoint or random_vit_b(Path(folder))
        found = time_clicks(Path(folder) / "clicks", checkpoint, browser, options.clicks)
        found |= time_opening(Path(folder) / "pool", checkpoint, browser)
    for name, value in found.items():
        print(f"{name}: {value}")
    if options.json is not None:
        content = {"benchmark": "annotate_browser", "machine": machine(), "clicks": options.clicks, "results": found}
        options.json.write_text(json.dumps(content, indent=1) + "\n")


def time_clicks(folder: Path, checkpoint: Path, browser: Any, clicks: int) -> dict[str, float]:
    """Times first clicks of objects, and counts previews while the pointer moves for five seconds."""
    prepare(folder, checkpoint, [write_image(folder / "image.png", SIZE)])
    rng = np.random.default_rng(0)
    with server(folder) as url:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(600_000)
        page.add_init_script("localStorage.setItem('samtrain-coach-seen', '1')")
        page.goto(url)
        page.wait_for_selector("body[data-screen=work]")
        page.wait_for_selector("[data-testid=encoding]", state="hidden")
        page.evaluate(WATCH)
        frame = page.get_by_test_id("canvas").bounding_box()
        places = [
            (frame["x"] + frame["width"] * x, frame["y"] + frame["height"] * y)
            for x, y in rng.uniform(0.2, 0.8, (clicks + 3, 2))
        ]
        for number, place in enumerate(places, start=1):
            page.mouse.click(*place)
            while page.evaluate("window.shown.length") < number:
                page.wait_for_timeout(5)
            page.keyboard.press("Escape")
            page.wait_for_timeout(50)
        times = [value / 1000 for value in page.evaluate("window.shown")[3:]]  # three to warm up
        before, begin = page.evaluate("window.previews"), time.perf_counter()
        while time.perf_counter() - begin < 5:
            x, y = rng.uniform(0.2, 0.8, 2)
            page.mouse.move(frame["x"] + frame["width"] * x, frame["y"] + frame["height"] * y, steps=20)
        rate = (page.evaluate("window.previews") - before) / (time.perf_counter() - begin)
        page.close()
    return {**spread("click to painted mask", times), "previews per second": round(rate, 1)}


def time_opening(folder: Path, checkpoint: Path, browser: Any) -> dict[str, float]:
    """Times opening the page until the image and its masks are painted, with many images and masks in the store."""
    image = write_image(folder / "image.png", SIZE)
    height, width = SIZE
    keys = [f"{number}" for number in range(POOL_IMAGES)]
    images = [NewImage(key=key, source=image.source, width=width, height=height, digest=image.digest) for key in keys]
    prepare(folder, checkpoint, images)
    rng = np.random.default_rng(0)
    with open_store(store_url(folder)) as store:
        for row in store.images():
            store.add_masks(row.id, "somebody", [random_mask(rng, SIZE) for _ in range(POOL_MASKS // POOL_IMAGES)])
    with server(folder) as url:
        times = []
        for _ in range(10):
            context = browser.new_context(viewport={"width": 1440, "height": 900})
            page = context.new_page()
            begin = time.perf_counter()
            page.goto(url)
            page.wait_for_selector("canvas[data-whole='1']")
            page.wait_for_selector("[data-testid=mask]")
            times.append(time.perf_counter() - begin)
            context.close()
    return spread(f"opening the page with {POOL_IMAGES} images and {POOL_MASKS} masks", times)


if __name__ == "__main__":
    main()
