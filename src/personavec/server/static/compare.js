/** One prompt answered twice with one seed: with the sliders' steering, and with none. */

import { composer } from "./composer.js";
import { make, query, problem } from "./dom.js";
import { Reply } from "./reply.js";
import { request } from "./settings.js";
import { forget } from "./shading.js";
import { changes } from "./state.js";
import { doses, steering } from "./steering.js";

let replies = [];
let box;

export function start() {
  box = composer(query("#compare-form"), { label: "Prompt for both", send });
  const lead =
    "One prompt, two replies with the same seed: on the left with the doses of the sliders, on the right with none.";
  query("#columns").replaceChildren(
    make("div", { class: "empty" }, make("p", {}, lead), make("p", { id: "compare-note", class: "quiet" })),
  );
  changes.addEventListener("dose", hint);
  hint();
}

function hint() {
  const note = query("#compare-note");
  if (note)
    note.textContent = doses()
      ? `Set now: ${doses()}.`
      : "All doses are 0: move a slider first, or both replies will be the same.";
}

async function send(text, signal) {
  forget(replies);
  const named = doses();
  const arms = [
    { title: named ? `Steered: ${named}` : "Steered: all doses 0", steering: steering() },
    { title: "Unsteered", steering: [] },
  ];
  const made = arms.map(({ title }) => new Reply(title));
  replies = made;
  const columns = arms.map(({ title }, index) =>
    make("section", { class: "column" }, make("h3", {}, title), made[index].element),
  );
  query("#columns").replaceChildren(make("p", { class: "question" }, text), ...columns);
  const body = request([{ role: "user", content: text }], {});
  body.seed ??= Math.floor(Math.random() * 2 ** 31);
  const fills = made.map(async (reply, index) => {
    try {
      await reply.fill({ ...body, persona: { ...body.persona, steering: arms[index].steering } }, signal);
    } catch (error) {
      columns[index].append(problem(error, () => box.run(text)));
    }
  });
  await Promise.all(fills);
  query("#columns").append(make("p", { class: "quiet seed" }, `Seed of both: ${body.seed}`));
}
