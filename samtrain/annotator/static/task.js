// One image in work: its lease, its stored masks, the object that somebody is making, and everything that is sent about them.

import { startClock, secondsOf, touch } from "./clock.js";
import { fromDraft, toDraft } from "./draft.js";
import { area, isEmpty, minus } from "./masks.js";
import { decode, encode } from "./rle.js";
import * as editor from "./state.js";

const AFTER_PAINTING = 50; // ms after an answer until its masks are kept in the draft: they are painted first

/**
 * Opens an image. `tell` shows messages: tell.refused(text), tell.trouble(text), tell.fine(). `changed()` is called after each
 * change; `lost(error, words)` when the server says that the lease is gone; words say what failed.
 */
export async function openTask({ api, outbox, image: { id }, lease, settings, tell, changed, lost }) {
  const path = `/api/images/${id}`;
  const [image, listed, kept] = await Promise.all([
    api.call("GET", path),
    api.call("GET", `${path}/masks?state=accepted,rejected`),
    api.call("GET", `${path}/draft`),
  ]);
  const rows = new Map();
  let created = 0; // gives each mask its colour
  let state = editor.initialState(image, Date.now());
  let clock = startClock(performance.now());
  let token = lease.token;
  let request = crypto.randomUUID(); // of the mask in work; a repeated save is one mask
  let selected = null; // the key of a stored mask
  let label = "";
  let flying = null; // the question in flight: {controller, candidates}, of which the candidates arrive one by one
  let wanted = null; // the candidate that was chosen before it arrived
  let refused = null; // the object that the server would not answer
  let acceptNext = false; // Enter came before the answer
  let disjoint = settings.disjoint;
  let live = null; // {mode, radius, points, mask} of the stroke that is being drawn
  let draftSeq = kept?.seq ?? 0;
  let draftState = "saved"; // "saving", "dirty"
  let closed = false;
  let encoding = { state: image.encoding ?? "none" };

  for (const each of listed) addRow(`m${each.id}`, each);
  restoreDraft(kept?.content);

  // ---- stored masks

  function addRow(key, stored) {
    rows.set(key, { key, number: created++, saving: false, error: null, ...fieldsOf(stored) });
    return rows.get(key);
  }

  function fieldsOf(stored) {
    const { id, state: kind, locked, origin, annotator, label: text, seconds, revision, request: uuid, score, doubt } = stored;
    const mask = decode(stored.segmentation);
    return { id, state: kind, locked, origin, annotator, label: text ?? "", seconds, revision, request: uuid, score, doubt, mask, area: area(mask) };
  }

  function visible() {
    return [...rows.values()].filter((each) => each.state !== "deleted");
  }

  function select(key) {
    if (state.current) return false;
    selected = key;
    label = key ? rows.get(key).label : "";
    changed();
    return true;
  }

  const chosenRow = () => (selected ? rows.get(selected) : null);

  // ---- the object in work

  function now() {
    return secondsOf(clock, performance.now(), settings.idle_seconds);
  }

  function act() {
    clock = touch(clock, performance.now(), settings.idle_seconds);
  }

  const time = () => Math.round(now() * 100) / 100;

  /** Takes the next state, asks the model if that has to be, and keeps the draft. */
  function take(next) {
    if (next === state) return;
    state = next;
    if (state.current === null) refused = null;
    acceptNext = false;
    wanted = null;
    askModel();
    keepDraft();
    changed();
  }

  async function askModel() {
    const isAsked = !closed && editor.needsAnswer(state) && state.current !== refused;
    const isArriving = flying?.candidates && flying.candidates === state.current?.candidates;
    if (isAsked || (state.awaiting === null && !isArriving)) {
      flying?.controller.abort();
      flying = null;
    }
    if (!isAsked) return;
    const mine = (flying = { controller: new AbortController(), candidates: null });
    let question;
    [state, question] = editor.ask(state);
    const body = { ...question, mask: question.mask && encode(question.mask) };
    try {
      const options = { onTrouble: tell.trouble, signal: mine.controller.signal };
      await api.persistLines("POST", `${path}/prompts`, body, (line) => receive(mine, line), options);
      tell.fine();
    } catch (error) {
      if (error.name === "AbortError") return;
      refused = state.awaiting === question.seq ? state.current : refused;
      state = editor.giveUp(state, question.seq);
      acceptNext = false;
      tell.refused(`The model gave no mask: ${error.message}`);
      changed();
    }
  }

  /** Takes a candidate of an answer. The best one comes first and is shown at once. */
  function receive(asked, { seq, model, scores, index, candidate }) {
    const isFirst = asked.candidates === null;
    asked.candidates ??= scores.map((score) => ({ mask: null, score, stability: null }));
    const { segmentation, stability_score: stability } = candidate;
    Object.assign(asked.candidates[index], { mask: decode(segmentation), stability: stability ?? null });
    if (isFirst) {
      const before = state;
      state = editor.answer(state, { seq, candidates: asked.candidates });
      if (state === before) return;
      state = { ...state, current: { ...state.current, model: model ?? null } };
    }
    setTimeout(keepDraft, AFTER_PAINTING); // its prompts are kept already
    changed();
    const isAccepted = acceptNext && (isFirst || index === wanted);
    if (index === wanted) take(editor.choose(state, index, time()));
    if (isAccepted) accept();
  }

  function choose(index) {
    const candidate = state.current?.candidates?.[index];
    if (candidate && !candidate.mask && flying) wanted = index;
    else take(editor.choose(state, index, time()));
  }

  // ---- accepting

  function accept() {
    const { current } = state;
    if (!current) return;
    if (!current.answered) {
      acceptNext = current !== refused;
      if (!acceptNext) askOnceMore();
      return;
    }
    if (wanted !== null) {
      acceptNext = true;
      return;
    }
    const mask = disjoint ? apartFromOthers(current) : current.mask;
    if (!mask || isEmpty(mask)) {
      tell.refused(disjoint && !isEmpty(current.mask)
        ? "Nothing is left of this mask beside its neighbours. Switch “Keep touching objects apart” off, or drop the mask."
        : "This mask is empty: click or paint the object first.");
      return;
    }
    if (current.key === null) acceptNew(current, mask);
    else acceptChange(rows.get(current.key), current, mask);
    clock = startClock(performance.now());
    request = crypto.randomUUID();
    label = "";
    selected = null;
    dropDraft();
    changed();
  }

  function apartFromOthers(current) {
    const others = visible().filter((each) => each.state === "accepted" && each.key !== current.key);
    return others.reduce((left, each) => minus(left, each.mask), current.mask);
  }

  function bodyOf(current, mask) {
    const candidate = current.candidates?.[current.chosen];
    return {
      segmentation: encode(mask),
      points: current.points.map(({ x, y }) => [x, y]),
      labels: current.points.map((point) => point.label),
      box: current.box,
      strokes: current.strokes,
      seconds: time(),
      ...(current.model ? { model: current.model } : {}),
      score: candidate?.score ?? null,
      stability_score: candidate?.stability ?? null,
      origin: editor.originOf(current),
      story: state.story,
      ...(settings.labels && label.trim() ? { label: label.trim() } : {}),
    };
  }

  function acceptNew(current, mask) {
    const key = request;
    const body = { ...bodyOf(current, mask), request, disjoint };
    rows.set(key, {
      key, number: created++, id: null, state: "accepted", locked: false, origin: body.origin, annotator: null, label: body.label ?? "",
      seconds: body.seconds, revision: 0, request, score: body.score, mask, area: area(mask), saving: true, error: null, body,
    });
    const change = (kind) => ({ kind: "state", key, state: kind });
    state = editor.accept(state, { undo: change("deleted"), redo: change("accepted") });
    save(key);
  }

  /** Sends a mask that is not stored yet. */
  function save(key) {
    const each = rows.get(key);
    each.saving = true;
    each.error = null;
    outbox.add(() => send("POST", `${path}/masks`, () => ({ ...each.body, lease: token }))).then(
      (stored) => {
        const { state: kind } = each; // it may have been deleted meanwhile
        Object.assign(each, fieldsOf(stored), { saving: false, body: null, state: kind });
        changed();
      },
      (error) => fail(each, error, "This mask was not saved"),
    );
  }

  function acceptChange(each, current, mask) {
    const before = { mask: each.mask, seconds: each.seconds };
    const { story, ...body } = bodyOf(current, mask);
    const after = { mask, seconds: Math.round((before.seconds + body.seconds) * 100) / 100 };
    const change = (value) => ({ kind: "mask", key: each.key, ...value });
    state = editor.accept(state, { undo: change(before), redo: change(after) });
    put(each, { ...after }, { ...body, story, seconds: after.seconds });
  }

  // ---- changes of stored masks

  /** Changes a stored mask, or deletes it (`body` null): at once here, then in the store; what it refuses is taken back. */
  function put(each, shown, body) {
    const before = Object.fromEntries(Object.keys(shown).map((name) => [name, each[name]]));
    Object.assign(each, shown, { saving: true });
    if (shown.mask) each.area = area(shown.mask);
    const write = async () => {
      if (each.id === null) throw new Error("the mask itself was not saved");
      const write = () => ({ ...body, revision: each.revision, lease: token });
      return send(body ? "PUT" : "DELETE", `${path}/masks/${each.id}`, write);
    };
    outbox.add(write).then(
      (stored) => {
        each.revision = stored.revision;
        each.saving = false;
        changed();
      },
      (error) => {
        Object.assign(each, before);
        each.area = area(each.mask);
        fail(each, error, "This change was not saved", each.id === null);
      },
    );
    changed();
  }

  function fail(each, error, words, isUnsaved = each.id === null) {
    each.saving = false;
    each.error = isUnsaved ? error.message : null;
    if (error.status === 409) lost(error, words);
    else tell.refused(`${words}: ${error.message}`);
    changed();
  }

  /** Sends what `write` gives when its turn has come: the lease and the revision may have changed meanwhile. */
  async function send(method, where, write) {
    const answer = await api.persist(method, where, write(), { onTrouble: tell.trouble });
    tell.fine();
    return answer;
  }

  /** Deletes, rejects or takes back a stored mask, as one step of undo. */
  function setState(key, kind) {
    const each = rows.get(key);
    if (each.id === null && !each.saving) return forget(key);
    const change = (value) => ({ kind: "state", key, state: value });
    state = editor.changeStored(state, { undo: change(each.state), redo: change(kind) });
    carryOut(change(kind));
    if (kind === "deleted" && selected === key) selected = null;
    changed();
  }

  /** Notes that somebody found a mask right: its revision grows, and it is not shown for review again. */
  function confirm(key) {
    put(rows.get(key), { state: "accepted" }, { state: "accepted" });
  }

  /** Forgets a mask that could not be saved. */
  function forget(key) {
    rows.delete(key);
    if (selected === key) selected = null;
    changed();
  }

  function relabel(text) {
    const each = chosenRow();
    if (each && each.label !== text.trim()) put(each, { label: text.trim() }, { label: text.trim() });
  }

  function carryOut(effect) {
    const each = effect && rows.get(effect.key);
    if (!each) return;
    if (effect.kind === "state") put(each, { state: effect.state }, effect.state === "deleted" ? null : { state: effect.state });
    else put(each, { mask: effect.mask, seconds: effect.seconds }, { segmentation: encode(effect.mask), seconds: effect.seconds });
  }

  // ---- drafts

  async function keepDraft() {
    if (closed) return;
    draftState = draftState === "saved" ? "saving" : "dirty";
    if (draftState === "dirty") return;
    do {
      draftState = "saving";
      try {
        const content = toDraft(state, time(), (key) => rows.get(key)?.id ?? null);
        draftSeq++;
        if (content) {
          const body = { content: { ...content, request, label }, seq: draftSeq };
          await api.persist("PUT", `${path}/draft`, body, { onTrouble: tell.trouble });
        } else {
          await api.persist("DELETE", `${path}/draft`, { seq: draftSeq }, { onTrouble: tell.trouble });
        }
        tell.fine();
      } catch (error) {
        tell.refused(`The draft was not saved: ${error.message}`);
      }
    } while (draftState === "dirty");
    draftState = "saved";
  }

  /** Forgets the draft after its mask was stored, not before. */
  function dropDraft() {
    outbox.add(keepDraft, false);
  }

  function restoreDraft(content) {
    // a mask that was stored although its answer got lost needs no draft
    if (!content || listed.some((each) => each.request && each.request === content.request)) return;
    const next = fromDraft(state, content, (id) => (rows.has(`m${id}`) ? `m${id}` : null));
    if (!next.current) return;
    state = next;
    request = content.request ?? request;
    label = content.label ?? "";
    selected = next.current.key;
    clock = startClock(performance.now(), content.seconds ?? 0);
  }

  function askOnceMore() {
    refused = null;
    acceptNext = false;
    askModel();
    changed();
  }

  // ---- undo and redo

  function step(move) {
    const known = state.current;
    const [next, effect] = move(state, time());
    if (next === state) return;
    if (effect) request = crypto.randomUUID(); // what is accepted now is another mask
    if (next.current && next.current.key !== known?.key) selected = next.current.key;
    take(next);
    carryOut(effect);
  }

  if (editor.needsAnswer(state)) askModel();

  return {
    image,
    rows,
    visible,
    select,
    act,
    accept,
    setState,
    confirm,
    save,
    askOnceMore,
    state: () => state,
    selected: chosenRow,
    seconds: now,
    live: () => live,
    label: () => label,
    setLabel(text) {
      label = text;
      if (state.current) keepDraft();
    },
    endLabel: () => !state.current && relabel(label),
    token: () => token,
    setToken: (value) => (token = value),
    disjoint: () => disjoint,
    setDisjoint(value) {
      disjoint = value;
      changed();
    },
    encoding: () => encoding,
    setEncoding(value) {
      encoding = value;
      changed();
    },
    isAsking: () => state.awaiting !== null,
    isRefused: () => state.current !== null && state.current === refused,
    isWaitingToAccept: () => acceptNext,
    click: (x, y, kind) => take(editor.click(state, { x, y, label: kind, time: time(), row: chosenRow() })),
    box: (box) => take(editor.drawBox(state, { box, time: time(), row: chosenRow() })),
    choose,
    drop: () => take(editor.drop(state, time())),
    undo: () => step(editor.undo),
    redo: () => step(editor.redo),
    modelChanged() {
      take(editor.askAgain(state));
    },
    startStroke(mode, radius, point) {
      const base = state.current?.mask ?? chosenRow()?.mask ?? { height: image.height, width: image.width, left: 0, columns: [] };
      live = { mode, radius, points: [point], mask: editor.paint(base, mode, radius, [point]) };
      changed();
    },
    moveStroke(point) {
      if (!live) return;
      const from = live.points.at(-1);
      if (Math.hypot(point[0] - from[0], point[1] - from[1]) < Math.min(0.5, live.radius / 4)) return;
      live = { ...live, points: [...live.points, point], mask: editor.paint(live.mask, live.mode, live.radius, [from, point]) };
      changed();
    },
    endStroke(isKept) {
      const stroke = live;
      live = null;
      if (stroke && isKept) take(editor.stroke(state, { ...stroke, time: time(), row: chosenRow() }));
      else changed();
    },
    /** Asks for the mask of one click without making it. */
    async preview([x, y]) {
      const body = { points: [[x, y]], labels: [1], box: null, mask: null, seq: state.seq, preview: true };
      const reply = await api.call("POST", `${path}/prompts`, body);
      const best = reply.candidates.reduce((one, other) => (other.score > one.score ? other : one));
      return { mask: decode(best.segmentation), score: best.score };
    },
    close() {
      closed = true;
      flying?.controller.abort();
    },
  };
}
