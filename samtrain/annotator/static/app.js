// The page: signs in, opens images, and joins canvas, keys and server.

import { createApi } from "./api.js";
import { createCoach } from "./coach.js";
import { createDesk } from "./desk.js";
import { showImages } from "./images.js";
import { actionOf, isTyping } from "./keys.js";
import { listenToServer } from "./live.js";
import { createMessages } from "./messages.js";
import { byId, fillHelp, showCover } from "./panel.js";
import { showServerStatus } from "./status.js";

const messages = createMessages(byId("messages"));
const api = createApi();
let session = null;
let desk = null;

fillHelp();
start();

async function start() {
  showCover("loading", { title: "Opening …", spins: true });
  const link = new URLSearchParams(location.hash.slice(1));
  if (link.has("token")) {
    history.replaceState(null, "", location.pathname); // the token leaves the address bar and the history
    if (!(await signIn(link.get("token")))) return;
  }
  await openSession();
}

async function signIn(token) {
  try {
    await api.persist("POST", "/api/login", { token }, { onTrouble: showTrouble });
    return true;
  } catch (error) {
    showLogin(error.message);
    return false;
  }
}

function showTrouble(error, seconds) {
  showCover("loading", { title: "The server does not answer", text: `${error.message} Trying again every ${seconds} s …`, spins: true });
}

function showLogin(text) {
  showCover("login", { title: "Who are you?", text });
  byId("token").focus();
}

byId("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  const given = byId("token").value.trim();
  const token = given.includes("#token=") ? given.split("#token=")[1] : given;
  if (token && (await signIn(token))) {
    byId("token").value = "";
    await openSession();
  }
});

async function openSession() {
  try {
    session = await api.persist("GET", "/api/session", undefined, { onTrouble: showTrouble });
  } catch (error) {
    if (error.status === 401) showLogin("Open the link that you were given, or type your token.");
    else showCover("failed", { title: "The page cannot begin", text: error.message, buttons: [["Try again", start]] });
    return;
  }
  byId("annotator").textContent = session.annotator;
  byId("disjoint").checked = Boolean(session.settings.disjoint);
  const coach = createCoach(byId("coach"), byId("coach-steps"), byId("coach-close"));
  desk = createDesk({ api, session, messages, coach });
  followServer();
  showServerStatus(session.status ?? session);
  await desk.begin(new URLSearchParams(location.hash.slice(1)).get("image"));
}

function followServer() {
  listenToServer(api, {
    status(value) {
      showServerStatus(value);
      desk.workChanged(value.work, value.model);
    },
    work: (value) => desk.workChanged(value, null),
    model: (value) => desk.modelChanged(value),
    encoding: (value) => desk.encodingChanged(value),
    connection(isUp) {
      const chip = byId("connection");
      chip.hidden = isUp;
      chip.className = "chip bad";
      chip.textContent = "The server does not answer";
      if (isUp) desk.connected();
    },
  });
}

// ---- keys and buttons

const overlays = { help: byId("help"), images: byId("images") };

function openOverlay(name) {
  const overlay = overlays[name];
  if (overlay.open) return overlay.close();
  if (name === "images") showImages(api, (id) => (overlay.close(), desk.openImage(id)), messages);
  overlay.showModal();
}

for (const overlay of Object.values(overlays)) {
  overlay.querySelector(".close").addEventListener("click", () => overlay.close());
  overlay.addEventListener("click", (event) => event.target === overlay && overlay.close());
}
byId("b-help").addEventListener("click", () => openOverlay("help"));
byId("b-images").addEventListener("click", () => openOverlay("images"));

function perform(action) {
  if (action === "help") return openOverlay("help");
  if (!desk) return;
  if (action === "images") return openOverlay("images");
  desk.perform(action);
}

window.addEventListener("keydown", (event) => {
  const action = actionOf(event);
  const inDialog = Object.values(overlays).some((overlay) => overlay.open);
  if (!action || (inDialog && action !== "help")) return;
  if (isTyping(event.target)) {
    // Enter and Esc leave the field; everything else is text
    if (action !== "accept" && action !== "drop") return;
    if (event.target.closest("form")) return;
    event.target.blur();
    if (action === "drop") return;
  }
  const onControl = event.target.closest?.("button, a");
  if (action === "accept" && onControl) return; // Enter presses the button that has the focus
  if (action === "candidateNext" && (event.shiftKey || onControl || event.target.closest?.("input") || !desk?.hasCandidates())) return; // Tab moves the focus
  event.preventDefault();
  perform(action);
});

document.addEventListener("click", (event) => {
  const control = event.target.closest("[data-act], [data-tool]");
  if (control && !control.disabled) perform(control.dataset.act ?? control.dataset.tool);
  // a click with the mouse leaves the keys to the canvas
  if (event.detail > 0 && event.target.closest("main button, aside button, nav button")) byId("canvas").focus({ preventScroll: true });
});
