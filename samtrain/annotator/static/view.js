// Where the image lies on the canvas: zoom, pan, and the tiles that are needed. Pure functions.
//
// A view is {scale, x, y}: the image's pixel (0, 0) lies at (x, y) of the canvas, and one pixel of the image is `scale` pixels of
// the canvas.

const LARGEST_SCALE = 32; // single pixels can be seen and painted
const MARGIN = 16; // CSS pixels around a whole image, BELOW: under it
const BELOW = 34;
const KEPT_VISIBLE = 40; // canvas pixels of the image that stay in sight however far somebody pans

/** Returns the view that shows the whole image in the middle, with a margin; a line of text has room below. */
export function fit(image, canvas) {
  const unit = canvas.unit ?? 1;
  const room = { width: canvas.width - 2 * MARGIN * unit, height: canvas.height - (MARGIN + BELOW) * unit };
  const scale = Math.min(Math.max(room.width, 1) / image.width, Math.max(room.height, 1) / image.height, LARGEST_SCALE);
  return {
    scale,
    x: (canvas.width - image.width * scale) / 2,
    y: MARGIN * unit + (room.height - image.height * scale) / 2,
  };
}

/** Returns the view that shows a part of the image, {left, top, right, bottom}, with its surroundings. */
export function fitPart(part, image, canvas) {
  const [w, h] = [part.right - part.left, part.bottom - part.top];
  const whole = fit(image, canvas);
  const scale = Math.max(Math.min(canvas.width / (w * 2.5), canvas.height / (h * 2.5), 8), whole.scale);
  const x = canvas.width / 2 - (part.left + w / 2) * scale;
  const y = canvas.height / 2 - (part.top + h / 2) * scale;
  return clamp({ scale, x, y }, image, canvas);
}

/** Returns the view with another scale; the image's pixel under (x, y) of the canvas stays there. */
export function zoomAt(view, factor, x, y, image, canvas) {
  const smallest = Math.min(fit(image, canvas).scale / 4, 1);
  const scale = Math.min(Math.max(view.scale * factor, smallest), LARGEST_SCALE);
  const ratio = scale / view.scale;
  return clamp({ scale, x: x - (x - view.x) * ratio, y: y - (y - view.y) * ratio }, image, canvas);
}

export function pan(view, dx, dy, image, canvas) {
  return clamp({ ...view, x: view.x + dx, y: view.y + dy }, image, canvas);
}

function clamp(view, image, canvas) {
  const inside = (at, length, room) => Math.min(Math.max(at, KEPT_VISIBLE - length), room - KEPT_VISIBLE);
  return {
    scale: view.scale,
    x: inside(view.x, image.width * view.scale, canvas.width),
    y: inside(view.y, image.height * view.scale, canvas.height),
  };
}

/** Returns the point of the image, in pixels, that lies at (x, y) of the canvas; it may lie outside the image. */
export function toImage(view, x, y) {
  return [(x - view.x) / view.scale, (y - view.y) / view.scale];
}

export function toCanvas(view, x, y) {
  return [x * view.scale + view.x, y * view.scale + view.y];
}

export function isInside(image, [x, y]) {
  return x >= 0 && y >= 0 && x < image.width && y < image.height;
}

/** Returns the point moved to the nearest pixel of the image. */
export function nearestInside(image, [x, y]) {
  return [Math.min(Math.max(x, 0), image.width - 0.01), Math.min(Math.max(y, 0), image.height - 0.01)];
}

/** Returns the level of tiles to draw: the coarsest with at least one of its pixels per pixel of the canvas. */
export function levelOf(view, image) {
  const level = Math.floor(Math.log2(1 / view.scale) + 1e-9);
  return Math.min(Math.max(level, 0), image.levels - 1);
}

/** Returns the tiles of a level that the canvas shows, from its middle outwards: [{level, column, row}]. */
export function visibleTiles(view, image, canvas, level) {
  const side = image.tile_size * 2 ** level;
  const [left, top] = toImage(view, 0, 0);
  const [right, bottom] = toImage(view, canvas.width, canvas.height);
  const columns = rangeOf(left, right, side, image.width);
  const rows = rangeOf(top, bottom, side, image.height);
  const tiles = [];
  for (let row = rows[0]; row <= rows[1]; row++) {
    for (let column = columns[0]; column <= columns[1]; column++) tiles.push({ level, column, row });
  }
  const middle = [(columns[0] + columns[1]) / 2, (rows[0] + rows[1]) / 2];
  const distance = (tile) => Math.hypot(tile.column - middle[0], tile.row - middle[1]);
  return tiles.sort((one, other) => distance(one) - distance(other));
}

function rangeOf(low, high, side, length) {
  const last = Math.ceil(length / side) - 1;
  return [Math.max(Math.floor(low / side), 0), Math.min(Math.floor(high / side), last)];
}

/** Returns the part of the image that a tile shows: {left, top, width, height} in pixels of the image. */
export function placeOf(tile, image) {
  const side = image.tile_size * 2 ** tile.level;
  const left = tile.column * side;
  const top = tile.row * side;
  return { left, top, width: Math.min(side, image.width - left), height: Math.min(side, image.height - top) };
}
