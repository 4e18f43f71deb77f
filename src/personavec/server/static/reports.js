/** Reports of runs that were named when the server was started. */

import { get } from "./api.js";
import { make, query, problem } from "./dom.js";

export async function open() {
  try {
    const { data } = await get("/v1/reports");
    const none =
      "No reports. Name run folders when the server is started; each folder with a report.html is listed here.";
    const links = data.map(({ name, url }) =>
      make(
        "a",
        { class: "entry", href: url, target: "_blank", rel: "noopener" },
        make("span", { class: "name" }, name),
        make("span", { class: "quiet" }, "opens in a new tab"),
      ),
    );
    query("#report-list").replaceChildren(...(links.length ? links : [make("p", { class: "empty" }, none)]));
  } catch (error) {
    query("#report-list").replaceChildren(problem(error, open));
  }
}
