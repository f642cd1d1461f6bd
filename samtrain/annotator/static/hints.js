// The line under the image: what can be done now.

export function hintOf({ tool, current, row, settings, encoding }) {
  if (tool === "brush") return "Drag: paint. [ and ] or Shift + wheel: width. E: eraser. P: back to clicks.";
  if (tool === "eraser") return "Drag: erase. [ and ] or Shift + wheel: width. B: brush. P: back to clicks.";
  if (current) return "Left click: add. Right click: take away. 1 2 3: other candidates. Enter: accept. Esc: drop. Z: undo.";
  if (settings.review && row) return "A: it is right. R: reject it. Click or paint: correct it, then Enter.";
  if (row?.locked) return row.state === "rejected" ? "R: take it back. Esc: let go of it." : "R: reject it if it is wrong. Esc: let go of it.";
  if (row) return "Left click: add. Right click: take away. B and E: paint. Del: delete. Esc: let go of it.";
  if (tool === "select") return "Click a mask to select it, once more for the one below. P: back to clicks.";
  if (encoding.state !== "done") return "You can click already: the mask comes as soon as the image is prepared.";
  return "Click an object, or drag a box around it. Shift + click: select a mask. N: next image. ?: all keys.";
}
