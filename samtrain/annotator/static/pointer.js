// Turns movements of mouse, pen and fingers on the canvas into what they mean: a click, a box, a stroke, a pan, a zoom.

const SLACK = 5; // CSS pixels a click may wander before it is a drag
const ZOOM_STEP = 1.0015; // per pixel of the wheel

/**
 * Listens to `canvas`. `tool()` returns "point", "brush", "eraser" or "select". Handlers take canvas pixels:
 * click(place, label), select(place), box(from, to), boxing(from, to or null), strokeStart(place), strokeMove(place),
 * strokeEnd(), strokeCancel(), pan(dx, dy), zoom(factor, place), width(direction), hover(place or null), press().
 */
export function listen(canvas, tool, on) {
  let drag = null; // {kind, start, last, label, id}
  let space = false;
  const fingers = new Map(); // id -> place, for two-finger zoom

  const placeOf = (event) => {
    const frame = canvas.getBoundingClientRect();
    const ratio = canvas.width / frame.width;
    return [(event.clientX - frame.left) * ratio, (event.clientY - frame.top) * ratio];
  };

  function kindOf(event) {
    if (event.button === 1 || (space && event.button === 0)) return "pan";
    if (event.button === 2) return "click";
    if (event.button !== 0) return null;
    if (event.shiftKey || tool() === "select") return "select";
    return tool() === "point" ? "click" : "stroke";
  }

  canvas.addEventListener("pointerdown", (event) => {
    canvas.focus({ preventScroll: true });
    on.press();
    const place = placeOf(event);
    if (event.pointerType === "touch") {
      fingers.set(event.pointerId, place);
      if (fingers.size === 2) return beginPinch();
    }
    const kind = kindOf(event);
    if (!kind || drag) return;
    if (event.button === 1) event.preventDefault(); // no scrolling mark
    const label = event.button === 2 || event.altKey ? 0 : 1;
    drag = { kind, start: place, last: place, label, id: event.pointerId, left: event.button === 0, moved: false };
    canvas.setPointerCapture(event.pointerId);
    on.hover(null);
    if (kind === "stroke") on.strokeStart(place);
  });

  function beginPinch() {
    if (drag?.kind === "stroke") on.strokeCancel();
    if (drag?.moved) on.boxing(drag.start, null);
    drag = { kind: "pinch", id: -1 };
  }

  canvas.addEventListener("pointermove", (event) => {
    const place = placeOf(event);
    if (drag?.kind === "pinch") return pinch(event.pointerId, place);
    if (!drag) return on.hover(place);
    if (event.pointerId !== drag.id) return;
    const ratio = canvas.width / canvas.getBoundingClientRect().width;
    drag.moved ||= Math.hypot(place[0] - drag.start[0], place[1] - drag.start[1]) > SLACK * ratio;
    if (drag.kind === "pan") on.pan(place[0] - drag.last[0], place[1] - drag.last[1]);
    if (drag.kind === "stroke") {
      // the browser joins movements into one event; a fast stroke needs them all to stay round
      const parts = event.getCoalescedEvents?.() ?? [];
      (parts.length ? parts : [event]).forEach((part) => on.strokeMove(placeOf(part)));
    }
    if (drag.kind === "click" && drag.left && drag.moved) on.boxing(drag.start, place);
    drag.last = place;
  });

  function pinch(id, place) {
    if (!fingers.has(id)) return;
    const before = [...fingers.values()];
    fingers.set(id, place);
    const after = [...fingers.values()];
    if (after.length < 2) return;
    const middle = ([a, b]) => [(a[0] + b[0]) / 2, (a[1] + b[1]) / 2];
    const spread = ([a, b]) => Math.max(Math.hypot(a[0] - b[0], a[1] - b[1]), 1);
    const [from, to] = [middle(before), middle(after)];
    on.pan(to[0] - from[0], to[1] - from[1]);
    on.zoom(spread(after) / spread(before), to);
  }

  function release(event, cancelled) {
    fingers.delete(event.pointerId);
    if (!drag) return;
    if (drag.kind === "pinch") {
      if (fingers.size === 0) drag = null;
      return;
    }
    if (event.pointerId !== drag.id) return;
    const { kind, start, label, left, moved } = drag;
    drag = null;
    const place = placeOf(event);
    if (kind === "stroke") return cancelled ? on.strokeCancel() : on.strokeEnd();
    if (kind === "click" && left && moved) on.boxing(start, null);
    if (cancelled || kind === "pan") return;
    if (kind === "select") return on.select(place);
    if (left && moved) on.box(start, place);
    else on.click(start, label);
  }

  canvas.addEventListener("pointerup", (event) => release(event, false));
  canvas.addEventListener("pointercancel", (event) => release(event, true));
  canvas.addEventListener("pointerleave", () => !drag && on.hover(null));
  canvas.addEventListener("contextmenu", (event) => event.preventDefault());
  canvas.addEventListener("auxclick", (event) => event.preventDefault());

  canvas.addEventListener("wheel", (event) => {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 32 : 1; // some browsers count lines
    const amount = (event.deltaY || event.deltaX) * lines; // with Shift, some browsers scroll sideways
    if (event.shiftKey) return on.width(-Math.sign(amount));
    on.zoom(ZOOM_STEP ** -Math.min(Math.max(amount, -400), 400), placeOf(event));
  }, { passive: false });

  const setSpace = (value) => {
    space = value;
    canvas.classList.toggle("panning", value);
  };
  window.addEventListener("keydown", (event) => {
    if (event.code !== "Space" || event.target.closest?.("button, input, a, summary")) return;
    event.preventDefault();
    setSpace(true);
  });
  window.addEventListener("keyup", (event) => event.code === "Space" && setSpace(false));
  window.addEventListener("blur", () => setSpace(false));

  return { isBusy: () => drag !== null };
}
