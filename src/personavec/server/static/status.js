/** The line that says which model answers, how busy it is, and whether it can be reached. */

import { get } from "./api.js";
import { query } from "./dom.js";
import { state } from "./state.js";

const EVERY_MS = 5000;

/** Ask again and again while the page is in sight. */
export async function watch() {
  if (!document.hidden) await look();
  setTimeout(watch, EVERY_MS);
}

/** Ask once. */
export async function look() {
  try {
    const { running, queued, capacity } = await get("/v1/status", { quiet: true });
    const busy = `${running}/${capacity} running${queued ? `, ${queued} queued` : ""}`;
    tell("ok", `${state.model?.id ?? "no model"} · ${busy}`);
  } catch (error) {
    if (error.status === 401) tell("waiting", "API key needed");
    else tell("lost", "Connection lost", `${error.text} Trying again every ${EVERY_MS / 1000} s.`);
    query("#key").hidden = error.status !== 401;
  }
}

function tell(kind, text, notice = "") {
  query("#status").dataset.state = kind;
  query("#status-text").textContent = text;
  query("#key").hidden = true;
  query("#notice").hidden = !notice;
  if (query("#notice").textContent !== notice) query("#notice").textContent = notice; // said once, not at every try
}
