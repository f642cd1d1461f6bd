// Colours of masks on the canvas, one set per contrast mode. Each outline is a bright line beside a dark one, so that one of the
// two can be seen on any image.

export const CONTRASTS = ["fill", "outline", "colours"];

const SAVED = [52, 211, 153];
const LOCKED = [180, 140, 255];
const SELECTED = [255, 214, 10];
const CURRENT = [56, 152, 255];
const FAILED = [255, 95, 95];

// 12 hues that neighbours in the list do not share; chosen to differ in lightness, too
const PALETTE = [
  [255, 99, 132], [54, 207, 201], [255, 179, 71], [122, 162, 255], [170, 220, 80], [230, 120, 240],
  [255, 221, 87], [80, 190, 255], [255, 133, 85], [120, 230, 150], [200, 160, 255], [240, 160, 180],
];

/** Returns the style of a mask that is stored already. */
export function styleOfStored(row, contrast, isSelected) {
  if (row.error) return { line: FAILED, fill: [...FAILED, 60], dashed: true };
  if (row.state === "rejected") return { line: FAILED, fill: null, dashed: true };
  const colour = row.locked ? LOCKED : contrast === "colours" ? PALETTE[row.number % PALETTE.length] : SAVED;
  const line = isSelected ? SELECTED : colour;
  if (contrast === "outline") return { line, fill: null };
  return { line, fill: [...colour, contrast === "colours" ? 130 : 84], hatch: row.locked };
}

/** Returns the style of the mask that somebody works on. */
export function styleOfCurrent(contrast, isWaiting) {
  const fill = contrast === "outline" ? null : [...CURRENT, isWaiting ? 60 : 108];
  return { line: [255, 255, 255], fill, halo: [10, 60, 160, 255] };
}

/** Returns the style of the preview under the pointer. */
export function styleOfPreview(contrast) {
  return { line: [190, 220, 255], fill: contrast === "outline" ? null : [...CURRENT, 64], dashed: true };
}

/** Returns a stored mask's colour for the list, as CSS. */
export function swatchOf(row, contrast) {
  const { line } = styleOfStored(row, contrast, false);
  return `rgb(${line.join(" ")})`;
}
