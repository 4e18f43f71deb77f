/** Loads what the server has, then opens the view that the address names. */

import { get } from "./api.js";
import * as chat from "./chat.js";
import * as compare from "./compare.js";
import * as conversations from "./conversations.js";
import { make, query, problem } from "./dom.js";
import "./key.js";
import * as reports from "./reports.js";
import { choose, state, tell } from "./state.js";
import * as status from "./status.js";
import { build } from "./steering.js";

const VIEWS = ["chat", "compare", "conversations", "reports"];
const DARK = matchMedia("(prefers-color-scheme: dark)");
const NARROW = matchMedia("(max-width: 860px)");

async function load() {
  try {
    const [models, vectors] = await Promise.all([get("/v1/models"), get("/v1/vectors")]);
    state.model = models.data[0];
    state.vectors = vectors.data;
    if (state.model) query("#max-tokens").max = state.model.max_tokens;
    const options = state.vectors.map(({ id }) => make("option", { value: id }, id));
    query("#trait").replaceChildren(...(options.length ? options : [make("option", {}, "none")]));
    query("#trait").disabled = !options.length;
    build();
    choose((state.vectors.find(({ watched }) => watched) ?? state.vectors[0])?.id ?? null);
    query("#trait").value = state.chosen ?? "none";
    await status.look();
  } catch (error) {
    query("#sliders").replaceChildren(problem(error, load));
  }
}

function route() {
  const [view, id] = location.hash.slice(1).split("/");
  if (!VIEWS.includes(view) && location.hash) return; // the skip link
  const name = view || "chat";
  for (const other of VIEWS) {
    query(`#${other}`).hidden = other !== name;
    query(`nav a[href="#${other}"]`).setAttribute("aria-current", other === name ? "page" : "false");
  }
  document.body.dataset.view = name;
  document.body.dataset.inside = id ? "yes" : "no";
  if (name === "conversations") conversations.open(id);
  if (name === "reports") reports.open();
}

function theme(dark) {
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  query("#theme").textContent = dark ? "Light" : "Dark";
  query("#theme").setAttribute("aria-label", dark ? "Light colours" : "Dark colours");
  tell("look");
}

query("#trait").addEventListener("change", (event) => choose(event.target.value));
query("#key").addEventListener("click", load);
query("#theme").addEventListener("click", () => theme(document.documentElement.dataset.theme !== "dark"));
DARK.addEventListener("change", () => theme(DARK.matches));
addEventListener("hashchange", route);
addEventListener("resize", () => tell("look"));

theme(DARK.matches);
for (const panel of ["#steering", "#drift"]) query(panel).open = !NARROW.matches;
query("#drift").addEventListener("toggle", () => tell("look"));
chat.start();
compare.start();
conversations.start();
route();
await load();
status.watch();
