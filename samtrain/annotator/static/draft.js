// The draft that is kept on the server after every click, and the state that is made of it after a reload or on another machine.
//
// It holds the object that is not accepted yet, and the steps that led to it, so that undo works after a reload, too. Earlier
// steps keep no candidates: the model is asked again when somebody goes back to them.

import { decode, encode } from "./rle.js";
import { complete } from "./state.js";

const VERSION = 1;

/** Returns the draft as plain values, or null if there is nothing to keep. `idOf` gives the stored id of a mask's key. */
export function toDraft(state, seconds, idOf) {
  if (!state.current) return null;
  const table = new Map(); // each mask once
  const store = (mask) => {
    if (!mask) return null;
    if (!table.has(mask)) table.set(mask, table.size);
    return table.get(mask);
  };
  const current = snapshot(state.current, store, idOf, true);
  const steps = stepsOfObject(state.past).map((entry) => ({
    choice: Boolean(entry.choice),
    before: entry.before && snapshot(entry.before, store, idOf, false),
  }));
  return { version: VERSION, current, steps, story: state.story, seconds, masks: [...table.keys()].map(encode) };
}

/** Returns the state of a draft. `keyOf` gives the key of a stored mask's id, or null if the mask is gone. */
export function fromDraft(state, draft, keyOf) {
  if (draft?.version !== VERSION || !draft.current) return state;
  const masks = draft.masks.map(decode);
  const current = restored(draft.current, masks, keyOf);
  const past = draft.steps.map(({ choice, before }) => ({ choice, before: before && restored(before, masks, keyOf) }));
  return { ...state, current, past, future: [], story: draft.story ?? [], awaiting: null };
}

/** Returns the steps since the last one that changed the store: those are committed. */
function stepsOfObject(past) {
  const last = past.findLastIndex((entry) => entry.undo);
  return past.slice(last + 1);
}

function snapshot(object, store, idOf, whole) {
  const { key, candidates, ...rest } = object;
  return {
    ...rest,
    id: key === null ? null : idOf(key),
    base: store(object.base),
    mask: whole || object.painted ? store(object.mask) : null,
    candidates: whole && candidates ? candidates.map((each) => ({ ...each, mask: store(each.mask) })) : null,
    answered: whole || object.painted ? object.answered : !(object.points.length || object.box),
  };
}

function restored(snapshot, masks, keyOf) {
  const { id, ...rest } = snapshot;
  const at = (index) => (index === null ? null : masks[index]);
  return complete({
    ...rest,
    key: id === null ? null : keyOf(id),
    base: at(snapshot.base),
    mask: at(snapshot.mask),
    candidates: snapshot.candidates && snapshot.candidates.map((each) => ({ ...each, mask: at(each.mask) })),
  });
}
