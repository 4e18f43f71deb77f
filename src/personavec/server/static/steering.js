/** A dose slider for each vector. Until one is moved the server's own defaults apply. */

import { make, query, signed } from "./dom.js";
import { changes, state, tell } from "./state.js";

const STEP = 0.01;
const sliders = [];

/** The request's `steering`; undefined while every slider stands at the server's default. */
export function steering() {
  if (sliders.every(({ dose, vector }) => dose === vector.default_dose)) return undefined;
  return sliders.filter(({ dose }) => dose).map(({ dose, vector }) => ({ vector: vector.id, dose }));
}

/** The doses in words. */
export function doses() {
  const moved = sliders.filter(({ dose }) => dose);
  return moved.map(({ dose, vector }) => `${vector.trait} ${signed(dose, 2)}`).join(", ");
}

/** Build the sliders of the loaded vectors. */
export function build() {
  sliders.length = 0;
  const usable = state.vectors.filter(({ layer }) => layer !== null);
  sliders.push(...usable.map((vector) => new Slider(vector)));
  const left = state.vectors.filter(({ layer }) => layer === null);
  const zero = make(
    "button",
    { type: "button", class: "small", onclick: () => sliders.forEach((slider) => slider.set(0)) },
    "All to 0",
  );
  query("#sliders").replaceChildren(
    ...sliders.map(({ element }) => element),
    ...left.map(({ trait }) =>
      make("p", { class: "quiet" }, `${trait}: its card recommends no layer, so no dose can be set here.`),
    ),
    ...(sliders.length
      ? []
      : [
          make(
            "p",
            { class: "quiet" },
            "No vector to steer with. Start the server with --vectors FILE…; personavec extract makes one.",
          ),
        ]),
    ...(sliders.length > 1 ? [zero] : []),
  );
  report();
}

class Slider {
  constructor(vector) {
    this.vector = vector;
    const { id, trait, max_dose: max, safe_dose: safe } = vector;
    const bounds = { min: -max, max };
    const set = (event) => this.set(event.target.valueAsNumber);
    this.range = make("input", {
      type: "range",
      id: `dose-${id}`,
      ...bounds,
      step: STEP,
      oninput: set,
      ondblclick: () => this.set(0),
    });
    this.number = make("input", {
      type: "number",
      ...bounds,
      step: "any",
      "aria-label": `Dose of ${trait}`,
      onchange: set,
    });
    const back = vector.default_dose ? `Back to ${signed(vector.default_dose, 2)}, the server's default` : "Back to 0";
    const reset = make(
      "button",
      {
        type: "button",
        class: "small",
        title: back,
        "aria-label": `${trait}: ${back}`,
        onclick: () => this.set(vector.default_dose),
      },
      "Reset",
    );
    this.note = make("p", { class: "quiet amount" });
    this.element = make(
      "div",
      { class: "slider" },
      make("div", { class: "line" }, make("label", { for: this.range.id }, trait), this.number, reset),
      make("div", { class: "track" }, this.range, ...this.marks(max, safe)),
      this.note,
    );
    const edge = Math.min(1, (safe ?? 0) / max) / 2; // share of the track on each side of its middle
    this.element.style.setProperty("--edge", edge);
    this.set(vector.default_dose);
  }

  marks(max, safe) {
    const at = (dose, text) => {
      const mark = make("span", { class: "mark", "data-sign": Math.sign(dose), "aria-hidden": "true" }, text);
      mark.style.setProperty("--at", (dose + max) / (2 * max));
      return mark;
    };
    if (safe === null || safe >= max) return [at(0, "0")];
    return [at(-safe, signed(-safe, 2)), at(0, safe > 0.25 * max ? "0" : ""), at(safe, signed(safe, 2))];
  }

  /** Take a dose on; beyond the track it is brought back to its end. */
  set(dose) {
    const { layer, max_dose: max, safe_dose: safe, reliability } = this.vector;
    this.dose = Number.isFinite(dose) ? Math.max(-max, Math.min(max, dose)) : 0;
    this.range.value = this.dose;
    this.number.value = Number(this.dose.toFixed(3));
    const beyond = safe !== null && Math.abs(this.dose) > safe;
    this.element.classList.toggle("beyond", beyond);
    this.range.setAttribute("aria-valuetext", `${signed(this.dose, 2)}${beyond ? ", beyond the safe range" : ""}`);
    const known = safe === null ? "no dose proved safe" : `safe to ±${safe.toFixed(2)}`;
    const trust = reliability == null ? "" : ` · reliability ${reliability.toFixed(2)}`;
    this.note.textContent = beyond
      ? `Beyond ±${safe.toFixed(2)} replies may fall apart.`
      : `layer ${layer} · ${known}${trust}`;
    tell("dose");
  }
}

function report() {
  query("#steering-note").textContent = doses() || "none";
}

changes.addEventListener("dose", report);
