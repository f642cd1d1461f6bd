// The overlay with all images: which are done, by whom, and how many masks they have. A click opens one.

import { byId } from "./panel.js";

const AT_ONCE = 100;
const STATES = { open: "open", done: "done", skipped: "skipped", closed: "closed" };
let offset = 0;

/** Fills the overlay; `open(id)` is called for the image that was chosen. */
export async function showImages(api, open, messages) {
  const list = byId("image-list");
  let images;
  try {
    images = await api.call("GET", `/api/images?limit=${AT_ONCE + 1}&offset=${offset}`);
  } catch (error) {
    messages.show("images", "error", `The list of images could not be read: ${error.message}`);
    return;
  }
  const more = images.length > AT_ONCE;
  const shown = images.slice(0, AT_ONCE);
  list.replaceChildren(...shown.map((image) => itemOf(image, open)));
  byId("images-range").textContent = shown.length ? `${offset + 1} to ${offset + shown.length}` : "none";
  turnPage("images-before", offset > 0, -AT_ONCE);
  turnPage("images-after", more, AT_ONCE);

  function turnPage(id, isThere, by) {
    const control = byId(id);
    control.disabled = !isThere;
    control.onclick = () => {
      offset = Math.max(offset + by, 0);
      showImages(api, open, messages);
    };
  }
}

function itemOf(image, open) {
  const item = document.createElement("li");
  const choice = document.createElement("button");
  choice.dataset.testid = "image";
  choice.dataset.id = image.id;
  choice.disabled = image.state === "closed";
  const masks = image.masks === 1 ? "1 mask" : `${image.masks} masks`;
  const texts = [image.name, STATES[image.state] ?? image.state, masks, image.leased_by ? `with ${image.leased_by}` : ""];
  choice.append(...texts.map((text, i) => {
    const part = document.createElement("span");
    part.className = i ? "quiet" : "name";
    part.textContent = text;
    return part;
  }));
  choice.addEventListener("click", () => open(image.id));
  item.append(choice);
  return item;
}
