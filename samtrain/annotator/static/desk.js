// The way through the images: leases them, opens and finishes them, waits while a model trains, and says what goes wrong.

import { createBoard } from "./board.js";
import { stateOf } from "./clock.js";
import { createOutbox } from "./outbox.js";
import { byId, showCandidates, showCover, showMasks, showNow, showRadius, showTool } from "./panel.js";
import { hintOf } from "./hints.js";
import { openTask } from "./task.js";

const TRY_AGAIN = 4000; // ms between questions for the next image while there is none
const SURE = 6000; // ms within which a second N leaves a mask that is not accepted

export function createDesk({ api, session, messages, coach }) {
  const { settings } = session;
  let task = null;
  let model = session.model?.digest ?? null;
  let work = session.work ?? {};
  let isMoving = false; // between two images
  let heartbeat = null;
  let waiting = null; // the timer of the next question for an image
  let asked = {}; // the last question whether somebody is sure: until when a second key answers it, what it was, of which image
  let warnedKey = null; // the mask about which the clock has spoken
  let accepted = 0;
  let noImage = null; // why there is none, as the server said it
  let askedToEncode = 0; // when
  const visited = [];
  const reviewed = new Set();

  const outbox = createOutbox(refresh);
  const warn = (text) => messages.show("hint", "warn", text);
  const act = () => task?.act();
  const tell = {
    refused: (text) => messages.show("refused", "error", text, { stays: true }),
    trouble: (error) => messages.show("trouble", "error", troubleText(error), { stays: true }),
    fine: () => messages.clear("trouble"),
  };
  const board = createBoard(byId("canvas"), { task: () => task, changed: refresh, act, warn });
  setInterval(tick, 250);

  function troubleText(error) {
    const saves = outbox.waiting();
    const kept = saves === 1 ? "One change waits to be saved; keep this page open. " : `${saves} changes wait to be saved; keep this page open. `;
    return `${error.message} ${saves ? kept : ""}Trying again …`;
  }

  // ---- images

  async function begin(id) {
    if (id && (await openImage(Number(id), true))) return;
    await nextImage();
  }

  /** Asks for the next image and opens it, or says why there is none. */
  async function nextImage(after = null) {
    clearTimeout(waiting);
    noImage = null;
    let answer;
    try {
      answer = await api.persist("POST", "/api/next", after === null ? {} : { after }, { onTrouble: tell.trouble });
      tell.fine();
    } catch (error) {
      return showFailure(error, () => nextImage(after));
    }
    if (!answer.image) return showNoImage(answer);
    await open(answer.image, answer.lease);
  }

  /** Opens a certain image; returns whether that worked. */
  async function openImage(id, isQuiet = false) {
    try {
      const lease = await api.persist("POST", `/api/images/${id}/lease`, {}, { onTrouble: tell.trouble });
      tell.fine();
      await leave();
      await open({ id }, lease);
      return true;
    } catch (error) {
      if (!isQuiet) messages.show("open", "error", error.message);
      return false;
    }
  }

  async function open(image, lease) {
    closeTask();
    try {
      task = await openTask({ api, outbox, image, lease, settings: { ...settings, disjoint: byId("disjoint").checked }, tell, changed: refresh, lost });
    } catch (error) {
      return showFailure(error, () => nextImage());
    }
    if (visited.at(-1) !== task.image.id) visited.push(task.image.id);
    history.replaceState(null, "", `#image=${task.image.id}`);
    document.title = `${task.image.name} · samtrain`;
    for (const name of ["lease", "refused", "clock", "sure", "review"]) messages.clear(name);
    warnedKey = null;
    showCover("work");
    const tiles = `/api/images/${task.image.id}/tiles`;
    board.open(task.image, {
      load: async ({ level, column, row }, signal) => createImageBitmap(await api.blob(`${tiles}/${level}/${column}/${row}`, { signal })),
      onTrouble: (error) => messages.show("tiles", "error", `A part of the image could not be loaded: ${error.message}`),
    });
    board.redraw();
    beat(lease.expires_in);
    askToEncode();
    refresh();
    if (settings.review) reviewNext();
    byId("canvas").focus({ preventScroll: true });
  }

  async function askToEncode() {
    const asked = task;
    askedToEncode = performance.now();
    try {
      const answer = await api.persist("POST", `/api/images/${asked.image.id}/encode`, {}, { onTrouble: tell.trouble });
      if (asked === task) setEncoding(answer);
    } catch (error) {
      if (asked === task) setEncoding({ state: "failed", error: error.message });
    }
  }

  function setEncoding(told) {
    task.setEncoding(told);
    if (told.state !== "failed") return messages.clear("encoding");
    const text = `The image could not be encoded: ${told.error ?? "no reason was given."} You can paint masks with the brush all the same.`;
    messages.show("encoding", "error", text, { actions: [["Try again", askToEncode]] });
  }

  function closeTask() {
    clearTimeout(heartbeat);
    task?.close();
    task = null;
    board.close();
  }

  /** Gives the image back without finishing it. */
  async function leave() {
    if (!task) return;
    const { image } = task;
    const token = task.token();
    closeTask();
    await outbox.idle();
    api.call("DELETE", `/api/images/${image.id}/lease`, { token }).catch(() => {}); // it ends on its own, too
  }

  async function finish(state) {
    if (!task || isMoving) return;
    if (needsAnswerFirst(state)) return;
    isMoving = true;
    const { image } = task;
    const token = task.token();
    try {
      await outbox.idle();
      await api.persist("POST", `/api/images/${image.id}/finish`, { state, lease: token }, { onTrouble: tell.trouble });
      tell.fine();
      closeTask();
      await nextImage(image.id);
    } catch (error) {
      if (error.status === 409) lost(error);
      else tell.refused(`The image was not finished: ${error.message}`);
    } finally {
      isMoving = false;
      refresh();
    }
  }

  /** Says so if somebody leaves a mask behind, or an image without any; a second time is meant. */
  function needsAnswerFirst(state) {
    const unsaved = task.visible().filter((row) => row.error);
    const none = state === "done" && !task.visible().length;
    if (!(task.state().current || unsaved.length || none)) return false;
    const key = state === "done" ? "N" : "S";
    let text = "This image has no mask. Press N again if there is nothing in it, or S to skip it.";
    if (unsaved.length) text = `${unsaved.length} masks could not be saved and would be lost. Press ${key} again to go on all the same.`;
    else if (task.state().current) text = `This mask is not accepted yet: Enter accepts it, Esc drops it. Press ${key} again to leave it.`;
    if (asked.text === text && asked.image === task.image.id && performance.now() < asked.until) return false;
    asked = { text, image: task.image.id, until: performance.now() + SURE };
    messages.show("sure", "warn", text);
    return true;
  }

  async function previous() {
    const here = visited.pop();
    const before = visited.pop();
    if (before === undefined || !(await openImage(before))) {
      if (here !== undefined) visited.push(here);
      if (before === undefined) warn("There is no earlier image.");
    }
  }

  // ---- the lease

  function beat(expiresIn) {
    clearTimeout(heartbeat);
    heartbeat = setTimeout(renew, Math.max(expiresIn / 3, 1) * 1000);
  }

  async function renew() {
    const mine = task;
    if (!mine) return;
    try {
      const lease = await api.call("POST", `/api/images/${mine.image.id}/lease`, { token: mine.token() });
      if (mine !== task) return;
      task.setToken(lease.token);
      beat(lease.expires_in);
    } catch (error) {
      if (mine !== task) return;
      if (error.status === 409) lost(error);
      else beat(6); // the server is away; it is asked again in 2 s
    }
  }

  /** Says that the image belongs to somebody else now, and what can be done. */
  function lost(error, words = null) {
    clearTimeout(heartbeat);
    const isClosed = error.reason === "closed";
    const mine = task;
    const goOn = ["Next image", () => (closeTask(), nextImage(mine?.image.id))];
    const again = ["Take it again", () => takeAgain(mine)];
    messages.show("lease", "error", words ? `${words}: ${error.message}` : error.message, { actions: isClosed ? [goOn] : [again, goOn], stays: true });
    if (isClosed && mine && mine === task && !mine.state().current && !isMoving) {
      closeTask();
      nextImage();
    }
  }

  async function takeAgain(mine) {
    if (!mine || mine !== task) return;
    try {
      const lease = await api.call("POST", `/api/images/${mine.image.id}/lease`, {});
      const unsaved = [...mine.rows.values()].filter((row) => row.error);
      if (!unsaved.length) return open(mine.image, lease); // others may have changed the masks
      mine.setToken(lease.token);
      beat(lease.expires_in);
      warn("The image is yours again. What was refused stands in the list: look at it, and save it again.");
    } catch (error) {
      lost(error);
    }
  }

  // ---- when there is nothing to do

  function showNoImage(answer) {
    const { reason, message } = answer;
    noImage = answer;
    closeTask();
    history.replaceState(null, "", location.pathname);
    const { progress } = work;
    const share = typeof progress?.share === "number" ? progress.share : null;
    if (reason === "finished") {
      showCover("finished", { title: "All images are done", text: message ?? "Thank you. You can close this page.", buttons: [["Look for more", () => nextImage()]] });
    } else if (reason === "leased") {
      showCover("waiting", { title: "Others have the last images", text: message ?? "The next free image opens by itself.", spins: true });
    } else {
      const title = work.kind === "training" && work.round ? `Training round ${work.round} …` : "Waiting for work …";
      const text = `${message || work.message || ""}\nYou can stay on this page: it goes on by itself.`.trim();
      showCover("waiting", { title, text, spins: true, progress: share });
    }
    clearTimeout(waiting);
    waiting = setTimeout(() => nextImage(), TRY_AGAIN);
  }

  function showFailure(error, again) {
    showCover("failed", { title: "That did not work", text: error.message, buttons: [["Try again", again]] });
  }

  // ---- what the server tells

  function workChanged(next, nextModel) {
    if (next !== undefined) {
      const before = work;
      work = next ?? {};
      Object.assign(settings, work.settings, { review: work.kind === "review" });
      const isOther = ["kind", "round", "stage"].some((name) => before[name] !== work[name]);
      if (isOther && task) renew(); // a round that closed takes its images along
      else if (isOther && document.body.dataset.screen === "waiting") nextImage();
      else if (!task && noImage) showNoImage({ ...noImage, message: work.message || noImage.message });
    }
    if (nextModel) modelChanged(nextModel);
  }

  function modelChanged(next) {
    if (next?.error) return messages.show("model", "error", next.error, { stays: true });
    const digest = next?.digest ?? next?.model?.digest ?? null;
    if (digest === null || digest === model) return;
    const isFirst = model === null;
    model = digest;
    if (!task && noImage) nextImage();
    if (isFirst || !task) return;
    messages.show("model", "info", "A newer model is here. Your prompts are kept.");
    askToEncode();
    task.modelChanged();
  }

  function encodingChanged(told) {
    if (task && told.image === task.image.id) setEncoding(told);
  }

  function connected() {
    if (!task) return;
    renew();
    if (task.encoding().state !== "done") askToEncode();
  }

  // ---- review

  function reviewNext() {
    const open = task.visible().filter((row) => row.state === "accepted" && !row.revision && !reviewed.has(row.key));
    open.sort((one, other) => (other.doubt ?? -1) - (one.doubt ?? -1)); // where people's time pays most
    task.select(open.length ? open[0].key : null);
    if (open.length) board.lookAt(open[0].mask);
    else messages.show("review", "info", "All masks of this image are checked. N goes on to the next image.", { stays: true });
  }

  function reviewAccept() {
    const row = task.selected();
    if (!settings.review || !row || task.state().current) return;
    reviewed.add(row.key);
    if (row.state === "rejected") task.setState(row.key, "accepted");
    else task.confirm(row.key);
    reviewNext();
  }

  // ---- keys and buttons

  const actions = {
    accept() {
      const before = task.state().current;
      task.accept();
      if (before && !task.state().current) {
        accepted++;
        if (settings.review) {
          if (before.key) reviewed.add(before.key);
          reviewNext();
        }
      }
    },
    drop: () => (task.state().current ? task.drop() : task.select(null)),
    candidate1: () => task.choose(0),
    candidate2: () => task.choose(1),
    candidate3: () => task.choose(2),
    candidateNext: () => task.choose(((task.state().current.chosen ?? 0) + 1) % task.state().current.candidates.length),
    undo: () => task.undo(),
    redo: () => task.redo(),
    review: reviewAccept,
    delete() {
      const row = task.selected();
      if (task.state().current) task.undo();
      else if (row?.locked) warn("A prefilled mask cannot be deleted; R rejects it.");
      else if (row) task.setState(row.key, "deleted");
    },
    reject() {
      const row = task.selected();
      if (task.state().current || !row) return warn("Select a mask first: Shift + click, or the list.");
      if (!row.locked && !settings.review && row.state !== "rejected") return warn("This mask is yours: Del deletes it.");
      const isBack = row.state === "rejected";
      task.setState(row.key, isBack ? "accepted" : "rejected");
      if (settings.review && !isBack) {
        reviewed.add(row.key);
        reviewNext();
      }
    },
    disjoint() {
      byId("disjoint").checked = !byId("disjoint").checked;
      task.setDisjoint(byId("disjoint").checked);
    },
    next: () => finish("done"),
    skip: () => finish("skipped"),
    previous,
  };

  function perform(action) {
    act();
    if (board.perform(action)) return refresh();
    if (!task || isMoving || board.isBusy() || !actions[action]) return;
    board.stopPreview();
    actions[action]();
    refresh();
  }

  byId("disjoint").addEventListener("change", (event) => task?.setDisjoint(event.target.checked));
  byId("radius").addEventListener("input", (event) => board.setRadius(Number(event.target.value)));
  byId("label").addEventListener("input", (event) => task?.setLabel(event.target.value));
  byId("label").addEventListener("change", () => task?.endLabel());
  window.addEventListener("beforeunload", (event) => outbox.waiting() && event.preventDefault());

  // ---- what is shown

  function refresh() {
    showTool(board.tool(), board.isHidden(), board.contrast());
    showRadius(board.radius());
    showSaving();
    if (!task) return;
    const { current } = task.state();
    byId("canvas").dataset.object = !current ? "none" : current.answered ? "shown" : "asked";
    const row = task.selected();
    byId("image-name").textContent = task.image.name;
    byId("image-size").textContent = `${task.image.width} × ${task.image.height}`;
    showEncoding(task.encoding());
    showCandidates(current, { onChoose: choose, onPeek: board.peek });
    showMasks(task.visible(), {
      selected: row?.key ?? null, contrast: board.contrast(), onSelect: pick, onPeek: board.peek, onSave: (key) => task.save(key),
    });
    showNow({
      current, row, seconds: task.seconds(), limit: settings.seconds_per_mask, settings, label: task.label(),
      isAsking: task.isAsking(), isRefused: task.isRefused(), isWaitingToAccept: task.isWaitingToAccept(),
    });
    byId("hint").textContent = hintOf({ tool: board.tool(), current, row, settings, encoding: task.encoding() });
    document.querySelector("[data-act=undo]").disabled = !task.state().past.length;
    document.querySelector("[data-act=redo]").disabled = !task.state().future.length;
    const touched = Boolean(current && (current.points.length + current.strokes.length > 1 || task.state().story.some(({ kind }) => kind === "choose")));
    if (settings.review) coach.hide();
    else coach.update({ hasObject: Boolean(current), touched, accepted });
    board.redraw();
  }

  function choose(index) {
    board.peek(null);
    task.choose(index);
  }

  function pick(key) {
    if (!task.select(task.selected()?.key === key ? null : key)) warn("Accept the mask in work (Enter) or drop it (Esc) first.");
  }

  function showSaving() {
    const chip = byId("saving");
    chip.hidden = outbox.waiting() === 0;
    chip.className = "chip busy";
    chip.textContent = "saving";
  }

  function showEncoding({ state, position, seconds }) {
    const chip = byId("encoding");
    chip.hidden = state === "done";
    chip.className = state === "failed" ? "chip bad" : "chip busy";
    const ahead = position > 0 ? `, ${position} before it` : "";
    const since = seconds ? ` ${Math.round(seconds)} s` : " …";
    const texts = { none: "The image waits for the encoder", queued: `The image waits for the encoder${ahead}`, running: `The encoder looks at the image${since}` };
    chip.textContent = texts[state] ?? (state === "failed" ? "Encoding failed" : "");
  }

  /** Keeps the clock going and speaks once when a mask takes long. */
  function tick() {
    if (!task) return;
    // events say so, too, but a stream may break
    if (!["done", "failed"].includes(task.encoding().state) && performance.now() - askedToEncode > 3000) askToEncode();
    const { current } = task.state();
    const seconds = task.seconds();
    const clock = byId("clock");
    clock.className = `clock ${stateOf(seconds, settings.seconds_per_mask)}`;
    clock.textContent = `${Math.floor(seconds)} s`;
    const key = `${task.image.id} ${accepted}`;
    if (stateOf(seconds, settings.seconds_per_mask) !== "over" || warnedKey === key || settings.review) return;
    warnedKey = key;
    const what = current ? "Enter accepts the mask as it is" : "If nothing else stands out";
    messages.show("clock", "warn", `${settings.seconds_per_mask} seconds. ${what}${current ? "; if" : ", then"} this image gets hard, N goes on to the next one.`);
  }

  return { begin, openImage, perform, workChanged, modelChanged, encodingChanged, connected, hasCandidates: () => Boolean(task?.state().current?.candidates) };
}
