// The canvas: the image's tiles, masks, prompts, the box and the brush, drawn once per frame at most.

import { createLayer } from "./draw.js";
import { createTiles } from "./tiles.js";
import { fit, toCanvas } from "./view.js";

const REST = 120; // ms without zooming after which masks that were only moved are painted

/**
 * Returns {open, close, redraw, setView, view, size, onResize}. `scene()` says what to draw: {stored, current, preview, points,
 * box, boxing, brush}: three lists of {mask, style}, which are painted again only if they are other lists, then the prompts.
 */
export function createStage(canvas, scene) {
  const context = canvas.getContext("2d", { alpha: false });
  const layers = [createLayer(), createLayer(), createLayer()];
  let image = null;
  let tiles = null;
  let view = { scale: 1, x: 0, y: 0 };
  let isWhole = true; // the view shows the whole image and follows the window
  let asked = false;
  let movedAt = -Infinity;
  const listeners = [];

  const size = () => ({ width: canvas.width, height: canvas.height, unit: window.devicePixelRatio || 1 });

  function redraw() {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      draw();
    });
  }

  function draw() {
    context.setTransform(1, 0, 0, 1, 0, 0);
    context.fillStyle = "#121417";
    context.fillRect(0, 0, canvas.width, canvas.height);
    if (!image) return;
    const isComplete = tiles.draw(context, view, size());
    const { stored, current, preview, points, box, boxing, brush } = scene();
    const moving = performance.now() - movedAt < REST;
    const late = [stored, current, preview].map((items, i) => layers[i].draw(context, items, view, size(), moving));
    if (late.some(Boolean)) setTimeout(redraw, REST);
    const unit = window.devicePixelRatio || 1;
    if (box) drawBox(box, unit, false);
    if (boxing) drawBox(boxing, unit, true);
    for (const point of points) drawPoint(point, unit);
    if (brush) drawBrush(brush, unit);
    // for scripts that drive the page: where the image lies, and what of the object in work has been painted
    canvas.dataset.view = `${view.scale} ${view.x} ${view.y}`;
    canvas.dataset.painted = canvas.dataset.object;
    canvas.dataset.whole = isComplete ? "1" : "";
    canvas.dispatchEvent(new CustomEvent("painted"));
  }

  function drawPoint({ x, y, label }, unit) {
    const [left, top] = toCanvas(view, x, y);
    context.beginPath();
    context.arc(left, top, 6 * unit, 0, 2 * Math.PI);
    context.fillStyle = label ? "#1fbf75" : "#e5484d";
    context.fill();
    context.lineWidth = 2 * unit;
    context.strokeStyle = "#fff";
    context.stroke();
    context.beginPath(); // + or -, so that the meaning does not hang on the colour
    context.moveTo(left - 3 * unit, top);
    context.lineTo(left + 3 * unit, top);
    if (label) {
      context.moveTo(left, top - 3 * unit);
      context.lineTo(left, top + 3 * unit);
    }
    context.lineWidth = 1.6 * unit;
    context.stroke();
  }

  function drawBox([x0, y0, x1, y1], unit, isDashed) {
    const [left, top] = toCanvas(view, x0, y0);
    const [right, bottom] = toCanvas(view, x1, y1);
    for (const [colour, width] of [["#000a", 4], ["#fff", 1.6]]) {
      context.strokeStyle = colour;
      context.lineWidth = width * unit;
      context.setLineDash(isDashed && colour === "#fff" ? [7 * unit, 5 * unit] : []);
      context.strokeRect(left, top, right - left, bottom - top);
    }
    context.setLineDash([]);
  }

  function drawBrush({ place: [x, y], radius, mode }, unit) {
    for (const [colour, width] of [["#000c", 3.5], [mode === "brush" ? "#7dc4ff" : "#ff9a9a", 1.6]]) {
      context.beginPath();
      context.arc(x, y, Math.max(radius * view.scale, 1), 0, 2 * Math.PI);
      context.strokeStyle = colour;
      context.lineWidth = width * unit;
      context.stroke();
    }
  }

  function resize() {
    const unit = window.devicePixelRatio || 1;
    const frame = canvas.getBoundingClientRect();
    const width = Math.max(Math.round(frame.width * unit), 1);
    const height = Math.max(Math.round(frame.height * unit), 1);
    if (width === canvas.width && height === canvas.height) return;
    canvas.width = width;
    canvas.height = height;
    if (image && isWhole) view = fit(image, size());
    draw(); // at once: a canvas of another size is empty
    listeners.forEach((each) => each());
  }
  new ResizeObserver(resize).observe(canvas);

  return {
    redraw,
    size,
    view: () => view,
    onResize: (listener) => listeners.push(listener),
    setView(next, whole = false) {
      view = next;
      isWhole = whole;
      movedAt = performance.now();
      redraw();
    },
    /** Shows another image; `load(tile, signal)` gives its tiles. */
    open(opened, handlers) {
      tiles?.close();
      image = opened;
      tiles = createTiles(image, { onChange: redraw, ...handlers });
      resize();
      view = fit(image, size());
      isWhole = true;
      redraw();
    },
    close() {
      tiles?.close();
      image = tiles = null;
      redraw();
    },
  };
}
