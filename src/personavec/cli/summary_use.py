"""What the verbs that use vectors, compare them and write traits found, for people."""

import shlex

from rich.markup import escape

from personavec.cli.lines import Json, console, estimate, headed, judge_usage, reasons, say
from personavec.cli.options import ChatConfig
from personavec.paper.options import PaperConfig
from personavec.runs.show import alerts_said, ceiling_of
from personavec.server.options import ServeConfig
from personavec.verbs.analyse.options import DecomposeConfig, SpaceConfig
from personavec.verbs.authoring.options import WriteDatasetConfig, WriteTraitConfig
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
        for line in result["elsewhere"].values():
            say(line, markup=False)
        for name, ways in result["directions"].items():
            say(f"{name}: {ways['toward']:,} alerts toward the trait, {ways['against']:,} against it", markup=False)
        outcome = f"{result['conversations_with_alerts']:,} conversations with alerts: {result['events']}"
        outcome += f"\n{alerts_said(result['expectation'])}"
        outcome += f"\nlimits for a false-positive rate of {limits['false_positive_rate']:g}: {limits['file']}"
    say(f"{outcome}\nreport: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def _experiment(result: Json) -> None:
    """How well the projection predicts the score."""
    table = headed("trait", "conditions", "r overall", "r within", "its ceiling", "95% of matched directions")
    for name, kinds in result["traits"].items():
        for kind, r in kinds.items():
            spread = (
                f"{limits['95']:.2f}" if (limits := tested["nulls"]["covariance"].get("percentiles")) else "–"
                for tested in r["nulls"].values()
            )
            rs = (estimate(r[reach], 2) for reach in ("overall", "within"))
            table.add_row(escape(name), kind, *rs, ceiling_of(r).removeprefix("ceiling "), " / ".join(spread))
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


def paper(config: PaperConfig, result: Json) -> None:
    """How often each verdict was reached, and what was left out."""
    if config.plan:
        return say(f"in all about {sum(result['plan'].values()):.0f} minutes from nothing")
    table = headed("part", *result["tally"])
    for part in result["parts"].values():
        verdicts = [claim["verdict"] for claim in part["claims"]]
        table.add_row(part["title"], *(str(verdicts.count(verdict)) for verdict in result["tally"]))
    table.add_row("all", *map(str, result["tally"].values()))
    console.print(table)
    say(f"report: {result['report']}\n{result['minutes']:.0f} minutes", markup=False)


def space(_config: SpaceConfig, result: Json) -> None:
    """How many dimensions, where the assistant lies, and what cosines predict."""
    layer = result["layer"]
    ranks = result["ranks"][layer]
    say(
        f"{result['personas']} personas on {result['model']} at layer {layer}: effective rank "
        f"{estimate(ranks['effective_rank'], 1)}; shuffled {ranks['shuffled'][0]:.1f} to {ranks['shuffled'][1]:.1f}",
        markup=False,
    )
    table = headed("axis", "variance", "one end", "other end", "assistant beyond")
    for index, axis in enumerate(result["axes"]["axes"], 1):
        ends = (", ".join(axis[side][:2]) for side in ("low", "high"))
        table.add_row(str(index), f"{axis['share']:.0%}", *ends, f"{axis['percentile']:.0f}%")
    console.print(table)
    if effects := result["coexpression"]:
        r, p = effects["r"], effects["null"]["p"]
        known = "too few for a correlation" if r is None else f"r {r:.2f}, p {p:.3f}"
        say(f"cosine and co-expression over {effects['pairs']} pairs: {known}")
        for name, reach in effects["reach"].items():
            say(f"{name}: {reach['verdict']} in the dose", markup=False)
    say(f"report: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def decompose(_config: DecomposeConfig, result: Json) -> None:
    """The terms and tokens that carry most."""
    say(
        f"{result['trait']} at layer {result['layer']}: the two sides lie {estimate(result['whole'], 2)} apart",
        markup=False,
    )
    table = headed("written by", "difference", "")
    for term in sorted(result["terms"], key=lambda term: -abs(term["difference"]["mean"]))[:8]:
        beyond = "beyond random" if term["random"]["beyond"] else "not beyond random"
        table.add_row(term["term"], estimate(term["difference"], 2), beyond)
    console.print(table)
    shares = ", ".join(f"{token['token'].strip() or '␣'} {token['share']:.0%}" for token in result["tokens"]["for"][:8])
    say(f"tokens: {shares}\nreport: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def write_trait(_config: WriteTraitConfig, result: Json) -> None:
    """What was written and what was not taken, and what to do next."""
    ends = f" ({result['adjective']}, {result['antonym']})" if result["adjective"] else ""
    sets = result["questions"]
    say(
        f"{result['trait']}{ends}: {result['pairs']} pairs, {' + '.join(map(str, sets.values()))} questions, "
        f"{'no ' * ('rubric' in result['missing'])}rubric, by {result['writer']}",
        markup=False,
    )
    reasons("not taken", result["rejected_by_reason"])
    _writer_usage(result)
    if result["file"]:
        file = shlex.quote(result["file"])
        say(f"trait: {result['file']}\nnext: read it, then personavec extract {file}", markup=False)
    say(f"{result['seconds']:.0f} seconds")


def write_dataset(_config: WriteDatasetConfig, result: Json) -> None:
    """How much was written, what was dropped, and where it is."""
    domains, questions = result["domains"], result["questions"]
    say(
        f"{result['source']}: {result['rows']:,} rows a grade from {questions['written']:,} of {questions['wanted']:,} "
        f"questions in {domains['written']:,} of {domains['wanted']:,} domains, by {result['writer']}",
        markup=False,
    )
    reasons("questions not taken", result["questions_rejected"])
    reasons("answers dropped", result["answers_dropped"])
    _writer_usage(result)
    for grade, file in result["files"].items():
        say(f"{grade}: {file}", markup=False)
    say(f"{result['seconds']:.0f} seconds")


def _writer_usage(result: Json) -> None:
    """What became of the answers of a writer, and what its server was asked."""
    usage = result["writer_usage"]
    kinds = ", ".join(f"{usage[kind]:,} {kind}" for kind in ("valid", "invalid", "refused", "failed", "retried"))
    server = usage["server"]
    spent = f"; {server['calls']:,} calls, {server['tokens']:,} tokens" if server else ""
    say(f"answers: {usage['asked']:,} ({kinds}{spent})")
