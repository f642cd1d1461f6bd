// Loads and keeps the tiles of one image, and draws them. Coarser tiles stand in for finer ones that are on their way.

import { levelOf, placeOf, visibleTiles } from "./view.js";

const KEPT = 160; // tiles in memory, at most 1 MB each
const AT_A_TIME = 4;

/**
 * Returns {draw, close}. `load(tile, signal)` returns a promise of something drawable; `onChange` is called when a tile arrived,
 * `onTrouble(error)` if one failed.
 */
export function createTiles(image, { load, onChange, onTrouble }) {
  const kept = new Map(); // name -> picture, the one used last at the end
  const failed = new Map(); // name -> when another attempt may be made
  const flying = new Map(); // name -> AbortController
  let wanted = [];

  const nameOf = ({ level, column, row }) => `${level}/${column}/${row}`;

  function fetchMore() {
    const now = performance.now();
    for (const tile of wanted) {
      const name = nameOf(tile);
      if (flying.size >= AT_A_TIME) return;
      if (kept.has(name) || flying.has(name) || now < (failed.get(name) ?? 0)) continue;
      start(tile, name);
    }
  }

  async function start(tile, name) {
    const controller = new AbortController();
    flying.set(name, controller);
    try {
      const picture = await load(tile, controller.signal);
      kept.set(name, picture);
      failed.delete(name);
      forgetOldest();
      onChange();
    } catch (error) {
      if (error.name !== "AbortError") {
        failed.set(name, performance.now() + 2000);
        setTimeout(onChange, 2100);
        onTrouble(error);
      }
    }
    flying.delete(name);
    fetchMore();
  }

  function forgetOldest() {
    for (const name of kept.keys()) {
      if (kept.size <= KEPT) return;
      if (name === `${image.levels - 1}/0/0`) continue; // the coarsest tile is what everything falls back on
      kept.get(name).close?.();
      kept.delete(name);
    }
  }

  /** Draws what is there of the view and asks for what is missing. */
  function draw(context, view, size) {
    const level = levelOf(view, image);
    const visible = visibleTiles(view, image, size, level);
    const coarsest = visibleTiles(view, image, size, image.levels - 1);
    wanted = level === image.levels - 1 ? visible : [...coarsest, ...visible];
    const names = new Set(wanted.map(nameOf));
    for (const [name, controller] of flying) if (!names.has(name)) controller.abort();
    const whole = visible.every((tile) => kept.has(nameOf(tile)));
    context.imageSmoothingEnabled = view.scale < 2; // single pixels are seen as squares
    for (let each = whole ? level : image.levels - 1; each >= level; each--) {
      for (const tile of each === level ? visible : visibleTiles(view, image, size, each)) drawTile(context, view, tile);
    }
    fetchMore();
    return whole;
  }

  function drawTile(context, view, tile) {
    const name = nameOf(tile);
    const picture = kept.get(name);
    if (!picture) return;
    kept.delete(name);
    kept.set(name, picture); // used last
    const { left, top, width, height } = placeOf(tile, image);
    // whole pixels of the canvas, so that no seam shows between tiles
    const x = Math.round(view.x + left * view.scale);
    const y = Math.round(view.y + top * view.scale);
    const right = Math.round(view.x + (left + width) * view.scale);
    const bottom = Math.round(view.y + (top + height) * view.scale);
    context.drawImage(picture, x, y, Math.max(right - x, 1), Math.max(bottom - y, 1));
  }

  function close() {
    for (const controller of flying.values()) controller.abort();
    for (const picture of kept.values()) picture.close?.();
    kept.clear();
    wanted = [];
  }

  return { draw, close };
}
