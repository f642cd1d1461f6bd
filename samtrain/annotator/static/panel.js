// Everything around the canvas: buttons, the list of masks, the clock, the candidates, the status bar, the covers.

import { stateOf } from "./clock.js";
import { BINDINGS, GESTURES, nameOfKey } from "./keys.js";
import { swatchOf } from "./styles.js";

export const byId = (id) => document.getElementById(id);

const ORIGINS = { drawn: "drawn", clicked: "clicked", refined: "refined", prefilled: "prefilled", imported: "imported" };

function element(tag, className, text) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function setText(id, text) {
  const node = byId(id);
  if (node.textContent !== text) node.textContent = text;
}

export function showTool(tool, isHidden, contrast) {
  for (const each of document.querySelectorAll("[data-tool]")) each.setAttribute("aria-pressed", String(each.dataset.tool === tool));
  document.querySelector("[data-act=hide]").setAttribute("aria-pressed", String(isHidden));
  document.querySelector("[data-act=contrast]").dataset.contrast = contrast;
  const canvas = byId("canvas");
  canvas.classList.toggle("painting", tool === "brush" || tool === "eraser");
  canvas.classList.toggle("selecting", tool === "select");
  byId("brush-bar").hidden = tool !== "brush" && tool !== "eraser";
}

export function showRadius(radius) {
  byId("radius").value = Math.round(radius);
  setText("radius-text", `${Math.round(radius * 2)} px`);
}

/** Shows the candidates with their scores; `onChoose(index)`, `onPeek(index or null)` while the pointer is on a button. */
export function showCandidates(current, { onChoose, onPeek }) {
  const bar = byId("candidates");
  const candidates = current?.candidates;
  bar.hidden = !candidates || candidates.length < 2;
  if (bar.hidden) return;
  const state = JSON.stringify([candidates.map((each) => each.score), current.chosen, current.painted, current.answered]);
  if (bar.dataset.state === state) return;
  bar.dataset.state = state;
  const focused = [...bar.children].indexOf(document.activeElement);
  bar.replaceChildren(...candidates.map(({ score }, i) => {
    const choice = element("button");
    choice.append(element("kbd", "", String(i + 1)), element("span", "", shownScore(score)));
    choice.title = `Candidate ${i + 1}: the model expects an IoU of ${score.toFixed(3)}`;
    choice.setAttribute("aria-label", `Candidate ${i + 1}, score ${shownScore(score)}`);
    choice.setAttribute("aria-pressed", String(i === current.chosen && !current.painted));
    choice.dataset.testid = `candidate-${i + 1}`;
    choice.disabled = !current.answered;
    choice.addEventListener("click", () => onChoose(i));
    choice.addEventListener("pointerenter", () => onPeek(i));
    choice.addEventListener("pointerleave", () => onPeek(null));
    return choice;
  }));
  bar.children[focused]?.focus();
}

/** Returns the expected IoU as people read it; the model's own number may leave 0 to 1 a little. */
function shownScore(score) {
  return Math.min(Math.max(score, 0), 1).toFixed(2);
}

/** Shows the list of stored masks. */
export function showMasks(rows, { selected, contrast, onSelect, onPeek, onSave }) {
  const accepted = rows.filter((row) => row.state === "accepted").length;
  setText("mask-count", String(accepted));
  const list = byId("masks");
  const state = JSON.stringify([contrast, selected, rows.map((row) => [row.key, row.state, row.saving, row.error, row.area, row.label, row.id])]);
  if (list.dataset.state === state) return;
  list.dataset.state = state;
  const focused = list.contains(document.activeElement) ? document.activeElement.dataset.key : null;
  list.replaceChildren(...rows.map((row) => maskItem(row, { selected, contrast, onSelect, onPeek, onSave })).reverse());
  if (focused) list.querySelector(`[data-key="${CSS.escape(focused)}"]`)?.focus();
  list.querySelector("[aria-pressed=true]")?.scrollIntoView({ block: "nearest" });
}

function maskItem(row, { selected, contrast, onSelect, onPeek, onSave }) {
  const item = element("li", `${row.state}${row.error ? " failed" : ""}`);
  const choice = element("button");
  choice.dataset.key = row.key;
  choice.dataset.testid = "mask";
  choice.dataset.state = row.state;
  if (row.id !== null) choice.dataset.id = row.id;
  choice.setAttribute("aria-pressed", String(row.key === selected));
  const swatch = element("span", "swatch");
  swatch.style.background = swatchOf(row, contrast);
  choice.append(swatch, element("span", "name", nameOf(row)), element("span", "side", row.saving ? "saving …" : percent(row)));
  choice.title = row.error ?? `${nameOf(row)}, ${row.area.toLocaleString("en")} pixels`;
  choice.addEventListener("click", () => onSelect(row.key));
  choice.addEventListener("pointerenter", () => onPeek(row.key));
  choice.addEventListener("pointerleave", () => onPeek(null));
  item.append(choice);
  if (row.error) {
    const again = element("button", "", "Save again");
    again.addEventListener("click", () => onSave(row.key));
    item.append(again);
  }
  return item;
}

function nameOf(row) {
  const label = row.label || `Mask ${row.number + 1}`;
  if (row.error) return `${label}, not saved`;
  if (row.state === "rejected") return `${label}, rejected`;
  return row.locked ? `${label}, prefilled` : label;
}

function percent(row) {
  const share = (100 * row.area) / (row.mask.width * row.mask.height);
  return share >= 0.1 ? `${share.toFixed(1)} %` : `${row.area} px`;
}

/** Shows what is in work: an object, a selected mask, or nothing yet. */
export function showNow({ current, row, seconds, limit, isAsking, isRefused, isWaitingToAccept, settings, label }) {
  setText("now-title", titleOf(current, row));
  setText("now-text", textOf({ current, row, isAsking, isRefused, isWaitingToAccept }));
  const clock = byId("clock");
  clock.className = `clock ${stateOf(seconds, limit)}`;
  setText("clock", `${Math.floor(seconds)} s`);
  document.querySelector("[data-act=accept]").disabled = !current;
  document.querySelector("[data-act=drop]").disabled = !current && !row;
  byId("stored-buttons").hidden = !row || Boolean(current);
  const reject = document.querySelector("[data-act=reject]");
  reject.hidden = !row || !(row.locked || settings.review || row.state === "rejected");
  reject.firstChild.textContent = row?.state === "rejected" ? "Take back " : "Reject ";
  document.querySelector("[data-act=delete]").hidden = !row || row.locked || row.state === "rejected";
  document.querySelector("[data-act=review]").hidden = !row || !settings.review;
  byId("label-row").hidden = !settings.labels || !(current || row);
  const input = byId("label");
  if (document.activeElement !== input && input.value !== label) input.value = label;
}

function titleOf(current, row) {
  if (current?.key || (row && !current)) return row ? nameOf(row) : "Changed mask";
  return "New mask";
}

function textOf({ current, row, isAsking, isRefused, isWaitingToAccept }) {
  if (isRefused) return "The model gave no mask. Enter asks once more.";
  if (isWaitingToAccept) return "Accepted as soon as the model has answered.";
  if (isAsking && !current?.mask) return "The model is looking …";
  if (current) {
    const parts = [
      count(current.points.filter((point) => point.label).length, "click", "clicks"),
      count(current.points.filter((point) => !point.label).length, "background click", "background clicks"),
      current.box ? "a box" : "",
      count(current.strokes.length, "stroke", "strokes"),
    ].filter(Boolean);
    return `${capital(parts.join(", ") || "no prompt yet")}.${isAsking ? " The model is looking …" : ""}`;
  }
  if (row?.locked && row.state === "rejected") return "You rejected this mask.";
  if (row?.locked) return "It was there before you and is locked. Reject it if it is wrong.";
  if (row) return `${ORIGINS[row.origin] ?? row.origin}, ${Number(row.seconds).toFixed(1)} s. Click or paint to change it.`;
  return "Click the object that stands out most.";
}

function capital(text) {
  return text[0].toUpperCase() + text.slice(1);
}

function count(number, one, many) {
  return number ? `${number} ${number === 1 ? one : many}` : "";
}

/** Fills the status bar: [name, value] pairs, without those that have no value. */
export function showStatus(pairs) {
  const filled = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  const list = byId("status");
  const state = JSON.stringify(filled);
  if (list.dataset.state === state) return;
  list.dataset.state = state;
  list.replaceChildren(...filled.map(([name, value, title, testid]) => {
    const pair = element("div");
    pair.append(element("dt", "", name), element("dd", "", String(value)));
    if (title) pair.title = title;
    if (testid) pair.dataset.testid = testid;
    return pair;
  }));
}

/** Covers the work with a sentence: login, loading, waiting, finished. */
export function showCover(screen, { title = "", text = "", spins = false, progress = null, buttons = [] } = {}) {
  document.body.dataset.screen = screen;
  if (screen === "work") return;
  setText("cover-title", title);
  setText("cover-text", text);
  byId("cover-spinner").hidden = !spins;
  byId("login").hidden = screen !== "login";
  const bar = byId("cover-progress");
  bar.hidden = progress === null;
  if (progress !== null) bar.value = progress;
  const state = buttons.map(([name]) => name).join("|");
  const row = byId("cover-buttons");
  if (row.dataset.state !== state) {
    row.dataset.state = state;
    row.replaceChildren(...buttons.map(([name, act]) => {
      const made = element("button", "", name);
      made.addEventListener("click", act);
      return made;
    }));
  }
}

/** Fills the help overlay from the tables of keys and gestures. */
export function fillHelp() {
  const groups = new Map([["Mouse", GESTURES.map(([gesture, what]) => [[gesture], what])]]);
  for (const [, keys, what, group] of BINDINGS) {
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push([keys.map(nameOfKey), what]);
  }
  byId("help-body").replaceChildren(...[...groups].map(([group, rows]) => {
    const section = element("section");
    const list = element("dl");
    for (const [keys, what] of rows) {
      const term = element("dt");
      for (const key of keys) term.append(element("kbd", "", key));
      list.append(term, element("dd", "", what));
    }
    section.append(element("h2", "", group), list);
    return section;
  }));
}
