/** Elements and figures. Whatever comes from a model, a user or the server becomes text here, never markup. */

export const query = (selector) => document.querySelector(selector);

/** An element with attributes (`onclick` and the like are listeners) and children (strings become text). */
export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === false || value == null) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

/** A signed figure: +1.2, −0.34, 0. */
export function signed(value, digits = 1) {
  const figure = Math.abs(value).toFixed(digits);
  return (Number(figure) === 0 ? "" : value > 0 ? "+" : "−") + figure;
}

export const between = ({ low, high }) => `${signed(low)}\u00a0…\u00a0${signed(high)}`;

/** What went wrong, in the words of the server, with a button that tries again. */
export function problem(error, again) {
  const box = make("div", { class: "problem", role: "alert" }, make("p", {}, error.text ?? String(error)));
  if (again) {
    const retry = () => {
      box.remove();
      again();
    };
    box.append(make("button", { type: "button", class: "small", onclick: retry }, "Try again"));
  }
  return box;
}

/** Tell a screen reader, once. */
export function say(text) {
  query("#said").textContent = text;
}
