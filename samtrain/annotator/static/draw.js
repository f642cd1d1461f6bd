// Paints masks into a layer as large as the canvas, at the canvas's own resolution: whatever the size of the image, a mask costs as
// many pixels as it covers on the screen.

import { bounds } from "./masks.js";

const LINE = 2; // pixels of a mask's outline, inside the mask; a dark line of one pixel runs around it

/**
 * Returns the mask as the canvas shows it: {left, top, width, height, inside}, or null if none of it is in sight. A pixel of the
 * canvas belongs to the mask if its centre lies in a pixel of the mask. The frame is wider by a margin, so that outlines are whole.
 */
export function rasterise(mask, view, size, margin = LINE + 1) {
  const box = bounds(mask);
  if (!box) return null;
  const left = Math.max(Math.floor(box.left * view.scale + view.x) - margin, -margin);
  const top = Math.max(Math.floor(box.top * view.scale + view.y) - margin, -margin);
  const right = Math.min(Math.ceil(box.right * view.scale + view.x) + margin, size.width + margin);
  const bottom = Math.min(Math.ceil(box.bottom * view.scale + view.y) + margin, size.height + margin);
  if (right <= left || bottom <= top) return null;
  const [width, height] = [right - left, bottom - top];
  const inside = new Uint8Array(width * height);
  const rowOf = (y) => Math.min(Math.max(Math.ceil(y * view.scale + view.y - 0.5) - top, 0), height);
  for (let i = 0; i < width; i++) {
    const column = mask.columns[Math.floor((left + i + 0.5 - view.x) / view.scale) - mask.left];
    if (!column) continue;
    for (let k = 0; k < column.length; k += 2) {
      const end = rowOf(column[k + 1]) * width + i;
      for (let at = rowOf(column[k]) * width + i; at < end; at += width) inside[at] = 1;
    }
  }
  return { left, top, width, height, inside };
}

/** Paints a mask into pixels (Uint32, ABGR). `style` is {line, fill, halo, hatch, dashed}; colours are [r, g, b, a] or null. */
export function paintMask(pixels, size, mask, view, style) {
  const raster = rasterise(mask, view, size);
  if (!raster) return;
  const { left, top, width, height, inside } = raster;
  const line = style.line && packed(style.line);
  const fill = style.fill && packed(style.fill);
  const halo = packed(style.halo ?? [0, 0, 0, 190]);
  // only what lies on the canvas; the margin lets all neighbours be read
  const [firstRow, lastRow] = [Math.max(LINE, -top), Math.min(height - LINE, size.height - top)];
  const [first, last] = [Math.max(LINE, -left), Math.min(width - LINE, size.width - left)];
  for (let row = firstRow; row < lastRow; row++) {
    const y = top + row;
    for (let i = first; i < last; i++) {
      const at = row * width + i;
      const target = y * size.width + left + i;
      if (inside[at]) {
        if (line && isNearEdge(inside, at, width) && !isGap(style.dashed, left + i, y)) pixels[target] = line;
        else if (fill && pixels[target] >>> 24 !== 255 && !isGap(style.hatch, left + i, y)) pixels[target] = fill;
      } else if (line && inside[at - 1] | inside[at + 1] | inside[at - width] | inside[at + width]) {
        if (pixels[target] >>> 24 !== 255 && !isGap(style.dashed, left + i, y)) pixels[target] = halo;
      }
    }
  }
}

const isGap = (isBroken, x, y) => isBroken && ((x + y) >> 2) % 3 === 0;

/** Says whether one of the LINE pixels in each direction is outside. */
function isNearEdge(inside, at, width) {
  return !(
    inside[at - 1] & inside[at + 1] & inside[at - 2] & inside[at + 2] &
    inside[at - width] & inside[at + width] & inside[at - 2 * width] & inside[at + 2 * width]
  );
}

function packed([r, g, b, a = 255]) {
  return ((a << 24) | (b << 16) | (g << 8) | r) >>> 0;
}

const PATIENCE = 8; // ms; a layer that takes longer is moved as a picture while somebody zooms, and painted afterwards

/** Returns a layer of masks that is painted again only if it has to be. */
export function createLayer() {
  const canvas = new OffscreenCanvas(1, 1);
  const context = canvas.getContext("2d");
  let image = null; // its pixels
  let painted = null; // {items, view} of what the layer shows
  let cost = 0; // ms of the last painting

  function render(items, view, size) {
    const start = performance.now();
    if (!image || canvas.width !== size.width || canvas.height !== size.height) {
      canvas.width = size.width;
      canvas.height = size.height;
      image = context.createImageData(size.width, size.height);
    }
    const pixels = new Uint32Array(image.data.buffer);
    pixels.fill(0);
    for (const { mask, style } of items) paintMask(pixels, size, mask, view, style);
    context.putImageData(image, 0, 0);
    painted = { items, view };
    cost = performance.now() - start;
  }

  /** Draws the items; returns whether they were only moved and have to be drawn once more when the view rests. */
  function draw(target, items, view, size, moving) {
    if (!items.length) {
      painted = null;
      return false;
    }
    const same = painted && painted.items === items && canvas.width === size.width && canvas.height === size.height;
    const still = same && painted.view.scale === view.scale && painted.view.x === view.x && painted.view.y === view.y;
    const late = same && !still && moving && cost > PATIENCE;
    if (!still && !late) render(items, view, size);
    const ratio = view.scale / painted.view.scale;
    const [dx, dy] = [view.x - painted.view.x * ratio, view.y - painted.view.y * ratio];
    target.drawImage(canvas, dx, dy, size.width * ratio, size.height * ratio);
    return late;
  }

  return { draw };
}
