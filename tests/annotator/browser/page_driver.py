"""Drives the page as a person does, in pixels of the image, and reads what the canvas shows."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import Any

READY = "() => document.body.dataset.screen === 'work'"
PAINTED = "() => { const { view, whole } = document.querySelector('canvas').dataset; return Boolean(view && whole); }"
PATIENCE = 45.0  # seconds; the machine may have much else to do


def let_go(route: Any) -> None:
    """Sends a request that a test has held back, unless the page has given it up already."""
    with suppress(Exception):
        route.continue_()


class Desk:
    """One person's page."""

    def __init__(self, page: Any, url: str) -> None:
        self.page, self.url = page, url
        self.errors: list[str] = []
        page.on("pageerror", lambda error: self.errors.append(str(error)))

    def open(self, image: int | None = None, *, encoded: bool = True) -> Desk:
        """Opens the page, at a certain image if one is given, and waits until it can be clicked."""
        self.page.goto(f"{self.url}/" if image is None else f"{self.url}/?{image}#image={image}")
        return self.ready(image, encoded=encoded)

    def ready(self, image: int | None = None, *, encoded: bool = True) -> Desk:
        self.wait(READY)
        if image is not None:
            self.wait("(hash) => location.hash === hash", f"#image={image}")
        self.wait(PAINTED)
        if encoded:
            self.page.wait_for_selector("[data-testid=encoding]", state="hidden")
        return self

    # ---- the mouse, in pixels of the image

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Returns where the middle of a pixel of the image lies in the window."""
        frame = self.page.get_by_test_id("canvas").bounding_box()
        scale, left, top = self.view()
        return frame["x"] + left + (x + 0.5) * scale, frame["y"] + top + (y + 0.5) * scale

    def view(self) -> tuple[float, float, float]:
        scale, left, top = map(float, self.page.get_by_test_id("canvas").get_attribute("data-view").split())
        return scale, left, top

    def click(self, x: float, y: float, *, button: str = "left", held: str = "", wait: bool = True) -> None:
        """Clicks a pixel of the image and waits for the mask."""
        if held:
            self.page.keyboard.down(held)
        self.page.mouse.click(*self.at(x, y), button=button)
        if held:
            self.page.keyboard.up(held)
        if wait and held != "Shift":
            self.wait_for_mask()

    def drag(self, *path: tuple[float, float], wait: bool = True) -> None:
        self.page.mouse.move(*self.at(*path[0]))
        self.page.mouse.down()
        for point in path[1:]:
            self.page.mouse.move(*self.at(*point), steps=4)
        self.page.mouse.up()
        if wait:
            self.wait_for_mask()

    def press(self, *keys: str) -> None:
        for key in keys:
            self.page.keyboard.press(key)

    # ---- waiting

    def wait(self, condition: str, given: Any = None) -> None:
        """Waits until a function of JavaScript is true. Playwright's own needs eval(), which the page's policy forbids."""
        end = time.monotonic() + PATIENCE
        while not self.page.evaluate(condition, given):
            assert time.monotonic() < end, f"{condition} did not become true"
            self.page.wait_for_timeout(15)

    def wait_for_mask(self, state: str = "shown") -> None:
        """Waits until the object in work, or its absence ("none"), is painted."""
        self.wait(
            "(state) => { const { object, painted } = document.querySelector('canvas').dataset;"
            " return object === state && painted === state; }",
            state,
        )

    def wait_saved(self) -> None:
        self.page.wait_for_selector("[data-testid=saving]", state="hidden")

    def accept(self) -> None:
        """Presses Enter and waits until the mask is stored."""
        self.press("Enter")
        self.wait_for_mask("none")
        self.wait_saved()

    # ---- what is seen

    def pixel(self, x: float, y: float) -> list[int]:
        """Returns the RGB that the canvas shows in the middle of a pixel of the image, at the next frame."""
        return self.pixels((x, y))[0]

    def pixels(self, *places: tuple[float, float]) -> list[list[int]]:
        return self.page.evaluate(
            """(places) => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => {
                const canvas = document.querySelector("canvas");
                const [scale, left, top] = canvas.dataset.view.split(" ").map(Number);
                const context = canvas.getContext("2d");
                done(places.map(([x, y]) => {
                    const at = [left + (x + 0.5) * scale, top + (y + 0.5) * scale].map(Math.floor);
                    return [...context.getImageData(...at, 1, 1).data].slice(0, 3);
                }));
            })))""",
            [list(place) for place in places],
        )

    def text(self, name: str) -> str:
        return self.page.get_by_test_id(name).inner_text()

    def masks(self, state: str = "accepted") -> int:
        return self.page.locator(f"[data-testid=mask][data-state={state}]").count()

    def message(self, name: str, text: str = "") -> str:
        """Waits for a message with this text in it and returns the whole of it."""
        find = (
            "([name, text]) => { const found = document.querySelector(`[data-testid=message-${name}]`)?.dataset.text;"
            " return found?.includes(text) ? found : null; }"
        )
        end = time.monotonic() + PATIENCE
        while (found := self.page.evaluate(find, [name, text])) is None:
            assert time.monotonic() < end, f"there is no message {name} with {text!r}"
            self.page.wait_for_timeout(15)
        return found
