/** The one small box that tells a token's value, for the pointer and for the keyboard. */

import { query } from "./dom.js";

export function show(target, text) {
  const tip = query("#tip");
  tip.textContent = text;
  tip.hidden = false;
  const { left, top, bottom } = target.getBoundingClientRect();
  const width = document.documentElement.clientWidth;
  tip.style.left = `${Math.max(8, Math.min(left, width - tip.offsetWidth - 8))}px`;
  tip.style.top = `${top > tip.offsetHeight + 8 ? top - tip.offsetHeight - 6 : bottom + 6}px`;
}

export function hide() {
  query("#tip").hidden = true;
}
