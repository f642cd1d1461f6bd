// Messages over the canvas: what failed and why, what to do about it. All text is shown as text, never as HTML.

const LIFE = 9000; // ms of a message that does not ask for anything

/** Returns {show, clear}; a message replaces an earlier one of the same name. */
export function createMessages(container) {
  const shown = new Map(); // name -> element

  function clear(name) {
    shown.get(name)?.remove();
    shown.delete(name);
  }

  /** Shows a text; kind is "info", "warn" or "error"; actions are [text, function] pairs, and such a message stays. */
  function show(name, kind, text, { actions = [], stays = false } = {}) {
    if (shown.get(name)?.dataset.text === text) return;
    clear(name);
    const element = document.createElement("div");
    element.className = `message ${kind}`;
    element.dataset.text = text;
    element.dataset.testid = `message-${name}`;
    element.setAttribute("role", kind === "error" ? "alert" : "status");
    const row = document.createElement("div");
    row.className = "row";
    const words = document.createElement("span");
    words.textContent = text;
    row.append(words, button("✕", () => clear(name), "close", "Close this message"));
    element.append(row);
    if (actions.length) {
      const buttons = document.createElement("div");
      buttons.className = "buttons";
      for (const [label, act] of actions) {
        buttons.append(button(label, () => {
          clear(name);
          act();
        }));
      }
      element.append(buttons);
    }
    container.append(element);
    shown.set(name, element);
    if (!actions.length && !stays) setTimeout(() => shown.get(name) === element && clear(name), LIFE);
  }

  return { show, clear };
}

export function button(text, act, className = "", label = null) {
  const element = document.createElement("button");
  element.textContent = text;
  if (className) element.className = className;
  if (label) element.setAttribute("aria-label", label);
  element.addEventListener("click", act);
  return element;
}
