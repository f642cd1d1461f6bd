// The status bar: which model, which round, how much is done, how long a mask takes, how good the model was.

import { showStatus } from "./panel.js";

export function showServerStatus(status) {
  const { model, agreement } = status;
  // outside of rounds, the server says null of what there is not
  const [work, images, masks, seconds, metrics] = ["work", "images", "masks", "seconds_per_mask", "metrics"].map((name) => status[name] ?? {});
  const goals = work.goals ?? {};
  showNote(work);
  showStatus([
    ["Model", model ? model.name || (model.digest ?? "").slice(0, 10) : "none", model?.digest && `Digest ${model.digest}`, "status-model"],
    ["Round", roundOf(work), work.message, "status-round"],
    ["Images", images.total === undefined ? null : `${images.done} of ${goals.images ?? images.total}`, "Images done", "status-images"],
    ["Masks", masks.done === undefined ? null : goals.masks ? `${masks.done} of ${goals.masks}` : masks.done, "Masks accepted", "status-masks"],
    ["Seconds per mask", secondsOf(seconds), "Now, and in earlier rounds", "status-seconds"],
    ["val/miou_1", number(metrics["val/miou_1"], 3), "Mean IoU of the model after one click, on images held back from training", "status-metric"],
    ["Agreement", number(agreement?.iou, 2), "IoU between two people's masks", "status-agreement"],
  ]);
}

// What people should do in this round stands beside their masks: the images that measure the models need more care.
function showNote({ kind, message }) {
  const note = document.getElementById("work-note");
  if (!note) return;
  note.hidden = !message || !["annotate", "review"].includes(kind);
  note.firstElementChild.textContent = message ?? "";
}

function roundOf(work) {
  if (work.round === null || work.round === undefined) return null;
  return work.stage ? `${work.round} (stage ${work.stage})` : String(work.round);
}

function secondsOf({ now, rounds }) {
  const earlier = Object.entries(rounds ?? {}).map(([round, value]) => `${number(value, 1)} in round ${round}`);
  return [now === null || now === undefined ? null : number(now, 1), ...earlier].filter(Boolean).join(", ");
}

function number(value, digits) {
  return value === null || value === undefined ? null : Number(value).toFixed(digits);
}
