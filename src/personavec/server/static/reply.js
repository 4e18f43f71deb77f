/** One reply on the page: its tokens as they come, their projections, what was steered, and its alerts. */

import { stream } from "./api.js";
import { between, make, say, signed } from "./dom.js";
import { repaint, shade } from "./shading.js";
import { chosen } from "./state.js";
import { hide, show } from "./tip.js";

export class Reply {
  /** Projections by vector, in the order of the tokens; the last token may have none. */
  values = {};
  /** An element for each token. */
  spans = [];
  /** What the server said of the whole reply: conversation, turn, steering, warnings. */
  about = {};
  projections = {};
  alerts = [];
  text = "";
  finish = null;

  constructor(title) {
    this.body = make("div", {
      class: "tokens",
      tabindex: "0",
      role: "group",
      "aria-label": `${title}: arrow keys read the projections`,
    });
    this.notes = make("div", { class: "notes" });
    this.element = make("article", { class: "reply", "aria-label": title, "aria-busy": "true" }, this.body, this.notes);
    this.at = -1;
    this.body.addEventListener("pointerover", (event) => this.point(this.spans.indexOf(event.target)));
    this.body.addEventListener("pointerleave", hide);
    this.body.addEventListener("click", (event) => this.point(this.spans.indexOf(event.target)));
    this.body.addEventListener("keydown", (event) => this.walk(event));
    this.body.addEventListener("blur", () => this.mark(-1));
    shade(this);
  }

  /** Fill in the answer to a request while it streams. Aborting ends it quietly; errors are the caller's. */
  async fill(request, signal) {
    try {
      for await (const chunk of stream(request, signal)) this.take(chunk);
    } catch (error) {
      if (error.name !== "AbortError") throw error;
      this.finish = "stopped";
    } finally {
      this.element.setAttribute("aria-busy", "false");
      repaint();
    }
    say(`${this.finish === "stopped" ? "Reply stopped" : "Reply"}: ${this.text}`);
  }

  take(chunk) {
    if (chunk.persona) this.about = { ...this.about, ...chunk.persona };
    const choice = chunk.choices[0];
    if (!choice) return; // the chunk of the usage
    const text = choice.delta?.content ?? "";
    const { pieces, tokens = {}, projections, alerts = [] } = choice.persona ?? {};
    this.text += text;
    this.append(pieces ?? (text ? [text] : []));
    for (const [id, values] of Object.entries(tokens)) (this.values[id] ??= []).push(...values);
    if (choice.finish_reason) {
      this.finish = choice.finish_reason;
      this.projections = projections ?? {};
      this.alerts = alerts;
      for (const [id, of] of Object.entries(this.projections)) this.values[id] = of.tokens ?? this.values[id];
    }
    repaint();
  }

  append(pieces) {
    const made = pieces.map((piece) => make("span", { class: "token" }, piece));
    this.spans.push(...made);
    this.body.append(...made);
  }

  /** Lines below the text; `vector` is the one that is looked at. */
  foot(vector) {
    const lines = [];
    const of = this.projections[vector?.id];
    const before = of?.prompt_last ?? this.about.prompt_last?.[vector?.id];
    if (before !== undefined && before !== null)
      lines.push(figure(`${vector.trait}, before the reply`, before, vector.band?.["prompt last"]));
    if (of) lines.push(figure("over the reply", of.response_avg, vector.band?.["response avg"]));
    const pushed = (this.about.steering ?? []).some(({ vector: id }) => id === vector?.id);
    if (of && pushed) lines.push("these contain the push of the steering");
    for (const applied of this.about.steering ?? []) lines.push(make("span", { class: "chip" }, steered(applied)));
    if (this.finish && !this.text) lines.push(make("span", { class: "chip" }, "empty reply"));
    if (this.finish === "length") lines.push(make("span", { class: "chip" }, `cut off at ${this.spans.length} tokens`));
    if (this.finish === "stopped") lines.push(make("span", { class: "chip" }, "stopped"));
    const notes = [...(this.about.warnings ?? []).map(warning), ...alertBox(this.alerts)];
    this.notes.replaceChildren(make("p", { class: "figures" }, ...lines), ...notes);
  }

  point(index) {
    if (index < 0) return hide();
    const vector = chosen();
    const value = vector && this.values[vector.id]?.[index];
    const what = value === undefined ? "no projection read" : `${vector.trait} ${signed(value, 2)}`;
    show(this.spans[index], `${what} · token ${index + 1} of ${this.spans.length}`);
  }

  walk(event) {
    const last = this.spans.length - 1;
    const steps = { ArrowRight: this.at + 1, ArrowLeft: this.at - 1, Home: 0, End: last };
    if (!(event.key in steps) || last < 0) return;
    event.preventDefault();
    this.mark(Math.max(0, Math.min(last, steps[event.key])));
    this.point(this.at);
  }

  mark(index) {
    this.spans[this.at]?.classList.remove("current");
    this.spans[index]?.classList.add("current");
    this.at = index;
    if (index < 0) hide();
  }
}

function figure(name, value, band) {
  const usual = band ? ` (usual ${between(band)})` : " (what is usual is not known: no calibration)";
  return make("span", {}, `${name} `, make("b", {}, signed(value, 2)), usual);
}

/** What a steering did, in words. */
export function steered({ vector, op = "add", dose, coef, layer, clamped }) {
  const size = op !== "add" ? op : dose != null ? signed(dose, 2) : `coef ${signed(coef, 2)}`;
  const where = layer === "all" || layer == null ? "all layers" : `layer ${layer}`;
  return `steered ${vector} ${size}, ${where}${clamped ? ", clamped by the guard" : ""}`;
}

const warning = (text) => make("p", { class: "warning" }, text);

/** What an alert says, in words. */
export function alertText({ kind, vector, value, low, high }) {
  if (kind === "drift")
    return `${vector} drifts over the turns: sum of deviations ${signed(value)} sd, limit ±${high.toFixed(1)}`;
  const name = { "prompt last": "before the reply", "response avg": "over the reply" }[kind];
  const side = value > high ? "above" : "below";
  return `${vector} ${name}: ${signed(value, 2)}, ${side} the usual ${between({ low, high })}`;
}

/** The alerts of a turn, none or one box. */
export function alertBox(alerts) {
  const lines = alerts.map((alert) => make("p", {}, make("b", {}, "Alert "), alertText(alert)));
  return lines.length ? [make("div", { class: "alert" }, ...lines)] : [];
}
