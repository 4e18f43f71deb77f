/** Which colour a token gets: how far its projection lies from the middle of a scale, less blue, more red. */

import { between, query, signed } from "./dom.js";
import { changes, chosen, state } from "./state.js";

/** Half-widths of the calibrated band at which colour is full: single tokens scatter more than the means it is of. */
const REACH = 2;
/** Tokens after which their own spread can be a scale. */
const ENOUGH = 8;

/** Replies on the page; their tokens are the spread where there is no calibration. */
const replies = new Set();

/**
 * The scale of a vector: a middle that stays plain, the distance from it that has full colour, where on the way the
 * band ends, and the source.
 * Null while nothing is known.
 */
export function scale(vector) {
  const band = vector.band?.["response avg"];
  if (band) {
    const [middle, half] = [(band.low + band.high) / 2, (band.high - band.low) / 2];
    const source = `marks: calibrated band of reply means, ${between(band)}`;
    return { middle, reach: REACH * half, marks: 1 / REACH, source };
  }
  const seen = [...replies].flatMap((reply) => reply.values[vector.id] ?? []).sort((a, b) => a - b);
  if (seen.length < ENOUGH) return null;
  const middle = quantile(seen, 0.5);
  const off = seen.map((value) => Math.abs(value - middle)).sort((a, b) => a - b);
  const source = `spread of the ${seen.length} tokens on this page, not calibrated`;
  return { middle, reach: quantile(off, 0.95) || 1, source };
}

function quantile(sorted, share) {
  return sorted[Math.round(share * (sorted.length - 1))];
}

/** Take a reply into the page's spread, and colour it from now on. */
export function shade(reply) {
  replies.add(reply);
}

/** Forget the replies of a conversation that is no longer shown. */
export function forget(gone) {
  for (const reply of gone) replies.delete(reply);
}

let waiting = false;

/** Colour all tokens and the legend again, once a frame however often it is asked for. */
export function repaint() {
  if (waiting) return;
  waiting = true;
  requestAnimationFrame(() => {
    waiting = false;
    const vector = chosen();
    const of = vector ? scale(vector) : null;
    for (const reply of replies) paint(reply, vector, of);
    legend(vector, of);
  });
}

function paint(reply, vector, of) {
  const values = (vector && reply.values[vector.id]) ?? [];
  reply.spans.forEach((span, index) => {
    const value = values[index];
    const off = of && value !== undefined ? Math.max(-1, Math.min(1, (value - of.middle) / of.reach)) : 0;
    span.dataset.side = off < 0 ? "low" : "high";
    span.style.setProperty("--amount", Math.abs(off).toFixed(2));
  });
  reply.foot(vector);
}

function legend(vector, of) {
  query("#legend").hidden = !of;
  query("#legend-source").textContent = of ? of.source : hint(vector);
  if (!of) return;
  query("#legend-bar").style.setProperty("--marks", of.marks ?? 1);
  query("#legend-low").textContent = signed(of.middle - of.reach);
  query("#legend-high").textContent = signed(of.middle + of.reach);
}

function hint(vector) {
  if (!state.model) return "";
  if (!state.vectors.length) return "No vectors loaded: start the server with --vectors FILE… to shade and to steer.";
  if (vector?.layer === null) return "The card of this vector recommends no layer, so it is not read.";
  return "Tokens of a reply are shaded by their projection on this trait's vector.";
}

changes.addEventListener("chosen", repaint);
