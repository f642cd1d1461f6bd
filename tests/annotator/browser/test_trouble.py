"""What goes wrong in a real browser: servers that die, answers that come late, leases that are lost, images of any size."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser_site import Site, start_site
from disc_sam import may_encode
from page_driver import Desk, let_go
from PIL import Image

from samtrain.annotator.config import AnnotateConfig, ServeConfig
from samtrain.annotator.store import Model, NewImage, NewMask, Work, open_store

pytestmark = pytest.mark.browser
COMPLAINTS = """
The 12 complaints about browser annotators of our survey, and the test that accepts each:

 1 the encoder is slow, and the page freezes       test_01_the_page_works_while_the_encoder_is_busy
 2 failures without a word                         test_02_each_failure_is_shown_with_its_cause
 3 embeddings are made again and again             test_03_a_second_visit_encodes_nothing
 4 large images                                    test_04_large_images
 5 no undo; stale answers win                      test_05_answers_out_of_order, and test_work.py: undo and redo
 6 lost work                                       test_06_a_killed_server_loses_nothing, and test_work.py: a reload
 7 no refinement of existing masks                 test_work.py: test_an_old_mask_is_refined_by_clicks_and_undone
 8 no preview, no choice of whole and part         test_08_previews, and test_work.py: three candidates
 9 masks shift                                     test_09_masks_do_not_shift, and test_work.py: what is accepted
10 masks cannot be seen on the image               test_10_a_mask_is_seen_on_an_image_of_its_own_colour
11 one's own model, and a loop that retrains       test_11_the_model_is_swapped_under_an_open_page
12 two people on one image                         test_12_two_people_never_share_an_image
"""


def is_blue(pixel: list[int]) -> bool:
    """The mask in work."""
    return pixel[2] > pixel[0] + 30


def is_grey(pixel: list[int]) -> bool:
    return max(pixel) - min(pixel) < 12


def rectangle(size: tuple[int, int], left: int, top: int, width: int, height: int, **values: Any) -> NewMask:
    """A rectangle as uncompressed runs, however large the image is."""
    rows, columns = size
    runs = [left * rows + top, *[height, rows - height] * (width - 1), height]
    return NewMask(segmentation={"size": list(size), "counts": [*runs, rows * columns - sum(runs)]}, **values)


@pytest.fixture
def busy_encoder() -> Iterator[threading.Event]:
    """The encoder does not get on until this event is set."""
    may_encode.clear()
    yield may_encode
    may_encode.set()


# ---- the twelve complaints


def test_01_the_page_works_while_the_encoder_is_busy(desk: Desk, site: Site, busy_encoder: threading.Event) -> None:
    """Progress is shown, the brush and the zoom work at once, and an early click gets its mask when it can."""
    desk.open(site.add_image(), encoded=False)
    assert "encoder" in desk.text("encoding")
    desk.click(320, 240, wait=False)
    assert desk.text("now-text") == "The model is looking …"
    desk.press("z", "b")
    desk.drag((100, 100), (200, 100))
    assert is_blue(desk.pixel(150, 100))
    desk.press("Escape", "p")
    desk.click(320, 240, wait=False)
    desk.page.mouse.wheel(0, -100)
    assert desk.page.get_by_test_id("encoding").is_visible() and desk.text("now-text") == "The model is looking …"
    busy_encoder.set()
    desk.wait_for_mask()
    assert is_blue(desk.pixel(345, 260))
    desk.page.get_by_test_id("encoding").wait_for(state="hidden")


def test_02_each_failure_is_shown_with_its_cause(desk: Desk, site: Site) -> None:
    """An image that cannot be read, a model that refuses, and a save that is refused."""
    broken = site.add_image()
    Path(site.store.image(broken).source).write_bytes(b"not an image")
    desk.page.goto(f"{site.url}/#image={broken}")
    desk.wait("() => document.body.dataset.screen === 'work'")
    assert "image_" in desk.message("encoding") and "brush" in desk.message("encoding")
    image = site.add_image()
    desk.open(image)
    refusal = {"status": 400, "content_type": "application/json", "body": '{"error": "the model is on fire"}'}
    desk.page.route("**/prompts", lambda route: route.fulfill(**refusal))
    desk.click(320, 240, wait=False)
    assert desk.message("refused") == "The model gave no mask: The model is on fire."
    desk.page.unroute("**/prompts")
    desk.press("Enter")  # asks once more
    desk.wait_for_mask()
    desk.page.route("**/masks", lambda route: route.fulfill(**refusal))
    desk.press("Enter")
    desk.wait("() => document.querySelector('#masks .failed')")
    desk.message("refused", "This mask was not saved: The model is on fire.")
    desk.page.unroute("**/masks")
    desk.page.get_by_text("Save again").click()
    desk.wait_saved()
    desk.page.wait_for_selector("[data-testid=mask][data-id]")
    assert len(site.store.masks(image)) == 1


def test_03_a_second_visit_encodes_nothing(desk: Desk, site: Site) -> None:
    image = site.add_image()
    desk.open(image)
    encoder = site.server.service.encoder
    encoded = encoder.counts["encoded"]
    assert encoded > 0
    encoder._prepared.clear()  # as after a restart: only the disk knows
    desk.page.reload()
    desk.ready(image)
    desk.click(320, 240)
    assert encoder.counts["encoded"] == encoded


@pytest.mark.parametrize("size", [(4000, 5000), (10_000, 10_000)], ids=["20 megapixels", "100 megapixels"])
def test_04_large_images(desk: Desk, site: Site, size: tuple[int, int]) -> None:
    """Tiles are shown, clicks answered, masks painted, zoomed and stored, without a bitmap of the whole image."""
    path = site.folder / f"large_{size[0]}.jpg"
    Image.new("L", size[::-1], 110).save(path)
    image = site.store.add_images([NewImage(key=path.stem, source=str(path), width=size[1], height=size[0])])[0].id
    side = size[0] // 2
    site.store.accept(image, "anna", rectangle(size, size[1] // 2, 0, side, side))  # a quarter of the image
    desk.page.set_default_timeout(60_000)
    desk.open(image)
    desk.click(size[1] // 4, size[0] // 2)
    assert is_blue(desk.pixel(size[1] // 4 + 150, size[0] // 2 + 150))
    place = desk.at(size[1] // 4, size[0] // 2)
    desk.page.mouse.move(*place)
    for _ in range(6):
        desk.page.mouse.wheel(0, -400)
    desk.wait(
        "() => { const { view, whole } = document.querySelector('canvas').dataset;"
        " return Boolean(whole) && view.split(' ')[0] > 1.5; }"
    )
    assert is_blue(desk.pixel(size[1] // 4 + 10, size[0] // 2 + 10))
    desk.press("b")
    start = (size[1] // 4, size[0] // 2)
    desk.drag(start, (start[0] + 40, start[1] + 30))
    desk.press("p", "0")
    desk.accept()
    masks = site.store.masks(image)
    assert len(masks) == 2 and masks[1].area > 1000
    heap = "() => performance.memory ? performance.memory.usedJSHeapSize / 2 ** 20 : 0"
    assert desk.page.evaluate(heap) < 100, "a mask of 25 megapixels is not kept as a bitmap"


def test_05_answers_out_of_order(desk: Desk, site: Site) -> None:
    """The answer to the first click comes after that to the second, and again after an undo."""
    desk.open(site.add_image())
    held: list[Any] = []

    def hold(route: Any) -> None:
        question = json.loads(route.request.post_data)
        if len(question["points"]) == 1 and not question.get("preview"):
            held.append(route)
        else:
            route.continue_()

    desk.page.route("**/prompts", hold)
    desk.click(200, 240, wait=False)
    desk.click(420, 240, wait=False)
    desk.wait_for_mask()
    two = desk.pixels((200, 260), (420, 260))
    assert [is_blue(pixel) for pixel in two] == [True, True]
    for route in held:
        let_go(route)
    desk.page.wait_for_timeout(300)
    assert desk.pixels((200, 260), (420, 260)) == two
    desk.press("z", "z")
    desk.wait_for_mask("none")
    for route in held[1:]:
        let_go(route)
    desk.page.wait_for_timeout(300)
    assert is_grey(desk.pixel(200, 260))


@pytest.fixture
def killable(tmp_path: Path) -> Iterator[Any]:
    """Starts servers in processes of their own, one after another, on one store and one port."""
    config = ServeConfig(
        annotate=AnnotateConfig(annotator="anna", port=0),
        store=f"sqlite:///{tmp_path}/annotations.db",
        embeddings=str(tmp_path / "emb"),
    )
    running: list[subprocess.Popen[str]] = []

    def start(port: int = 0) -> tuple[subprocess.Popen[str], str]:
        path = tmp_path / "serve.json"
        path.write_text(replace(config, annotate=replace(config.annotate, port=port)).to_json())
        command = [sys.executable, str(Path(__file__).with_name("serve_discs.py")), str(path)]
        root = str(Path(__file__).resolve().parents[3])
        process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": root}
        )
        running.append(process)
        assert process.stdout is not None
        return process, json.loads(process.stdout.readline())["url"]

    with open_store(config.store) as store:
        store.set_model(Model(str(tmp_path / "discs_24"), "digest", "discs"))
        store.set_work(Work("annotate"))
        yield start, store
    for process in running:
        process.kill()
        process.wait()


def test_06_a_killed_server_loses_nothing(desk: Desk, killable: Any, tmp_path: Path) -> None:
    """SIGKILL in the middle: the store holds what was accepted, the page says what is wrong and recovers by itself."""
    start, store = killable
    Image.new("RGB", (640, 480), (110, 110, 110)).save(tmp_path / "image.png")
    image = store.add_images([NewImage(key="image", source=str(tmp_path / "image.png"), width=640, height=480)])[0].id
    process, desk.url = start()
    desk.open(image)
    desk.click(200, 240)
    desk.accept()
    desk.click(400, 240)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert len(store.masks(image)) == 1
    desk.press("Enter")
    assert "does not answer" in desk.message("trouble", "One change waits to be saved")
    assert desk.text("saving") == "saving"
    start(int(desk.url.rpartition(":")[2]))
    desk.page.get_by_test_id("saving").wait_for(state="hidden", timeout=60_000)
    assert desk.page.get_by_test_id("message-trouble").count() == 0
    assert [mask.point_coords for mask in store.masks(image)] == [[[200, 240]], [[400, 240]]]
    desk.click(320, 100)
    desk.accept()
    assert len(store.masks(image)) == 3


def test_08_previews(desk: Desk, site: Site) -> None:
    """The mask under the pointer is shown without a click, one question at a time, and not while dragging."""
    flying, most, asked = 0, 0, []

    def begin(request: Any) -> None:
        nonlocal flying, most
        if "prompts" in request.url and json.loads(request.post_data).get("preview"):
            flying, most = flying + 1, max(most, flying + 1)
            asked.append(request)

    def end(request: Any) -> None:
        nonlocal flying
        flying -= request in asked

    for kind, listener in (("request", begin), ("requestfinished", end), ("requestfailed", end)):
        desk.page.on(kind, listener)
    desk.open(site.add_image())
    desk.page.mouse.move(*desk.at(320, 240))
    for _ in range(100):
        if is_blue(desk.pixel(345, 260)):
            break
    assert is_blue(desk.pixel(345, 260))
    for i in range(40):
        desk.page.mouse.move(*desk.at(200 + 5 * i, 240))
    desk.page.wait_for_timeout(300)
    assert most == 1 and len(asked) >= 2
    count = len(asked)
    desk.drag((100, 100), (200, 200))
    desk.press("Escape")
    desk.page.mouse.move(5, 5)
    assert len(asked) <= count + 1
    assert is_grey(desk.pixel(395, 260))


def test_09_masks_do_not_shift(desk: Desk, site: Site) -> None:
    """The painted edge lies where the image's edge is, at any zoom, to one pixel of the image."""
    pixels = np.full((480, 640, 3), 110, np.uint8)
    pixels[100:300, 200:400] = 200
    image = site.add_image(pixels)
    site.store.accept(image, "anna", rectangle((480, 640), 200, 100, 200, 200))
    desk.open(image)
    for _ in range(3):
        inside, outside = desk.pixels((202, 102), (196, 96))
        assert inside[1] > inside[0] + 20 and is_grey(outside) and outside[0] < 150
        place = desk.at(200, 100)
        desk.page.mouse.move(*place)
        desk.page.mouse.wheel(0, -500)
        desk.page.wait_for_timeout(250)


@pytest.mark.parametrize("colour", [(52, 211, 153), (255, 255, 255), (0, 0, 0), (56, 152, 255)])
def test_10_a_mask_is_seen_on_an_image_of_its_own_colour(desk: Desk, site: Site, colour: tuple[int, int, int]) -> None:
    image = site.add_image(np.full((480, 640, 3), colour, np.uint8))
    site.store.accept(image, "anna", rectangle((480, 640), 200, 100, 200, 200))
    desk.open(image)
    for _ in range(3):
        line = np.array(desk.pixels(*[(x / 2, 200) for x in range(380, 420)]), dtype=int)
        assert np.abs(line - line[0]).sum(axis=1).max() > 120
        desk.press("c")


def test_11_the_model_is_swapped_under_an_open_page(desk: Desk, site: Site) -> None:
    """A round closes, the engine trains, a better model comes: no reload, and the prompts in work stay."""
    image = site.add_image()
    desk.open(image)
    desk.click(320, 240)
    assert is_grey(desk.pixel(392, 240))
    site.store.set_work(Work("training", round=2, stage=1, message="Training round 2 of 6."))
    desk.wait("() => document.querySelector('[data-testid=status-round]')")
    site.use_model(32)
    desk.message("model", "newer model")
    desk.wait("() => document.querySelector('[data-testid=status-model]').textContent.includes('discs of 32')")
    desk.wait_for_mask()
    for _ in range(100):
        if is_blue(desk.pixel(392, 240)):
            break
    assert is_blue(desk.pixel(392, 240)), "the same click, answered by the new model"
    desk.accept()
    assert site.store.masks(image)[0].model == "digest-32"
    site.store.set_work(Work("annotate", round=3, stage=1, message="Take more time."))
    desk.page.get_by_test_id("work-note").wait_for()
    assert desk.text("work-note") == "Take more time."
    site.use_model()


def test_12_two_people_never_share_an_image(chromium: Any, tmp_path: Path) -> None:
    """Each gets an image of their own; an image that somebody holds is not opened; a late save is refused visibly."""
    for site in start_site(tmp_path, AnnotateConfig(annotators=["anna", "ben"], prefetch=0, lease_seconds=600)):
        first, second = site.add_image(rank=1), site.add_image(rank=2)
        tokens = {name: site.store.add_annotator(name) for name in ("anna", "ben")}
        contexts = [chromium.new_context(viewport={"width": 1000, "height": 700}) for _ in tokens]
        anna, ben = (Desk(context.new_page(), site.url) for context in contexts)
        for desk, name in ((anna, "anna"), (ben, "ben")):
            desk.page.goto(site.url)
            assert desk.text("cover-title") == "Who are you?" or desk.page.wait_for_timeout(300) is None
            desk.page.goto(f"{site.url}/?in#token={tokens[name]}")
            desk.ready()
            assert desk.text("annotator") == name
            assert tokens[name] not in desk.page.url
        assert (anna.page.url.rpartition("=")[2], ben.page.url.rpartition("=")[2]) == (str(first), str(second))
        ben.press("i")
        ben.page.locator(f"[data-testid=image][data-id='{first}']").click()
        assert "anna" in ben.message("open").lower()
        anna.click(320, 240)
        ben.click(320, 240)
        ben.accept()
        # anna's lease ends, and ben takes the image
        token = site.store.lease(first, "anna", 600).token
        site.store.release(first, token)
        site.store.lease(first, "ben", 600)
        anna.press("Enter")
        assert anna.message("lease").startswith("This mask was not saved: Ben works on image")
        assert not anna.page.get_by_test_id("message-refused").count(), "one message says it"
        assert site.store.masks(first) == []
        assert anna.page.locator("#masks .failed").count() == 1
        anna.page.get_by_role("button", name="Next image").click()
        anna.page.wait_for_selector("body[data-screen=waiting]")
        assert anna.text("cover-title") == "Others have the last images"
        assert len(site.store.masks(second)) == 1
        for context in contexts:
            context.close()


# ---- rounds, review, first visit


def test_waiting_while_a_round_trains_goes_on_by_itself(chromium: Any, tmp_path: Path) -> None:
    for site in start_site(tmp_path):
        site.store.set_work(Work("training", round=2, stage=1, message="Training round 2 of 6 on 120 masks."))
        context = chromium.new_context()
        desk = Desk(context.new_page(), site.url)
        desk.page.goto(site.url)
        desk.page.wait_for_selector("body[data-screen=waiting]")
        assert "Training round 2" in desk.text("cover-title")
        assert "You can stay on this page" in desk.text("cover-text")
        image = site.add_image()
        site.store.set_work(Work("annotate", round=3, stage=1))
        desk.ready(image)
        context.close()


def test_review_in_the_servers_order(desk: Desk, site: Site) -> None:
    """A: right. R: wrong. Clicks correct a mask, Enter accepts the correction; each shows the next mask."""
    image = site.add_image()
    masks = [rectangle((480, 640), 40 + 200 * i, 200, 100, 100, origin="imported") for i in range(3)]
    site.store.add_masks(image, "engine", masks)
    site.store.set_work(Work("review"))
    desk.page.goto(f"{site.url}/#image={image}")
    desk.ready(image)
    assert desk.page.locator("[data-testid=mask][aria-pressed=true]").count() == 1
    first = desk.text("now-title")
    desk.press("a")
    assert desk.text("now-title") != first
    desk.press("r")
    desk.wait_saved()
    assert desk.masks("rejected") == 1
    desk.press("0")  # the whole image: each mask was shown close up
    desk.page.wait_for_timeout(100)
    desk.click(320, 100)
    desk.accept()
    desk.message("review", "All masks of this image are checked")
    states = sorted(mask.state for mask in site.store.masks(image, ["accepted", "rejected"]))
    assert states == ["accepted", "accepted", "rejected"]
    assert sum(mask.origin == "refined" for mask in site.store.masks(image)) == 1
    site.store.set_work(Work("annotate"))


def test_a_newcomer_makes_three_masks_by_what_the_page_says(chromium: Any, site: Site) -> None:
    site.store.set_work(Work("annotate"))
    context = chromium.new_context(viewport={"width": 1200, "height": 760})
    desk = Desk(context.new_page(), site.url).open(site.add_image())
    steps = desk.page.locator("#coach-steps li")

    def now() -> str:
        return desk.page.locator("#coach-steps li.now").inner_text()

    assert "Click an object" in now()
    desk.click(120, 120)
    assert "right-click" in now()
    desk.click(160, 120, button="right")
    assert "Enter" in now()
    desk.accept()
    desk.page.reload()
    desk.ready()
    assert "1 of 3" in steps.nth(2).inner_text()
    for x in (320, 520):
        desk.click(x, 300)
        desk.accept()
    assert "Press N" in now() and steps.count() == 4
    desk.page.get_by_test_id("coach-close").click()
    desk.page.reload()
    desk.ready()
    assert desk.page.get_by_test_id("coach").is_hidden()
    context.close()


def test_the_clock_warns_gently_and_can_be_switched_off(desk: Desk, site: Site) -> None:
    image = site.add_image()
    site.store.set_work(Work("annotate", settings={"seconds_per_mask": 1}))
    desk.open(image)
    desk.message("clock", "N goes on")
    assert "over" in desk.page.get_by_test_id("clock").get_attribute("class")
    desk.click(320, 240)
    desk.accept()  # it warns, it does not stop anybody
    site.store.set_work(Work("annotate", settings={"seconds_per_mask": 0}))
    desk.page.reload()
    desk.ready(image)
    desk.page.wait_for_timeout(1300)
    assert desk.page.get_by_test_id("message-clock").count() == 0
    site.store.set_work(Work("annotate"))


def test_the_status_bar_answers_what_people_ask(desk: Desk, site: Site) -> None:
    site.store.set_work(Work("annotate", round=2, stage=1))
    desk.open(site.add_image())
    desk.wait("() => document.querySelector('[data-testid=status-round]')")
    assert desk.text("status-round").split()[-3:] == ["2", "(stage", "1)"]
    assert "0.710" in desk.text("status-metric") and "discs of 24" in desk.text("status-model")
    before = int(desk.text("status-masks").split()[-1])
    desk.click(320, 240)
    desk.accept()
    desk.wait(f"() => document.querySelector('[data-testid=status-masks] dd').textContent === '{before + 1}'")
    assert "Seconds per mask" in desk.text("status")
    site.store.set_work(Work("annotate"))
