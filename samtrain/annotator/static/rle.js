// Reads and writes COCO's compressed run lengths, the form in which masks are stored and sent.
//
// The runs go down the columns, beginning with zeros. Each number is written in groups of 5 bits; from the fourth on, it is the
// difference from the number two before (pycocotools, common/maskApi.c: rleToString and rleFrString).

/** Returns the run lengths of a compressed string. */
export function decodeCounts(text) {
  const counts = new Int32Array(text.length);
  let number = 0;
  for (let at = 0; at < text.length; number++) {
    let value = 0;
    let bits = 0x20;
    for (let shift = 0; bits & 0x20; shift += 5) {
      if (at >= text.length) throw new Error("A mask's run lengths end in the middle of a number.");
      bits = text.charCodeAt(at++) - 48;
      value |= (bits & 0x1f) << shift;
      if (!(bits & 0x20) && bits & 0x10 && shift < 27) value |= -1 << (shift + 5); // a negative difference
    }
    counts[number] = number > 2 ? value + counts[number - 2] : value;
  }
  return counts.subarray(0, number);
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

/** A mask as the server sent it. Its columns are made when somebody looks at it, and it is sent back as it came. */
class StoredMask {
  #columns = null;
  #left = 0;

  constructor(segmentation) {
    [this.height, this.width] = segmentation.size;
    this.segmentation = segmentation;
  }

  get columns() {
    if (!this.#columns) [this.#left, this.#columns] = columnsOf(this.segmentation);
    return this.#columns;
  }

  get left() {
    return this.columns && this.#left;
  }
}

/** Returns the mask of `{size: [height, width], counts}`; `counts` may be a string or a list. */
export function decode(segmentation) {
  return new StoredMask(segmentation);
}

/** Returns the first column of a mask and the spans of its columns. */
function columnsOf({ size: [height, width], counts: given }) {
  const counts = typeof given === "string" ? decodeCounts(given) : given;
  // the runs of ones, cut where a column ends: at most one more span for each column
  const spans = new Int32Array(counts.length + 2 + 2 * width);
  const columns = [];
  let left = 0;
  let begin = 0; // of the column's spans
  let end = 0;
  let x = 0;
  let at = 0;
  for (let i = 0; i < counts.length; i++) {
    const until = at + counts[i];
    if (i % 2 === 0) at = until;
    while (at < until) {
      while (at >= (x + 1) * height) closeColumn();
      const top = at - x * height;
      const bottom = Math.min(until - x * height, height);
      if (end > begin && spans[end - 1] === top) spans[end - 1] = bottom;
      else {
        spans[end++] = top;
        spans[end++] = bottom;
      }
      at += bottom - top;
    }
  }
  if (at !== height * width) throw new Error(`A mask has ${at} pixels, but its image has ${width} x ${height}.`);
  if (end > begin) closeColumn();
  return [left, columns];

  function closeColumn() {
    if (!columns.length && end === begin) left++;
    else columns.push(spans.subarray(begin, end));
    begin = end;
    x++;
  }
}

/** Returns `{size: [height, width], counts}` of a mask; equal to what pycocotools writes for it. */
export function encode(mask) {
  if (typeof mask.segmentation?.counts === "string") return mask.segmentation;
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
