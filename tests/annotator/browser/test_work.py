"""Annotating in a real browser: what people do with mouse and keys, seen in the canvas's pixels and in the store."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from browser_site import start_site
from page_driver import Desk, let_go
from pycocotools import mask as coco

from samtrain.annotator.store import NewMask, Work

pytestmark = pytest.mark.browser
# DiscSam's radius of 24 in its input frame of 256 is 60 pixels of an image of 640 x 480
RADIUS = 60


def decoded(mask: Any) -> np.ndarray:
    size, counts = mask.segmentation["size"], mask.segmentation["counts"]
    return coco.decode({"size": size, "counts": counts.encode() if isinstance(counts, str) else counts}).astype(bool)


def square(left: int, top: int, side: int, **values: Any) -> NewMask:
    mask = np.zeros((480, 640), np.uint8)
    mask[top : top + side, left : left + side] = 1
    found = coco.encode(np.asfortranarray(mask))
    return NewMask(segmentation={"size": [480, 640], "counts": found["counts"].decode()}, **values)


def is_blue(pixel: list[int]) -> bool:
    """The mask in work."""
    return pixel[2] > pixel[0] + 30


def is_green(pixel: list[int]) -> bool:
    """A stored mask."""
    return pixel[1] > pixel[0] + 20


def is_grey(pixel: list[int]) -> bool:
    """The image without a mask; tiles are JPEGs."""
    return max(pixel) - min(pixel) < 12


# ---- clicks, boxes, candidates


def test_a_click_shows_a_mask_and_a_background_click_takes_away(desk: Desk, site: Any) -> None:
    desk.open(site.add_image())
    assert is_grey(desk.pixel(330, 260))
    desk.click(320, 240)
    assert is_blue(desk.pixel(345, 260)) and is_grey(desk.pixel(500, 240))
    desk.click(360, 240, button="right")
    assert is_grey(desk.pixel(360, 260)) and is_blue(desk.pixel(290, 260))
    desk.click(280, 240, held="Alt")  # the same, for those without a right button
    assert is_grey(desk.pixel(280, 260))
    assert desk.text("now-text") == "1 click, 2 background clicks."


def test_a_drag_is_a_box(desk: Desk, site: Any) -> None:
    desk.open(site.add_image())
    desk.drag((100, 100), (300, 200))
    inside, outside = desk.pixels((150, 150), (350, 150))
    assert is_blue(inside) and is_grey(outside)
    assert desk.text("now-text") == "A box."


def test_three_candidates_by_number_tab_and_button(desk: Desk, site: Any) -> None:
    """The best one is shown first; the others are smaller and larger."""
    desk.open(site.add_image())
    desk.click(320, 240)

    def shown() -> list[bool]:
        return [is_blue(pixel) for pixel in desk.pixels((340, 250), (370, 250), (400, 250))]

    assert shown() == [True, True, False]
    assert desk.text("candidates").split() == ["1", "0.60", "2", "0.90", "3", "0.70"]
    desk.press("3")
    assert shown() == [True, True, True]
    desk.press("Tab")
    assert shown() == [True, False, False]
    desk.page.get_by_test_id("candidate-2").click()
    assert shown() == [True, True, False]
    desk.press("z")
    assert shown() == [True, True, False], "choices in a row are one step, and the first choice was the second candidate"


def test_a_background_click_alone_says_how_to_begin(desk: Desk, site: Any) -> None:
    desk.open(site.add_image())
    desk.click(320, 240, button="right", wait=False)
    desk.message("hint", "Begin with a left click")


def test_selecting_where_no_mask_is_says_so(desk: Desk, site: Any) -> None:
    desk.open(site.add_image())
    desk.click(320, 240, held="Shift")
    desk.message("hint", "There is no mask here")


# ---- brush, eraser, undo


def test_brush_and_eraser_with_their_width(desk: Desk, site: Any) -> None:
    desk.open(site.add_image())
    desk.press("b")
    width = float(desk.text("radius-text").split()[0])
    desk.press("]", "]")
    assert float(desk.text("radius-text").split()[0]) > width
    desk.page.mouse.move(*desk.at(200, 200))
    desk.page.keyboard.down("Shift")
    desk.page.mouse.wheel(0, -100)
    desk.page.keyboard.up("Shift")
    desk.page.get_by_test_id("radius").fill("20")
    desk.drag((100, 100), (300, 100))
    seen = desk.pixels((200, 110), (200, 130), (315, 100), (330, 100))
    assert [is_blue(pixel) for pixel in seen] == [True, False, True, False], "20 pixels to each side, with round ends"
    desk.press("e")
    desk.drag((200, 60), (200, 140))
    desk.page.mouse.move(*desk.at(400, 300))
    assert [is_blue(pixel) for pixel in desk.pixels((200, 100), (150, 100), (250, 100))] == [False, True, True]
    desk.press("p")
    desk.accept()
    [mask] = site.store.masks(int(desk.page.url.rpartition("=")[2]))
    assert (mask.origin, len(mask.strokes)) == ("drawn", 2)


def test_undo_and_redo_bring_back_each_click_and_stroke(desk: Desk, site: Any) -> None:
    """After each step the canvas shows what it showed before, to the pixel."""
    desk.open(site.add_image())
    places = [(x, y) for x in range(60, 600, 20) for y in range(60, 420, 20)]

    def looks(state: str = "shown") -> Any:
        desk.wait_for_mask(state)
        return desk.pixels(*places)

    seen = [looks("none")]
    desk.click(320, 240)
    seen.append(looks())
    desk.click(380, 240)
    seen.append(looks())
    desk.press("b")
    desk.drag((100, 100), (200, 100))
    desk.press("p")
    seen.append(looks())
    desk.press("e")
    desk.drag((300, 200), (340, 280))
    desk.press("p")
    seen.append(looks())
    assert len({str(each) for each in seen}) == 5
    desk.page.mouse.move(5, 5)
    for before in seen[3::-1]:
        desk.press("z")
        assert looks("none" if before is seen[0] else "shown") == before
    for after in seen[1:]:
        desk.press("Control+Shift+z")
        assert looks() == after


# ---- accepting and what is stored


def test_what_is_accepted_is_what_was_seen(desk: Desk, site: Any) -> None:
    """Complaint 9: the store holds the pixels that were shown, with the story of how they came about."""
    image = site.add_image()
    desk.open(image)
    desk.click(320, 240)
    desk.click(360, 240, button="right")
    desk.accept()
    assert desk.masks() == 1
    [mask] = site.store.masks(image)
    pixels = decoded(mask)
    rows, columns = np.mgrid[:480, :640] + 0.5
    ideal = (np.hypot(columns - 320.5, rows - 240.5) < RADIUS) & (np.hypot(columns - 360.5, rows - 240.5) > RADIUS / 2)
    assert (pixels & ideal).sum() / (pixels | ideal).sum() > 0.97
    inside, outside = desk.pixels((290, 240), (345, 240))
    assert is_green(inside) and not is_green(outside)
    assert (mask.point_coords, mask.point_labels) == ([[320, 240], [360, 240]], [1, 0])
    assert (mask.origin, mask.model, mask.annotator) == ("clicked", "digest-24", "anna")
    assert mask.predicted_iou == pytest.approx(0.9)
    assert [event["kind"] for event in mask.story] == ["point", "point"]
    assert 0 <= mask.story[0]["time"] <= mask.story[1]["time"] <= mask.seconds < 10
    assert site.store.draft(image, "anna") is None


def test_escape_drops_and_enter_waits_for_the_answer(desk: Desk, site: Any) -> None:
    image = site.add_image()
    desk.open(image)
    desk.click(320, 240)
    desk.press("Escape")
    desk.wait_for_mask("none")
    assert is_grey(desk.pixel(345, 260))
    held: list[Any] = []
    desk.page.route("**/prompts", lambda route: held.append(route))
    desk.click(320, 240, wait=False)
    desk.press("Enter")  # before the mask is there
    assert "as soon as" in desk.text("now-text")
    for route in held:
        let_go(route)
    desk.page.wait_for_selector("[data-testid=mask][data-id]")
    assert len(site.store.masks(image)) == 1


def test_touching_objects_are_kept_apart_by_one_switch(desk: Desk, site: Any) -> None:
    image = site.add_image()
    desk.open(image)
    desk.click(280, 240)
    desk.accept()
    desk.press("d")
    desk.click(360, 240)
    desk.accept()
    one, other = map(decoded, site.store.masks(image))
    assert not (one & other).any()
    assert one.sum() > other.sum() > 0


def test_labels_are_asked_for_only_if_wanted_and_shown_as_text(desk: Desk, site: Any) -> None:
    """A label that looks like HTML stays text."""
    image = site.add_image()
    desk.open(image)
    desk.click(320, 240)
    assert desk.page.get_by_test_id("label").is_hidden()
    desk.press("Escape")
    site.store.set_work(Work("annotate", settings={"labels": True}))
    desk.page.reload()
    desk.ready(image)
    desk.click(320, 240)
    desk.page.get_by_test_id("label").fill("<img src=x onerror=alert(1)>")
    desk.press("Enter", "Enter")
    desk.wait_saved()
    site.store.set_work(Work("annotate"))
    assert "<img src=x onerror=alert(1)>" in desk.text("masks")
    assert desk.page.locator("aside img").count() == 0
    assert site.store.masks(image)[0].label == "<img src=x onerror=alert(1)>"


# ---- masks that are there


def test_an_old_mask_is_refined_by_clicks_and_undone(desk: Desk, site: Any) -> None:
    """Complaint 7: the mask goes to the model as its mask prompt."""
    image = site.add_image()
    old = site.store.accept(image, "anna", square(100, 100, 120))
    asked = []
    desk.page.on("request", lambda request: "prompts" in request.url and asked.append(json.loads(request.post_data)))
    desk.open(image)
    assert is_green(desk.pixel(150, 150))
    desk.click(150, 150, held="Shift")
    assert desk.text("now-title") == "Mask 1"
    desk.click(240, 160)
    asked = [each for each in asked if not each.get("preview")]
    assert asked[-1]["mask"]["size"] == [480, 640] and asked[-1]["points"] == [[240, 160]]
    assert [is_blue(pixel) for pixel in desk.pixels((130, 130), (270, 170), (400, 170))] == [True, True, False]
    desk.accept()
    [mask] = site.store.masks(image)
    assert (mask.id, mask.origin, mask.revision > old.revision) == (old.id, "refined", True)
    assert decoded(mask).sum() > decoded(old).sum()
    desk.press("z")
    desk.wait_for_mask()
    desk.wait_saved()
    assert (decoded(site.store.masks(image)[0]) == decoded(old)).all()


def test_an_old_mask_is_repainted_and_deleted_and_restored(desk: Desk, site: Any) -> None:
    image = site.add_image()
    site.store.accept(image, "anna", square(100, 100, 120))
    desk.open(image)
    desk.page.get_by_test_id("mask").click()
    desk.press("e")
    desk.drag((80, 160), (240, 160))
    desk.press("p")
    desk.accept()
    [mask] = site.store.masks(image)
    assert not decoded(mask)[160, 150] and decoded(mask)[110, 150]
    desk.click(150, 110, held="Shift")
    desk.press("Delete")
    desk.wait_saved()
    assert (desk.masks(), site.store.masks(image)) == (0, [])
    assert is_grey(desk.pixel(150, 110))
    desk.press("z")
    desk.wait_saved()
    assert (desk.masks(), len(site.store.masks(image))) == (1, 1)
    desk.press("y")
    desk.wait_saved()
    assert site.store.masks(image) == []


def test_an_accepted_mask_is_undone_with_its_prompts_and_redone(desk: Desk, site: Any) -> None:
    image = site.add_image()
    desk.open(image)
    desk.click(320, 240)
    desk.accept()
    desk.press("z")
    desk.wait_for_mask()
    desk.wait_saved()
    assert (desk.masks(), site.store.masks(image), desk.text("now-text")) == (0, [], "1 click.")
    desk.press("y")
    desk.wait_for_mask("none")
    desk.wait_saved()
    assert len(site.store.masks(image)) == 1
    desk.press("z")
    desk.wait_for_mask()
    desk.click(400, 240)
    desk.accept()  # another mask, and not the old one once more
    assert [mask.point_coords for mask in site.store.masks(image)] == [[[320, 240], [400, 240]]]


def test_locked_masks_are_rejected_and_taken_back_but_not_changed(desk: Desk, site: Any) -> None:
    image = site.add_image()
    site.store.add_masks(image, "engine", [square(100, 100, 120, origin="prefilled", locked=True)])
    desk.open(image)
    pixel = desk.pixels(*[(x, 150) for x in range(130, 140)])
    assert any(each[2] > each[1] + 15 for each in pixel), "violet, unlike masks of people"
    desk.click(150, 150, held="Shift")
    assert "locked" in desk.text("now-text")
    desk.press("Delete")
    desk.message("hint", "cannot be deleted")
    desk.press("b")
    desk.drag((150, 150), (170, 150), wait=False)
    desk.message("hint", "locked")
    desk.press("p", "r")
    desk.wait_saved()
    assert (desk.masks("rejected"), len(site.store.masks(image, ["rejected"]))) == (1, 1)
    desk.page.get_by_test_id("reject").click()
    desk.wait_saved()
    assert len(site.store.masks(image)) == 1


# ---- images


def test_done_skip_and_the_end(desk: Desk, chromium: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    for own in start_site(tmp_path_factory.mktemp("three")):
        first, second = own.add_image(rank=1), own.add_image(rank=2)
        desk.url = own.url
        desk.open()
        desk.press("n")
        desk.message("sure", "no mask")
        desk.click(320, 240)
        desk.press("n")
        desk.message("sure", "not accepted yet")
        desk.accept()
        desk.press("n")
        desk.ready(second)
        desk.press("ArrowLeft")
        desk.ready(first)
        assert desk.masks() == 1
        desk.press("n")
        desk.ready(second)
        desk.page.get_by_test_id("skip").click()
        desk.page.wait_for_selector("body[data-screen=finished]")
        assert desk.text("cover-title") == "All images are done"
        assert [own.store.image(each).state for each in (first, second)] == ["done", "skipped"]
        third = own.add_image(rank=3)
        desk.ready(third)  # without a reload


def test_the_list_opens_any_image(desk: Desk, site: Any) -> None:
    one, other = site.add_image(rank=50), site.add_image(rank=51)
    desk.open(one)
    desk.page.get_by_test_id("images").click()
    desk.page.locator(f"[data-testid=image][data-id='{other}']").click()
    desk.ready(other)


def test_a_second_key_answers_only_the_question_that_was_asked(desk: Desk, tmp_path_factory: pytest.TempPathFactory) -> None:
    for own in start_site(tmp_path_factory.mktemp("two")):
        first, second = own.add_image(rank=1), own.add_image(rank=2)
        desk.url = own.url
        desk.open()
        desk.press("n")
        desk.message("sure", "no mask")
        desk.press("n")
        desk.ready(second)
        desk.press("n")  # this image was not asked about
        desk.message("sure", "no mask")
        assert [own.store.image(each).state for each in (first, second)] == ["done", "open"]
        desk.click(320, 240)
        desk.press("s")
        desk.message("sure", "Press S again")
        desk.press("n")  # neither was this key
        desk.message("sure", "Press N again")
        assert own.store.image(second).state == "open"


def test_a_reload_brings_the_draft_back_with_its_steps(desk: Desk, site: Any) -> None:
    """Complaint 6: nothing is lost, not even what undo needs; another machine shows the same."""
    image = site.add_image()
    desk.open(image)
    desk.click(320, 240)
    desk.click(380, 240)
    desk.press("b")
    desk.drag((100, 100), (200, 100))
    desk.press("p")
    for _ in range(50):
        if (draft := site.store.draft(image, "anna")) and len(draft.content["steps"]) == 3:
            break
        desk.page.wait_for_timeout(50)
    context = desk.page.context.browser.new_context(viewport={"width": 900, "height": 700})
    elsewhere = Desk(context.new_page(), site.url)
    desk.page.reload()
    for each in (desk.ready(image), elsewhere.open(image)):
        each.wait_for_mask()
        assert [is_blue(pixel) for pixel in each.pixels((150, 100), (350, 240), (600, 400))] == [True, True, False]
        assert each.text("now-text") == "2 clicks, 1 stroke."
        each.press("z")
        each.wait_for_mask()
        assert is_grey(each.pixel(150, 100)) and is_blue(each.pixel(350, 260))
        each.press("y")
        each.wait_for_mask()
    context.close()


# ---- seeing


def test_hide_and_contrast(desk: Desk, site: Any) -> None:
    image = site.add_image()
    site.store.accept(image, "anna", square(100, 100, 120))
    desk.open(image)
    filled = desk.pixel(160, 160)
    desk.press("c")
    outline = desk.pixel(160, 160)
    desk.press("c")
    colours = desk.pixel(160, 160)
    assert is_grey(outline) and is_green(filled) and filled != colours != outline
    desk.press("h")
    assert is_grey(desk.pixel(160, 160))


def test_zoom_and_pan_keep_masks_on_the_image(desk: Desk, site: Any) -> None:
    image = site.add_image()
    site.store.accept(image, "anna", square(100, 100, 120))
    desk.open(image)
    place = desk.at(150, 150)
    desk.page.mouse.move(*place)
    desk.page.mouse.wheel(0, -600)
    desk.wait("() => document.querySelector('canvas').dataset.view.split(' ')[0] > 2")
    assert desk.at(150, 150) == pytest.approx(place, abs=2)  # the wheel knows whole pixels
    desk.page.keyboard.down("Space")
    before = desk.view()
    desk.page.mouse.down()
    desk.page.mouse.move(place[0] + 60, place[1] + 40, steps=3)
    desk.page.mouse.up()
    desk.page.keyboard.up("Space")
    assert is_green(desk.pixel(150, 150)) and is_grey(desk.pixel(90, 150))
    assert (desk.view()[1] - before[1], desk.view()[2] - before[2]) == pytest.approx((60, 40))
    desk.press("0")
    desk.wait("() => document.querySelector('canvas').dataset.view.split(' ')[0] < 2")
    assert desk.masks() == 1 and desk.text("now-title") == "New mask", "neither zooming nor panning is a click"


def test_help_lists_every_key_and_controls_have_names(desk: Desk, site: Any) -> None:
    desk.open(site.add_image())
    desk.press("?")
    keys = desk.page.evaluate("import('/static/keys.js').then((keys) => keys.BINDINGS.map(([, , what]) => what))")
    shown = desk.text("help-overlay")
    assert all(what in shown for what in keys)
    desk.press("?")
    assert desk.page.get_by_test_id("help-overlay").is_hidden()
    nameless = "[...document.querySelectorAll('button')].filter((b) => !(b.textContent.trim() || b.ariaLabel)).length"
    assert desk.page.evaluate(nameless) == 0


@pytest.mark.parametrize("width", [1440, 820])
def test_everything_fits_the_window(desk: Desk, site: Any, width: int) -> None:
    desk.page.set_viewport_size({"width": width, "height": 700})
    desk.open(site.add_image())
    desk.click(320, 240)
    for name in ("tool-point", "fit", "accept", "drop", "next", "skip", "help", "candidate-1", "disjoint", "clock"):
        box = desk.page.get_by_test_id(name).bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= width and box["y"] + box["height"] <= 700, name
    assert desk.page.evaluate("document.documentElement.scrollWidth") <= width
    hint, candidates = (desk.page.get_by_test_id(name).bounding_box() for name in ("hint", "candidates"))
    assert candidates["y"] + candidates["height"] <= hint["y"], "the hint is not covered"
