// The hint of the first visit: three steps that tick themselves off as they are done, until three masks are made.

const SEEN = "samtrain-coach-seen";
const MADE = "samtrain-coach-made"; // masks that were accepted before the page was loaded again
const GOAL = 3;

const STEPS = [
  "Click an object: the one that stands out most first, smaller ones later.",
  "Is the mask wrong? Left-click what is missing, right-click what is too much, or press 1, 2, 3 for another size.",
  "Press Enter to accept it, and click the next object.",
];
const LAST = "Press N when the image is done. The key ? shows everything else.";

/** Returns {update, close}. `update({hasObject, touched, accepted})` is told what was done since the page was loaded. */
export function createCoach(section, list, closeButton) {
  let open = kept(SEEN) === null;
  const earlier = Number(kept(MADE) ?? 0);
  let corrected = false;

  function close() {
    open = false;
    section.hidden = true;
    keep(SEEN, "1");
  }
  closeButton.addEventListener("click", close);

  function update({ hasObject, touched, accepted: now }) {
    if (!open) return;
    const accepted = earlier + now;
    if (now) keep(MADE, String(accepted));
    corrected ||= touched || accepted > 0;
    const step = accepted >= GOAL ? 3 : !hasObject ? (accepted ? 2 : 0) : corrected ? 2 : 1;
    const done = [hasObject || accepted > 0, corrected, accepted >= GOAL];
    const texts = STEPS.map((text, i) => (i === 2 && accepted < GOAL ? `${text} (${accepted} of ${GOAL})` : text));
    const state = JSON.stringify([step, done, texts]);
    section.hidden = false;
    if (list.dataset.state === state) return;
    list.dataset.state = state;
    list.replaceChildren(...[...texts, LAST].map((text, i) => {
      const item = document.createElement("li");
      item.dataset.number = i + 1;
      item.textContent = text;
      if (done[i]) item.classList.add("done");
      if (i === step) item.classList.add("now");
      return item;
    }));
  }

  return { update, close, hide: () => (section.hidden = true) };
}

function kept(name) {
  try {
    return localStorage.getItem(name);
  } catch {
    return null;
  }
}

function keep(name, value) {
  try {
    localStorage.setItem(name, value);
  } catch {
    // a browser that keeps nothing begins with the first step again
  }
}
