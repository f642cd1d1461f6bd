// Masks as spans of columns, and what can be done with them.
//
// A mask is {height, width, left, columns}: columns[i] holds the rows of x = left + i as [top, bottom, top, bottom, ...], sorted,
// half open, never touching. Its memory follows the outline and not the area: an object that fills an image of 10,000 x 10,000
// pixels takes 10,000 spans instead of 100 MB. Masks are never changed; an operation shares the columns that it does not touch,
// which makes keeping one mask per step of undo cheap.

/** Returns a mask without empty columns at its sides. */
export function makeMask(height, width, left, columns) {
  let first = 0;
  let last = columns.length;
  while (first < last && columns[first].length === 0) first++;
  while (last > first && columns[last - 1].length === 0) last--;
  const trimmed = first > 0 || last < columns.length ? columns.slice(first, last) : columns;
  return { height, width, left: trimmed.length ? left + first : 0, columns: trimmed };
}

export function emptyMask(height, width) {
  return { height, width, left: 0, columns: [] };
}

export function isEmpty(mask) {
  return mask.columns.length === 0;
}

export function area(mask) {
  let pixels = 0;
  for (const column of mask.columns) for (let k = 0; k < column.length; k += 2) pixels += column[k + 1] - column[k];
  return pixels;
}

/** Returns {left, top, right, bottom}, half open, or null for an empty mask. */
export function bounds(mask) {
  if (isEmpty(mask)) return null;
  let top = mask.height;
  let bottom = 0;
  for (const column of mask.columns) {
    if (!column.length) continue;
    if (column[0] < top) top = column[0];
    if (column[column.length - 1] > bottom) bottom = column[column.length - 1];
  }
  return { left: mask.left, top, right: mask.left + mask.columns.length, bottom };
}

/** Says whether the pixel that holds the point (x, y) belongs to the mask. */
export function contains(mask, x, y) {
  const column = mask.columns[Math.floor(x) - mask.left];
  if (!column) return false;
  const row = Math.floor(y);
  for (let k = 0; k < column.length; k += 2) if (row >= column[k] && row < column[k + 1]) return true;
  return false;
}

export function equal(one, other) {
  if (one.columns.length !== other.columns.length || (one.columns.length && one.left !== other.left)) return false;
  return one.columns.every((column, i) => {
    const twin = other.columns[i];
    return column === twin || (column.length === twin.length && column.every((row, k) => row === twin[k]));
  });
}

/** Returns the pixels that belong to either mask. */
export function union(one, other) {
  if (isEmpty(one)) return other;
  if (isEmpty(other)) return one;
  const left = Math.min(one.left, other.left);
  const right = Math.max(one.left + one.columns.length, other.left + other.columns.length);
  const columns = [];
  for (let x = left; x < right; x++) {
    columns.push(unionOfSpans(one.columns[x - one.left] ?? NOTHING, other.columns[x - other.left] ?? NOTHING));
  }
  return { height: one.height, width: one.width, left, columns };
}

/** Returns the pixels of the first mask that do not belong to the second. */
export function minus(one, other) {
  if (isEmpty(one) || isEmpty(other)) return one;
  const from = Math.max(one.left, other.left) - one.left;
  const to = Math.min(one.left + one.columns.length, other.left + other.columns.length) - one.left;
  if (from >= to) return one;
  const columns = one.columns.slice();
  let changed = false;
  for (let i = from; i < to; i++) {
    const kept = minusOfSpans(columns[i], other.columns[one.left + i - other.left]);
    changed ||= kept !== columns[i];
    columns[i] = kept;
  }
  return changed ? makeMask(one.height, one.width, one.left, columns) : one;
}

/** Returns the pixels with a centre at most `radius` from the line between two points: one piece of a brush stroke. */
export function capsule(height, width, [x0, y0], [x1, y1], radius) {
  const left = Math.max(Math.ceil(Math.min(x0, x1) - radius - 0.5), 0);
  const right = Math.min(Math.floor(Math.max(x0, x1) + radius - 0.5), width - 1);
  const columns = [];
  for (let x = left; x <= right; x++) {
    const reach = reachOfCapsule(x + 0.5, x0, y0, x1, y1, radius);
    const top = reach ? Math.max(Math.ceil(reach[0] - 0.5), 0) : 0;
    const bottom = reach ? Math.min(Math.floor(reach[1] - 0.5) + 1, height) : 0;
    columns.push(bottom > top ? [top, bottom] : NOTHING);
  }
  return makeMask(height, width, left, columns);
}

/** Returns the pixels under a whole stroke, a list of points. */
export function strokeMask(height, width, points, radius) {
  let painted = emptyMask(height, width);
  points.forEach((point, i) => {
    painted = union(painted, capsule(height, width, points[Math.max(i - 1, 0)], point, radius));
  });
  return painted;
}

const NOTHING = [];

function unionOfSpans(one, other) {
  if (!one.length) return other;
  if (!other.length) return one;
  const spans = [];
  let i = 0;
  let k = 0;
  while (i < one.length || k < other.length) {
    const first = k >= other.length || (i < one.length && one[i] <= other[k]);
    const top = first ? one[i] : other[k];
    const bottom = first ? one[i + 1] : other[k + 1];
    if (first) i += 2;
    else k += 2;
    const last = spans.length - 1;
    if (last > 0 && top <= spans[last]) spans[last] = Math.max(spans[last], bottom);
    else spans.push(top, bottom);
  }
  return spans;
}

function minusOfSpans(spans, taken) {
  if (!spans.length || !taken.length) return spans;
  const kept = [];
  let touched = false;
  for (let i = 0; i < spans.length; i += 2) {
    let top = spans[i];
    const bottom = spans[i + 1];
    for (let k = 0; k < taken.length && top < bottom; k += 2) {
      if (taken[k + 1] <= top || taken[k] >= bottom) continue;
      touched = true;
      if (taken[k] > top) kept.push(top, taken[k]);
      top = taken[k + 1];
    }
    if (top < bottom) kept.push(top, bottom);
  }
  return touched ? kept : spans;
}

/** Returns the interval in which the vertical line at `x` runs inside the capsule, or null. */
function reachOfCapsule(x, x0, y0, x1, y1, radius) {
  let low = Infinity;
  let high = -Infinity;
  for (const [cx, cy] of [[x0, y0], [x1, y1]]) {
    const square = radius * radius - (x - cx) * (x - cx);
    if (square < 0) continue;
    low = Math.min(low, cy - Math.sqrt(square));
    high = Math.max(high, cy + Math.sqrt(square));
  }
  const body = reachOfBand(x - x0, x1 - x0, y1 - y0, radius);
  if (body) {
    low = Math.min(low, y0 + body[0]);
    high = Math.max(high, y0 + body[1]);
  }
  return high >= low ? [low, high] : null;
}

/** Returns the same for the rectangle around the line from (0, 0) to (dx, dy), or null. */
function reachOfBand(x, dx, dy, radius) {
  const length = Math.hypot(dx, dy);
  if (length === 0) return null;
  const across = within(x * dy, -dx, -radius * length, radius * length); // the distance from the line
  const along = within(x * dx, dy, 0, length * length); // the place along the line
  const low = Math.max(across[0], along[0]);
  const high = Math.min(across[1], along[1]);
  return high >= low ? [low, high] : null;
}

/** Returns the interval of y in which low <= constant + slope * y <= high. */
function within(constant, slope, low, high) {
  if (slope === 0) return constant >= low && constant <= high ? [-Infinity, Infinity] : [Infinity, -Infinity];
  const ends = [(low - constant) / slope, (high - constant) / slope];
  return slope > 0 ? ends : [ends[1], ends[0]];
}
