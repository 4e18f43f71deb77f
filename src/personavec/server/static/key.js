/** The dialog that asks for the API key. */

import { keys } from "./api.js";
import { query } from "./dom.js";

const FIRST = "This server asks for its key. It is kept in this tab only, until the tab is closed.";
const WRONG = "The server did not accept that key.";

keys.ask = (had) =>
  new Promise((resolve) => {
    const dialog = query("#key-dialog");
    const field = query("#key-field");
    query("#key-note").textContent = had ? WRONG : FIRST;
    field.value = "";
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue ? field.value : null), { once: true });
    dialog.showModal();
    field.focus();
  });
