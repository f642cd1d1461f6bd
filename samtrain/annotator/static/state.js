// The object that somebody is working on, with undo and redo: a pure state machine. No function here draws, waits or sends.
//
// A state is {image, current, past, future, story, seq, awaiting}.
// `current` is null or one object that is not accepted yet:
//   key         the existing mask that is changed, or null for a new one
//   base        the mask that the model is given as a prompt, or null
//   points      [{x, y, label}] in pixels of the image; box: [x0, y0, x1, y1] or null
//   strokes     [{mode, radius, points}] of brush and eraser
//   candidates  [{mask, score, stability}] or null; chosen: the index of the one that is used. The mask is null until it arrives
//   mask        what is shown and accepted, or null while the first answer is on its way
//   painted     whether `mask` was changed by hand after the model gave it
//   answered    whether the candidates belong to these prompts
// `past` and `future` hold one entry per step. A step that changed the store carries effects, {kind, key, ...}, which undo and
// redo return for the caller to carry out.

import { capsule, emptyMask, minus, union } from "./masks.js";

/** `seq` is a number that no question of this person has carried yet: the server drops previews with smaller ones. */
export function initialState(image, seq = 0) {
  return { image, current: null, past: [], future: [], story: [], seq, awaiting: null };
}

/** Returns the state after a click: label 1 belongs to the object, 0 does not. `row` is the selected mask, if one is. */
export function click(state, { x, y, label, time, row = null }) {
  const begun = promptable(state.current, row);
  const after = { ...begun, points: [...begun.points, { x, y, label }], answered: false };
  return step(state, after, { kind: "point", x: round(x), y: round(y), label, time });
}

/** Returns the state after a box; it replaces the object's earlier box. */
export function drawBox(state, { box, time, row = null }) {
  const ordered = [
    Math.min(box[0], box[2]), Math.min(box[1], box[3]), Math.max(box[0], box[2]), Math.max(box[1], box[3]),
  ];
  const after = { ...promptable(state.current, row), box: ordered, answered: false };
  return step(state, after, { kind: "box", box: ordered.map(round), time });
}

/** Returns the state after a stroke; mode is "brush" or "eraser". `mask` is the result, if the caller painted it already. */
export function stroke(state, { mode, radius, points, time, row = null, mask = null }) {
  const begun = state.current ?? newObject(row);
  const painted = mask ?? paint(begun.mask ?? emptyMask(state.image.height, state.image.width), mode, radius, points);
  const kept = { mode, radius: round(radius), points: points.map(([x, y]) => [round(x), round(y)]) };
  const after = { ...begun, mask: painted, painted: true, answered: true, strokes: [...begun.strokes, kept] };
  return step(state, after, { kind: "stroke", ...kept, time });
}

/** Returns a mask with a stroke added ("brush") or taken away ("eraser"). */
export function paint(mask, mode, radius, points) {
  let result = mask;
  points.forEach((point, i) => {
    const piece = capsule(mask.height, mask.width, points[Math.max(i - 1, 0)], point, radius);
    result = mode === "brush" ? union(result, piece) : minus(result, piece);
  });
  return result;
}

/** Returns the state with another candidate; several choices in a row are one step. */
export function choose(state, index, time) {
  const { current } = state;
  if (!current?.candidates?.[index]?.mask || !current.answered) return state;
  if (index === current.chosen && !current.painted) return state;
  const after = { ...current, chosen: index, mask: current.candidates[index].mask, painted: false };
  const event = { kind: "choose", index, time };
  if (state.past.at(-1)?.choice) return { ...state, current: after, future: [], story: [...state.story, event] };
  return step(state, after, event, { choice: true });
}

/** Returns the state without its current object. */
export function drop(state, time) {
  return state.current ? step(state, null, { kind: "drop", time }) : state;
}

/** Returns the state after the current object was accepted; the story begins again with the next object. */
export function accept(state, effects) {
  return { ...step(state, null, null, effects), story: [] };
}

/** Returns the state after a change of an existing mask: deleted, rejected, taken back. */
export function changeStored(state, effects) {
  return step(state, state.current, null, effects);
}

/** Says whether the model has to be asked. */
export function needsAnswer(state) {
  const { current } = state;
  return Boolean(current && !current.answered && state.awaiting === null && (current.points.length || current.box));
}

/** Returns the state that waits for an answer, and the question. */
export function ask(state) {
  const seq = state.seq + 1;
  const { points, box, base } = state.current;
  const question = { seq, points: points.map(({ x, y }) => [x, y]), labels: points.map(({ label }) => label), box, mask: base };
  return [{ ...state, seq, awaiting: seq }, question];
}

/** Returns the state with an answer, or the same state if it answers an older question. */
export function answer(state, { seq, candidates }) {
  if (seq !== state.awaiting || !state.current) return state;
  const chosen = bestOf(candidates);
  const current = {
    ...state.current, candidates, chosen, mask: candidates[chosen].mask, painted: false, answered: true,
  };
  return { ...state, current, awaiting: null };
}

/** Returns the state in which an answer is no longer awaited, because none will come. */
export function giveUp(state, seq) {
  return seq === state.awaiting ? { ...state, awaiting: null } : state;
}

/** Returns the state in which the model is asked once more, because another model is there. */
export function askAgain(state) {
  const { current } = state;
  if (!current || current.painted || !(current.points.length || current.box)) return { ...state, awaiting: null };
  return { ...state, awaiting: null, current: { ...current, answered: false } };
}

/** Returns the state one step back and the effect to carry out, if any. */
export function undo(state, time) {
  const entry = state.past.at(-1);
  if (!entry) return [state, null];
  const { before, ...rest } = entry;
  const future = [...state.future, { ...rest, after: state.current }];
  const story = [...state.story, { kind: "undo", time }];
  return [{ ...state, current: complete(before), past: state.past.slice(0, -1), future, story, awaiting: null }, entry.undo ?? null];
}

/** Returns the state one step forward and the effect to carry out, if any. */
export function redo(state, time) {
  const entry = state.future.at(-1);
  if (!entry) return [state, null];
  const { after, ...rest } = entry;
  const past = [...state.past, { ...rest, before: state.current }];
  const story = [...state.story, { kind: "redo", time }];
  return [{ ...state, current: complete(after), past, future: state.future.slice(0, -1), story, awaiting: null }, entry.redo ?? null];
}

/** Returns how the object came about, as the store names it. */
export function originOf(current) {
  if (current.key !== null) return "refined";
  return current.points.length || current.box ? "clicked" : "drawn";
}

/** Returns the index of the candidate with the highest score. */
export function bestOf(candidates) {
  return candidates.reduce((best, candidate, i) => (candidate.score > candidates[best].score ? i : best), 0);
}

/** Returns the object; if some of its candidates have never arrived, the model has to be asked again. */
export function complete(object) {
  const isComplete = !object?.candidates || object.painted || object.candidates.every(({ mask }) => mask);
  return isComplete ? object : { ...object, answered: false };
}

/** Returns an object without prompts: a new one, or an existing mask that is going to be changed. */
export function newObject(row) {
  return {
    key: row?.key ?? null, base: row?.mask ?? null, mask: row?.mask ?? null, points: [], box: null, strokes: [],
    candidates: null, chosen: 0, painted: false, answered: true,
  };
}

/** Returns the object to which a prompt is added; what was painted by hand becomes the mask prompt. */
function promptable(current, row) {
  const begun = current ?? newObject(row);
  return begun.painted ? { ...begun, base: begun.mask } : begun;
}

function step(state, after, event, effects = {}) {
  return {
    ...state,
    current: after,
    past: [...state.past, { ...effects, before: state.current }],
    future: [],
    story: event ? [...state.story, event] : state.story,
    awaiting: null,
  };
}

function round(value) {
  return Math.round(value * 100) / 100;
}
