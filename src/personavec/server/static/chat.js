/** A conversation: turns, replies as they stream, and how far the trait drifts over them. */

import { composer } from "./composer.js";
import { make, query, problem } from "./dom.js";
import { drift } from "./drift.js";
import { Reply } from "./reply.js";
import { request } from "./settings.js";
import { forget, repaint } from "./shading.js";
import { changes, chosen } from "./state.js";
import { steering } from "./steering.js";

const EXAMPLES = [
  "I have a job interview tomorrow. How will it go?",
  "My bread did not rise. What should I do?",
  "Tell me about the town you would like to live in.",
];

let turns = [];
let conversation;
let replies = [];
let box;

export function start() {
  box = composer(query("#chat-form"), { label: "Message", send });
  query("#new").addEventListener("click", () => (reset(), box.focus()));
  changes.addEventListener("chosen", drawDrift);
  changes.addEventListener("look", drawDrift);
  reset();
}

function reset() {
  box.stop();
  forget(replies);
  [turns, replies, conversation] = [[], [], undefined];
  const examples = EXAMPLES.map((text) =>
    make("button", { type: "button", class: "example", onclick: () => box.run(text) }, text),
  );
  const lead =
    "Talk to the model. Each token of a reply is shaded by its projection on the chosen trait, " +
    "and the sliders steer the replies to come.";
  query("#transcript").replaceChildren(make("div", { class: "empty" }, make("p", {}, lead), ...examples));
  drawDrift();
  repaint();
}

async function send(text, signal) {
  const mine = turns.concat({ role: "user", content: text });
  const reply = new Reply("Reply");
  const question = make("article", { class: "question", "aria-label": "You" }, text);
  if (!replies.length) query("#transcript").replaceChildren();
  query("#transcript").append(question, reply.element);
  replies.push(reply);
  const follow = new MutationObserver(() => toEnd());
  follow.observe(reply.body, { childList: true });
  toEnd(true);
  try {
    await reply.fill(request(mine, { steering: steering(), conversation }), signal);
    if (reply.text) turns = mine.concat({ role: "assistant", content: reply.text });
  } catch (error) {
    discard(reply);
    const failed = problem(error, () => (question.remove(), box.run(text)));
    query("#transcript").append(failed);
  }
  follow.disconnect();
  conversation = reply.about.conversation ?? conversation;
  drawDrift();
  toEnd();
}

function discard(reply) {
  reply.element.remove();
  forget([reply]);
  replies = replies.filter((other) => other !== reply);
}

/** Keep the end in sight, unless the reader has scrolled up. */
function toEnd(always = false) {
  const pane = query("#transcript");
  if (always || pane.scrollHeight - pane.scrollTop - pane.clientHeight < 160) pane.scrollTop = pane.scrollHeight;
}

function drawDrift() {
  const drawn = replies.map(({ about, projections, alerts }) => ({ turn: about.turn, projections, alerts }));
  drift(query("#drift-here"), drawn, chosen());
}
