/** The projection turn by turn, before each reply and over it, with the calibrated band and the alerts. */

import { between, make, signed } from "./dom.js";
import { alertText } from "./reply.js";

const HEIGHT = 130;
const SERIES = [
  { kind: "prompt last", key: "prompt_last", title: "Before each reply (last prompt token)", line: "--line-prompt" },
  { kind: "response avg", key: "response_avg", title: "Over each reply (mean)", line: "--line-reply" },
];
/** What the sequential test adds up. */
const SUMMED = "response avg";
const KEY = "Tinted: the calibrated band. Ring: alert at that turn. Dashed line: alert of the test for slow drift.";
const UNCALIBRATED =
  "No calibration: nothing says what is usual, so no alert is raised. Start the server with --calibration FILE.";
const MEASURE = ({ difference, trait }) =>
  difference ? ` For scale: replies written to be ${trait} lay ${difference.toFixed(1)} above those written to be the opposite.` : "";

/** Draw into a box; turns have `turn`, `projections` and `alerts`. */
export function drift(box, turns, vector) {
  const rows = turns
    .filter(({ projections }) => vector && projections[vector.id])
    .map(({ turn, projections, alerts }) => ({
      turn,
      read: projections[vector.id],
      alerts: alerts.filter((alert) => alert.vector === vector.id),
    }));
  if (!rows.length) {
    const lead = "A curve over the turns, once there is a turn with a projection on this trait.";
    box.replaceChildren(make("p", { class: "quiet" }, lead));
    return;
  }
  const note = make("p", { class: "quiet" }, vector.band ? KEY : UNCALIBRATED + MEASURE(vector));
  box.replaceChildren(...SERIES.map((series) => figure(box, rows, vector.band, series)), note, table(rows));
}

function figure(box, rows, bands, { kind, key, title, line }) {
  const band = bands?.[kind];
  const usual = band ? `usual ${between(band)}` : "";
  const caption = make("figcaption", {}, make("span", { class: "key", "data-kind": kind }), title, " ");
  caption.append(make("span", { class: "quiet" }, usual));
  const label = `${title} by turn; ${usual || "not calibrated"}; the figures are in the table below`;
  const plot = make("div", { role: "img", "aria-label": label });
  const ink = (name) => resolved(box, name);
  const at = (which) => rows.filter(({ alerts }) => alerts.some((alert) => alert.kind === which));
  const values = rows.map(({ read }) => read[key]);
  const flagged = rows.map((row, index) => (at(kind).includes(row) ? values[index] : null));
  const drifted = kind === SUMMED ? at("drift").map(({ turn }) => turn) : [];
  const turns = rows.map(({ turn }) => turn);
  const look = {
    ...frame(box, turns, span(values, band), ink),
    series: [{}, curve(ink(line)), rings(ink("--alert"))],
    hooks: { drawAxes: [(chart) => background(chart, band, drifted, ink(line), ink("--alert"))] },
  };
  new window.uPlot(look, [turns, values, flagged], plot);
  return make("figure", { class: "drift" }, caption, plot);
}

/** From the lowest to the highest of curve and band, with a margin. */
function span(values, band) {
  const all = [...values, ...(band ? [band.low, band.high] : [])].filter((value) => value != null);
  const [low, high] = [Math.min(...all), Math.max(...all)];
  const margin = (high - low) * 0.12 || 1;
  return [low - margin, high + margin];
}

function frame(box, turns, [low, high], ink) {
  const digits = high - low < 2 ? 2 : high - low < 10 ? 1 : 0;
  const axis = { stroke: ink("--quiet"), ticks: { show: false }, font: "12px system-ui, sans-serif" };
  const grid = { stroke: ink("--rule"), width: 1 };
  const whole = (_, ticks) => ticks.map((turn) => (Number.isInteger(turn) ? String(turn) : ""));
  const figures = (_, ticks) => ticks.map((tick) => signed(tick, digits));
  return {
    width: Math.max(200, box.clientWidth),
    height: HEIGHT,
    legend: { show: false },
    cursor: { show: false },
    padding: [8, 12, 0, 0],
    scales: {
      x: { time: false, range: [turns[0] - 0.5, turns.at(-1) + 0.5] },
      y: { range: [low, high] },
    },
    axes: [
      { ...axis, size: 24, grid: { show: false }, incrs: [1, 2, 5, 10, 20, 50, 100], space: 24, values: whole },
      { ...axis, size: 44, grid, space: 28, values: figures },
    ],
  };
}

const curve = (colour) => ({ stroke: colour, width: 2, points: { show: true, size: 6, fill: colour } });

const rings = (colour) => ({
  stroke: colour,
  paths: () => null,
  points: { show: true, size: 13, width: 2.5, stroke: colour, fill: "transparent" },
});

/** The band behind the curve, and a dashed line at each turn with an alert of the sequential test. */
function background({ ctx, bbox, valToPos }, band, drifted, tint, alert) {
  ctx.save();
  if (band) {
    const [top, bottom] = [valToPos(band.high, "y", true), valToPos(band.low, "y", true)];
    ctx.globalAlpha = 0.16;
    ctx.fillStyle = tint;
    ctx.fillRect(bbox.left, top, bbox.width, bottom - top);
    ctx.globalAlpha = 1;
  }
  ctx.strokeStyle = alert;
  ctx.lineWidth = 2 * devicePixelRatio;
  ctx.setLineDash([5 * devicePixelRatio, 4 * devicePixelRatio]);
  for (const turn of drifted) {
    const x = valToPos(turn, "x", true);
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
  }
  ctx.restore();
}

/** A custom property as the colour it stands for in the theme of now; a canvas does not read custom properties. */
function resolved(box, name) {
  const probe = make("span");
  probe.style.color = `var(${name})`;
  box.append(probe);
  const { color } = getComputedStyle(probe);
  probe.remove();
  return color;
}

/** The same figures for those who do not see the curves. */
function table(rows) {
  const cell = (value) => make("td", { class: "n" }, value == null ? "–" : signed(value, 2));
  const line = ({ turn, read, alerts }) => {
    const flags = make("td", { class: "flag" }, alerts.map(alertText).join("; "));
    return make(
      "tr",
      {},
      make("th", { scope: "row" }, String(turn)),
      ...SERIES.map(({ key }) => cell(read[key])),
      flags,
    );
  };
  const head = ["turn", "before", "over", "alert"].map((name) => make("th", { scope: "col" }, name));
  const body = [make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows.map(line))];
  return make("details", { class: "figures-table" }, make("summary", {}, "Figures"), make("table", {}, ...body));
}
