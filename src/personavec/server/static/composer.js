/** Where a prompt is written: Enter sends, Shift+Enter breaks the line, Esc stops a reply. */

import { make } from "./dom.js";

/** Builds the form; `send(text, signal)` runs until its reply is complete, one at a time. */
export function composer(form, { label, send }) {
  let running = null;
  const field = make("textarea", {
    id: `${form.id}-prompt`,
    rows: "2",
    placeholder: "Write a message",
    "aria-label": label,
  });
  const go = make("button", { type: "submit", class: "primary" }, "Send");
  const stop = make("button", { type: "button", hidden: true, onclick: () => running?.abort() }, "Stop");
  const hint = make("p", { class: "quiet hint" }, "Enter sends · Shift+Enter breaks the line · Esc stops a reply");
  form.append(make("div", { class: "line" }, field, go, stop), hint);

  async function run(text) {
    running = new AbortController();
    [go.hidden, stop.hidden] = [true, false];
    await send(text, running.signal);
    running = null;
    [go.hidden, stop.hidden] = [false, true];
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    const text = field.value.trim();
    if (!text || running) return;
    field.value = "";
    run(text);
  });
  field.addEventListener("keydown", (event) => {
    if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
    event.preventDefault();
    form.requestSubmit();
  });
  document.addEventListener("keydown", (event) => {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) running?.abort();
  });
  return { focus: () => field.focus(), run: (text) => running || run(text), stop: () => running?.abort() };
}
