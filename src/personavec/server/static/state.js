/** What the parts share: the server's model and vectors, and the trait that is looked at. */

export const state = { model: null, vectors: [], chosen: null };

/** Fires "chosen" at another trait, "dose" at a moved slider, "look" when colours or widths changed. */
export const changes = new EventTarget();

export const tell = (what) => changes.dispatchEvent(new Event(what));

/** The vector that is looked at; undefined where none is loaded. */
export const chosen = () => state.vectors.find((vector) => vector.id === state.chosen);

/** Ids of all vectors that can be read: those whose card names a layer. */
export const readable = () => state.vectors.filter((vector) => vector.layer !== null).map((vector) => vector.id);

export function choose(id) {
  state.chosen = id;
  tell("chosen");
}
