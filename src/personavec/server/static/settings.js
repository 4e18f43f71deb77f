/** The sampling fields, as the request spells them; an empty field leaves the server's default. */

import { query } from "./dom.js";
import { readable, state } from "./state.js";

const number = (selector) => (query(selector).value === "" ? undefined : query(selector).valueAsNumber);

/** A request for a reply to these turns. All readable vectors are watched, so that each can be looked at. */
export function request(turns, persona) {
  const system = query("#system").value.trim();
  return {
    model: state.model?.id,
    messages: [...(system ? [{ role: "system", content: system }] : []), ...turns],
    max_tokens: number("#max-tokens"),
    temperature: number("#temperature"),
    seed: number("#seed"),
    persona: { watch: readable(), ...persona },
  };
}
