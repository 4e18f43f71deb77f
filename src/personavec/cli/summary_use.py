"""What the verbs that watch, serve and hand on found, for people."""

from rich.markup import escape

from personavec.cli.lines import Json, console, estimate, headed, judge_usage, reasons, say
from personavec.cli.options import ChatConfig
from personavec.server.options import ServeConfig
from personavec.verbs.interop.options import InteropConfig
from personavec.verbs.monitor.options import MonitorConfig


def chat(_config: ChatConfig, _result: Json) -> None:
    """Nothing: all was said."""


def monitor(config: MonitorConfig, result: Json) -> None:
    """Alerts by vector, or the projections where nothing says what is usual."""
    if config.experiment:
        return _experiment(result)
    say(f"{result['turns']:,} turns of {result['conversations']:,} conversations on {config.model}", markup=False)
    reasons("skipped", result["skipped_by_reason"])
    say(f"{result['empty_replies']:,} empty replies; {result['unread_turns']:,} conversations end with unread turns")
    limits = result["calibration"]
    columns = ("alerts before the reply", "over it", "drift") if limits else ("last prompt token", "reply")
    table = headed("vector", "layer", *columns)
    for name, layer in result["layers"].items():
        cells = [estimate(mean, 2) for mean in result["projections"][name].values()]
        if limits:
            counts = result["alerts"][name].values()
            cells = [f"{kind['alerts']:,} of {kind.get('of_turns', kind.get('of_conversations')):,}" for kind in counts]
        table.add_row(escape(name), str(layer), *cells)
    console.print(table)
    for name, rates in (limits or {"held_out": {}})["held_out"].items():
        measured = ", ".join(f"{kind} {estimate(rate, 4)}" for kind, rate in rates.items())
        say(f"{name}: on unseen benign conversations {measured or 'not measured, too few of them'}", markup=False)
    outcome = "no alerts without limits: pass --calibrate with benign conversations of your own"
    if limits:
        outcome = f"{result['conversations_with_alerts']:,} conversations with alerts: {result['events']}"
        outcome += f"\nlimits for a false-positive rate of {limits['false_positive_rate']:g}: {limits['file']}"
    say(f"{outcome}\nreport: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def _experiment(result: Json) -> None:
    """How well the projection predicts the score."""
    table = headed("trait", "conditions", "r overall", "r within", "95% of matched directions")
    for name, kinds in result["traits"].items():
        for kind, r in kinds.items():
            spread = (
                f"{limits['95']:.2f}" if (limits := tested["nulls"]["covariance"].get("percentiles")) else "–"
                for tested in r["nulls"].values()
            )
            table.add_row(
                escape(name), kind, *(estimate(r[reach], 2) for reach in ("overall", "within")), " / ".join(spread)
            )
    console.print(table)
    for name, shots in result["shots_left_out"].items():
        if shots:
            say(f"{name}: too few replies show the trait for {', '.join(map(str, shots))} shots", markup=False)
    judge_usage(result)
    say(f"report: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def serve(config: ServeConfig, result: Json) -> None:
    """What was served, or exported."""
    if config.export is not None:
        say(f"{result['rows']:,} rows in {result['out']}", markup=False)
    else:
        answered = f"{result['requests']:,} requests, {result['turns']:,} turns in {result['log']}"
        say(f"{answered}; {result['seconds']:.0f} seconds", markup=False)


def interop(config: InteropConfig, result: Json) -> None:
    """What was written, for which layers, and how near a baked model is to steering."""
    layers = result["layers"]
    at = f"layer {layers[0]}" if len(layers) == 1 else f"{len(layers)} layers, {layers[0]} to {layers[-1]}"
    dose = f", dose {result['dose']:.2g}" if result.get("dose") is not None else ""
    coef = f", coef {result['coef']:.3g}{dose}" if "coef" in result else ""
    say(f"{result['trait']} of {config.model}, {at}{coef}: {result['kind']} {result['out']}", markup=False)
    if absent := result.get("absent_layers"):
        say(f"not in the file, and so not to be used: {len(absent)} of its layers ({absent[0]} … {absent[-1]})")
    if result["kind"] == "baked":
        line = "largest difference of a logit from steering {max_logit_difference:.2g}; of a token's logits, relative"
        line += " {distance:.2g} (tolerance {tolerance:.2g}), where steering moves them by {moved:.2g}"
        say(line.format(**result))
