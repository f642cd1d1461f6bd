// Which key does what. The help overlay is made of the same table, so that it cannot say anything else.

/** [action, keys, what it does, group]; a key may carry "ctrl+" and "shift+"; letters are lower case. */
export const BINDINGS = [
  ["accept", ["enter"], "Accept the mask", "Masks"],
  ["drop", ["escape"], "Drop what is not accepted yet", "Masks"],
  ["candidate1", ["1"], "First candidate", "Masks"],
  ["candidate2", ["2"], "Second candidate", "Masks"],
  ["candidate3", ["3"], "Third candidate", "Masks"],
  ["candidateNext", ["tab"], "Next candidate", "Masks"],
  ["undo", ["z", "ctrl+z"], "Undo", "Masks"],
  ["redo", ["y", "ctrl+shift+z", "ctrl+y"], "Redo", "Masks"],
  ["delete", ["delete", "backspace"], "Delete the selected mask", "Masks"],
  ["reject", ["r"], "Reject the selected mask, or take it back", "Masks"],
  ["review", ["a"], "Review: the mask is right, show the next", "Masks"],
  ["point", ["p"], "Clicks and boxes", "Tools"],
  ["brush", ["b"], "Brush", "Tools"],
  ["eraser", ["e"], "Eraser", "Tools"],
  ["select", ["v"], "Select a mask", "Tools"],
  ["narrower", ["["], "Narrower brush", "Tools"],
  ["wider", ["]"], "Wider brush", "Tools"],
  ["next", ["n"], "Image is done, next image", "Image"],
  ["skip", ["s"], "Skip this image", "Image"],
  ["previous", ["arrowleft"], "Back to the previous image", "Image"],
  ["images", ["i"], "List of images", "Image"],
  ["hide", ["h"], "Hide or show masks", "View"],
  ["contrast", ["c"], "Masks as outlines, filled, or in colours", "View"],
  ["disjoint", ["d"], "Keep touching objects apart", "View"],
  ["fit", ["0", "f"], "Show the whole image", "View"],
  ["zoomIn", ["+", "="], "Zoom in", "View"],
  ["zoomOut", ["-"], "Zoom out", "View"],
  ["help", ["?"], "Show or hide this list", "View"],
];

/** What the mouse does: [gesture, what it does]. */
export const GESTURES = [
  ["Left click", "This belongs to the object"],
  ["Right click, or Alt + click", "This does not belong to it"],
  ["Drag", "A box around the object"],
  ["Shift + click", "Select the mask under the pointer"],
  ["Wheel", "Zoom"],
  ["Shift + wheel", "Width of brush and eraser"],
  ["Space + drag, or middle button", "Move the image"],
];

const BY_KEY = new Map(BINDINGS.flatMap(([action, keys]) => keys.map((key) => [key, action])));

/** Returns the action of a keyboard event, or null. */
export function actionOf(event) {
  const key = event.key.toLowerCase();
  const ctrl = event.ctrlKey || event.metaKey;
  if (event.altKey) return null;
  if (ctrl) return BY_KEY.get(`ctrl+${event.shiftKey ? "shift+" : ""}${key}`) ?? null;
  return BY_KEY.get(key) ?? null;
}

/** Says whether keys belong to the element that has the focus: text is being typed there. */
export function isTyping(element) {
  return Boolean(element?.closest?.("input[type=text], input[type=search], textarea, select, [contenteditable]"));
}

const NAMES = { escape: "Esc", arrowleft: "←", delete: "Del", backspace: "Backspace", enter: "Enter", tab: "Tab" };

/** Returns a key as people read it: "Ctrl + Shift + Z". */
export function nameOfKey(key) {
  const parts = key === "+" ? ["+"] : key.split("+");
  return parts.map((part) => NAMES[part] ?? part[0].toUpperCase() + part.slice(1)).join(" + ");
}
