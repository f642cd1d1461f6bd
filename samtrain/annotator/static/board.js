// The canvas as a place to work: tools, previews, brush, zoom, and which masks are shown in which style.

import { createHover } from "./hover.js";
import { bounds, contains } from "./masks.js";
import { listen } from "./pointer.js";
import { createStage } from "./stage.js";
import { CONTRASTS, styleOfCurrent, styleOfPreview, styleOfStored } from "./styles.js";
import * as views from "./view.js";

const RADIUS = [0.5, 400]; // pixels of the image
const NOTHING = [];

/** Returns the board of a canvas; `task()` gives the image in work or null, `changed()` is called when the panel has to follow. */
export function createBoard(canvas, { task, changed, act, warn }) {
  let tool = "point";
  let radius = 10;
  let contrast = CONTRASTS[0];
  let isHidden = false;
  let preview = NOTHING; // of the mask under the pointer
  let boxing = null; // the box that is being drawn
  let pointer = null; // where it is on the canvas
  let peeked = null; // a mask that a button or the list points at
  let lists = { stored: NOTHING, current: NOTHING };

  const stage = createStage(canvas, scene);
  const toImage = (place) => views.toImage(stage.view(), ...place);
  const isInside = (point) => views.isInside(task().image, point);
  const pixelOf = (point) => views.nearestInside(task().image, point).map(Math.floor);

  // ---- what is drawn

  function scene() {
    const work = task();
    if (!work) return { stored: NOTHING, current: NOTHING, preview: NOTHING, points: NOTHING, box: null, boxing: null, brush: null };
    const { current } = work.state();
    lists = { stored: same(lists.stored, storedItems(work, current)), current: same(lists.current, currentItems(work, current)) };
    const isPainting = tool === "brush" || tool === "eraser";
    return {
      ...lists,
      preview: isHidden || current ? NOTHING : preview,
      points: (current?.points ?? NOTHING).map(({ x, y, label }) => ({ x: x + 0.5, y: y + 0.5, label })),
      box: current?.box ?? null,
      boxing,
      brush: isPainting && pointer ? { place: pointer, radius, mode: tool } : null,
    };
  }

  function storedItems(work, current) {
    if (isHidden) return NOTHING;
    const selected = work.selected()?.key ?? null;
    const rows = work.visible().filter((row) => row.key !== current?.key && !(work.live() && row.key === selected));
    rows.sort((one, other) => other.area - one.area); // parts lie over their wholes
    return rows.map((row) => item(row.mask, styleOfStored(row, contrast, row.key === selected || row.key === peeked)));
  }

  function currentItems(work, current) {
    const mask = work.live()?.mask ?? current?.candidates?.[peeked]?.mask ?? current?.mask;
    return isHidden || !mask ? NOTHING : [item(mask, styleOfCurrent(contrast, Boolean(current && !current.answered)))];
  }

  const item = (mask, style) => ({ mask, style, name: JSON.stringify(style) });

  /** Returns the earlier list if the new one shows the same, so that it is not painted once more. */
  function same(before, after) {
    const equal = before.length === after.length && before.every(({ mask, name }, i) => mask === after[i].mask && name === after[i].name);
    return equal ? before : after;
  }

  // ---- previews

  const hover = createHover({
    ask: (point) => task().preview(pixelOf(point)),
    show(found) {
      preview = found ? [item(found.mask, styleOfPreview(contrast))] : NOTHING;
      stage.redraw();
    },
  });

  function canPreview() {
    const work = task();
    return tool === "point" && !isHidden && !work.state().current && !work.selected() && work.encoding().state === "done";
  }

  // ---- what people do

  const gestures = listen(canvas, () => tool, {
    press: act,
    hover(place) {
      pointer = place;
      if (!task()) return;
      if (place) {
        act();
        peeked = null; // a button that was replaced under the pointer does not say that the pointer has left it
      }
      const point = place && toImage(place);
      if (point && isInside(point) && canPreview()) hover.move(point, place);
      else hover.stop();
      if (tool === "brush" || tool === "eraser") stage.redraw();
    },
    click(place, label) {
      const point = toImage(place);
      if (!task() || !isInside(point)) return;
      if (tool === "brush" || tool === "eraser") return; // a right click while painting
      const work = task();
      if (label === 0 && !work.state().current && !work.selected()) {
        return warn("Begin with a left click on the object; a right click then takes away what does not belong to it.");
      }
      work.click(...pixelOf(point), label);
    },
    boxing(from, to) {
      boxing = to && task() ? [...toImage(from), ...toImage(to)] : null;
      stage.redraw();
    },
    box(from, to) {
      const work = task();
      if (!work) return;
      const { width, height } = work.image;
      const [x0, y0] = toImage(from);
      const [x1, y1] = toImage(to);
      const inside = (value, length) => Math.min(Math.max(Math.round(value), 0), length);
      const box = [inside(x0, width), inside(y0, height), inside(x1, width), inside(y1, height)];
      if (box[0] !== box[2] && box[1] !== box[3]) work.box(box);
    },
    select: (place) => task() && selectAt(toImage(place)),
    strokeStart(place) {
      const work = task();
      if (!work) return;
      pointer = place;
      if (tool === "eraser" && !work.state().current && !work.selected()) {
        return warn("The eraser needs a mask: click an object, or select a mask with Shift + click.");
      }
      if (isLocked(work)) return;
      if (work.state().current && !work.state().current.mask) return warn("The model has not answered yet: paint when its mask is there.");
      work.startStroke(tool, radius, toImage(place));
    },
    strokeMove(place) {
      pointer = place;
      task()?.moveStroke(toImage(place));
    },
    strokeEnd: () => task()?.endStroke(true),
    strokeCancel: () => task()?.endStroke(false),
    pan: (dx, dy) => task() && stage.setView(views.pan(stage.view(), dx, dy, task().image, stage.size())),
    zoom,
    width: (direction) => setRadius(radius * 1.15 ** direction),
  });

  function isLocked(work) {
    const row = work.state().current ? null : work.selected();
    if (row && (row.locked || row.state === "rejected")) {
      warn("This mask was there before you and is locked. Reject it (R) if it is wrong, then make a new one.");
      return true;
    }
    return false;
  }

  function selectAt(point) {
    const work = task();
    if (work.state().current) return warn("Accept the mask in work (Enter) or drop it (Esc) first.");
    const under = work.visible().filter((row) => contains(row.mask, ...point)).sort((one, other) => one.area - other.area);
    if (!under.length && !work.selected()) return warn("There is no mask here. Shift + click selects the mask under the pointer.");
    const at = under.findIndex((row) => row.key === work.selected()?.key);
    work.select(under.length ? under[(at + 1) % under.length].key : null); // once more: the next one below
  }

  function zoom(factor, place = [canvas.width / 2, canvas.height / 2]) {
    if (!task()) return;
    stage.setView(views.zoomAt(stage.view(), factor, ...place, task().image, stage.size()));
    hover.stop();
  }

  function setRadius(value) {
    radius = Math.min(Math.max(value, RADIUS[0]), RADIUS[1]);
    changed();
  }

  const actions = {
    point: () => setTool("point"),
    brush: () => setTool("brush"),
    eraser: () => setTool("eraser"),
    select: () => setTool("select"),
    narrower: () => setRadius(radius / 1.25),
    wider: () => setRadius(radius * 1.25),
    hide: () => (isHidden = !isHidden),
    contrast: () => (contrast = CONTRASTS[(CONTRASTS.indexOf(contrast) + 1) % CONTRASTS.length]),
    fit: () => task() && stage.setView(views.fit(task().image, stage.size()), true),
    zoomIn: () => zoom(1.4),
    zoomOut: () => zoom(1 / 1.4),
  };

  function setTool(next) {
    tool = next;
    hover.stop();
  }

  return {
    redraw: stage.redraw,
    stage,
    isBusy: gestures.isBusy,
    tool: () => tool,
    radius: () => radius,
    contrast: () => contrast,
    isHidden: () => isHidden,
    setRadius,
    /** Carries out an action of view or tools; returns whether it is one. */
    perform(action) {
      if (!actions[action]) return false;
      actions[action]();
      changed();
      return true;
    },
    open(image, handlers) {
      hover.stop();
      boxing = null;
      peeked = null;
      radius = Math.min(Math.max(Math.max(image.width, image.height) / 80, 2), 60);
      stage.open(image, handlers);
    },
    close: () => (hover.stop(), stage.close()),
    stopPreview: hover.stop,
    peek(value) {
      peeked = value;
      stage.redraw();
    },
    lookAt(mask) {
      const part = bounds(mask);
      if (part) stage.setView(views.fitPart(part, task().image, stage.size()));
    },
  };
}
