/** Conversations that the server has logged, newest first, and the turns of one of them. */

import { get } from "./api.js";
import { make, query, problem } from "./dom.js";
import { drift } from "./drift.js";
import { alertBox, steered } from "./reply.js";
import { changes, chosen } from "./state.js";

const EVERY_MS = 5000;
let shown = null;
let listed = "";

export function start() {
  query("#alerts-only").addEventListener("change", list);
  changes.addEventListener("chosen", redraw);
  changes.addEventListener("look", redraw);
  setInterval(() => query("#conversations").hidden || document.hidden || list(), EVERY_MS);
}

/** Show the list, and the turns of a conversation where one is named. */
export async function open(id) {
  shown = null;
  query("#detail").replaceChildren(make("p", { class: "empty" }, "Choose a conversation to see its turns."));
  listed = "";
  await list();
  if (id) await detail(id);
}

/** Of a conversation whose client gave no name the server has drawn one, of which the beginning is enough. */
const name = (id) => (/^[0-9a-f]{32}$/.test(id) ? `Conversation ${id.slice(0, 8)}` : id);

async function list() {
  const alertsOnly = query("#alerts-only").checked;
  try {
    const { data } = await get(`/v1/conversations?limit=50${alertsOnly ? "&alerts=true" : ""}`);
    const now = JSON.stringify([data, location.hash]);
    if (now === listed) return; // keep focus and scrolling
    listed = now;
    const none = alertsOnly
      ? "No conversation has raised an alert."
      : "Nothing yet. Every chat with this server is listed here, from this page or from any client.";
    query("#list").replaceChildren(...(data.length ? data.map(entry) : [make("p", { class: "empty" }, none)]));
  } catch (error) {
    listed = "";
    query("#list").replaceChildren(problem(error, list));
  }
}

function entry({ id, turns, last, alerts, steered: pushed }) {
  const href = `#conversations/${id}`;
  const badges = [
    ...(alerts ? [make("span", { class: "badge" }, `${alerts} alert${alerts > 1 ? "s" : ""}`)] : []),
    ...(pushed ? [make("span", { class: "chip" }, "steered")] : []),
  ];
  return make(
    "a",
    { class: "entry", href, "aria-current": location.hash === href ? "true" : null },
    make("span", { class: "name", title: id }, name(id)),
    ...badges,
    make("span", { class: "quiet" }, `${turns} turn${turns === 1 ? "" : "s"} · ${time(last)}`),
  );
}

const time = (stamp) => new Date(stamp).toLocaleString(undefined, { dateStyle: "medium", timeStyle: "short" });

async function detail(id) {
  try {
    shown = await get(`/v1/conversations/${encodeURIComponent(id)}`);
    const kept = shown.turns.some(({ response }) => response !== null);
    const note = make("p", { class: "quiet" }, "The text is not kept; a server started with --keep-text keeps it.");
    const back = make("a", { class: "back", href: "#conversations" }, "← All conversations");
    query("#detail").replaceChildren(
      back,
      make("h3", { title: id }, name(id)),
      make("div", { class: "card" }, make("div", { id: "drift-there" })),
      ...(kept ? [] : [note]),
      ...shown.turns.map(turn),
    );
    redraw();
  } catch (error) {
    query("#detail").replaceChildren(problem(error, () => detail(id)));
  }
}

function turn({
  turn: number,
  time: stamp,
  finish,
  prompt_tokens: read,
  response_tokens: written,
  steering,
  alerts,
  messages,
  response,
}) {
  const question = messages?.findLast(({ role }) => role === "user")?.content;
  return make(
    "article",
    { class: "turn", "aria-label": `Turn ${number}` },
    make(
      "p",
      { class: "quiet" },
      `Turn ${number} · ${time(stamp)} · ${read} tokens read, ${written} written · ${finish === "length" ? "cut off at the longest length" : `ended by ${finish}`}`,
    ),
    ...(question ? [make("p", { class: "question" }, question)] : []),
    ...(response !== null ? [make("p", { class: "kept" }, response)] : []),
    ...alertBox(alerts),
    ...steering.map((applied) => make("span", { class: "chip" }, steered(applied))),
  );
}

function redraw() {
  const box = query("#drift-there");
  if (box && shown) drift(box, shown.turns, chosen());
}
