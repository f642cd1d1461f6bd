// Reads and writes COCO's compressed run lengths, the form in which masks are stored and sent.
//
// The runs go down the columns, beginning with zeros. Each number is written in groups of 5 bits; from the fourth on, it is the
// difference from the number two before (pycocotools, common/maskApi.c: rleToString and rleFrString).

import { makeMask } from "./masks.js";

/** Returns the run lengths of a compressed string. */
export function decodeCounts(text) {
  const counts = [];
  let at = 0;
  while (at < text.length) {
    let value = 0;
    let shift = 0;
    let more = true;
    while (more) {
      if (at >= text.length) throw new Error("A mask's run lengths end in the middle of a number.");
      const bits = text.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      more = (bits & 0x20) !== 0;
      shift += 5;
      if (!more && bits & 0x10 && shift < 32) value |= -1 << shift; // a negative difference
    }
    if (counts.length > 2) value += counts[counts.length - 2];
    counts.push(value);
  }
  return counts;
}

/** Returns the compressed string of run lengths. */
export function encodeCounts(counts) {
  const codes = [];
  for (let i = 0; i < counts.length; i++) {
    let value = i > 2 ? counts[i] - counts[i - 2] : counts[i];
    let more = true;
    while (more) {
      let bits = value & 0x1f;
      value >>= 5;
      more = bits & 0x10 ? value !== -1 : value !== 0;
      if (more) bits |= 0x20;
      codes.push(bits + 48);
    }
  }
  let text = "";
  for (let at = 0; at < codes.length; at += 8192) text += String.fromCharCode(...codes.slice(at, at + 8192));
  return text;
}

/** Returns the mask of `{size: [height, width], counts}`; `counts` may be a string or a list. */
export function decode(segmentation) {
  const [height, width] = segmentation.size;
  const counts = typeof segmentation.counts === "string" ? decodeCounts(segmentation.counts) : segmentation.counts;
  const columns = [];
  let left = -1;
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const end = at + counts[i];
    if (i % 2 === 1 && end > at) {
      if (left < 0) left = Math.floor(at / height);
      for (let x = Math.floor(at / height); x * height < end; x++) {
        const column = (columns[x - left] ??= []);
        const top = Math.max(at - x * height, 0);
        const bottom = Math.min(end - x * height, height);
        if (column.length && column[column.length - 1] === top) column[column.length - 1] = bottom;
        else column.push(top, bottom);
      }
    }
    at = end;
  }
  if (at !== height * width) throw new Error(`A mask has ${at} pixels, but its image has ${width} x ${height}.`);
  for (let i = 0; i < columns.length; i++) columns[i] ??= [];
  return makeMask(height, width, Math.max(left, 0), columns);
}

/** Returns `{size: [height, width], counts}` of a mask; equal to what pycocotools writes for it. */
export function encode(mask) {
  const { height, width } = mask;
  const counts = [];
  let at = 0; // the end of the last run of ones
  mask.columns.forEach((column, i) => {
    const offset = (mask.left + i) * height;
    for (let k = 0; k < column.length; k += 2) {
      const start = offset + column[k];
      const end = offset + column[k + 1];
      if (start === at && counts.length) counts[counts.length - 1] += end - start; // continues from the column before
      else counts.push(start - at, end - start);
      at = end;
    }
  });
  if (at < height * width || !counts.length) counts.push(height * width - at);
  return { size: [height, width], counts: encodeCounts(counts) };
}
