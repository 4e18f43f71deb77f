"""What a verb found, for people: a few lines on stdout. Scripts take `--json`."""

import shlex
from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from personavec.cli.lines import Json, console, duration, estimate, judge_usage, not_scored, reasons, say
from personavec.config import (
    ChatConfig,
    DemoConfig,
    EvaluateConfig,
    ExtractConfig,
    ScreenConfig,
    ShiftConfig,
    VerifyConfig,
    WriteDatasetConfig,
    WriteTraitConfig,
)
from personavec.config_decompose import DecomposeConfig
from personavec.config_finetune import ReportConfig
from personavec.config_paper import PaperConfig
from personavec.config_space import SpaceConfig


def extract(config: ExtractConfig | DemoConfig, result: Json) -> None:
    """Each trait's verdict, scores and files, and what to do next."""
    for trait in result["traits"]:
        proven = "[green]proven[/]" if trait["proven"] else "[red]not proven[/]"
        say(f"[bold]{trait['trait']}[/] on {escape(config.model)}: {proven}")
        table = Table("arm", "trait score", "coherence", box=None, pad_edge=False)
        for arm, score in trait["trait_score"].items():
            table.add_row(arm, estimate(score), estimate(trait["coherence"][arm]))
        table.add_row("random direction", estimate(trait["random_control"]), "")
        console.print(table)
        say(
            f"layer {trait['layer']}, coef {trait['coef']:.3g}, dose {trait['dose']:.2g}; "
            f"vector from {trait['n_pos']} + {trait['n_neg']} replies; judge AUC {estimate(trait['judge_auc'], 2)}"
        )
        if not trait["above_floor"]:
            say("no layer and dose stayed surely above the coherence floor: the most coherent one was taken")
        measures = (trait.get("confounds") or {"measures": {}})["measures"]
        if out := [name for name, one in measures.items() if one["stands_out"]]:
            say(f"the two sides also differ in {', '.join(out)}: see the report")
        for arm, dropped in trait["unscored"].items():
            not_scored(arm, dropped)
        for condition in trait["verdict"]:
            if not condition["holds"]:
                say(f"against it: {condition['text']}", markup=False)
        steering = shlex.quote(f"{trait['vector']}:{trait['coef']:.3g}@{trait['layer']}")
        say(f"vector: {trait['vector']}\nreport: {trait['report']}", markup=False)
        say(f"next: personavec chat --model {shlex.quote(config.model)} --steer {steering}", markup=False)
    if len(result["traits"]) + len(result["failed"]) > 1:
        say(f"all traits: {result['report']}", markup=False)
    judge_usage(result)
    say(f"{result['seconds']:.0f} seconds")


demo = extract


def evaluate(config: EvaluateConfig, result: Json) -> None:
    """Trait score and coherence, beside the plain model's where something was changed."""
    if config.sheet is not None:
        _sheet(result)
        return
    changes = ", ".join([*([f"adapter {config.adapter}"] if config.adapter else []), *config.steer])
    say(f"{result['trait']} on {config.model}{changes and f' with {changes}'}", markup=False)
    table = Table("", "trait score", "coherence", box=None, pad_edge=False)
    table.add_row("changed" if changes else "base", estimate(result["trait_score"]), estimate(result["coherence"]))
    for row in ("base", "difference") if changes else ():
        table.add_row(row, estimate(result[row]["trait"]), estimate(result[row]["coherence"]))
    if result["random_control"]:
        table.add_row("random direction", estimate(result["random_control"]), "")
    console.print(table)
    auc = "" if result["judge_auc"] is None else f", AUC {estimate(result['judge_auc'], 2)}"
    say(f"judge {result['judge']}{auc}{', a weak judge' if result['weak_judge'] else ''}", markup=False)
    say(f"{result['replies']} replies: {result['table']}", markup=False)
    for arm, dropped in result["unscored"].items():
        not_scored(arm, dropped)
    judge_usage(result)
    if "capability" in result:
        _capability(result["capability"])
    if "agreement" in result:
        _agreement(result)
    if "signals" in result:
        _signals(result["signals"])
    say(f"{result['seconds']:.0f} seconds")


def _capability(costs: Json) -> None:
    """What the base model can, and the changed one."""
    for name, base in costs["base"].items():
        digits = 1 if name == "perplexity" else 3
        changed = f", {estimate(costs['changed'][name], digits)} changed" * ("changed" in costs)
        say(f"{name}: {estimate(base, digits)} base" + changed, markup=False)


def _sheet(result: Json) -> None:
    """How often people said what the judge had said."""
    agreed = result["agreement"]
    share, low, high = (f"{100 * value:.1f}" for value in (agreed["mean"], *agreed["ci"]))
    left = [f"{agreed['dropped']} left blank"] * bool(agreed["dropped"])
    left += [f"{result['missing']} rows missing"] * bool(result["missing"])
    told = f" ({', '.join(left)})" if left else ""
    say(f"people agree with the judge on {share}% [{low}, {high}] of {agreed['n']} pairs{told}")


def _agreement(result: Json) -> None:
    """Two judges of the same replies, and the sheet for people."""
    found, sheet = result["agreement"], result["sheet"]
    trait, above = found["trait"], found["trait"]["above_50"]
    table = Table("two judges", "AUC", box=None, pad_edge=False)
    for judge, auc in zip(found["judges"], trait["auc"], strict=True):
        table.add_row(escape(judge), estimate(auc, 2))
    console.print(table)
    kappa = "–" if trait["kappa"] is None else f"{trait['kappa']:.2f}"
    coherence = found["coherence"]
    told = f"coherence {estimate(coherence['spearman'], 2)}" if coherence else "one judge of coherence for both"
    say(
        f"{trait['scored_by_both']} of {found['replies']} replies scored by both: rank correlation "
        f"{estimate(trait['spearman'] | {'dropped': 0}, 2)}, {told}"
    )
    say(
        f"above 50 to both {above['both']}, to the first alone {above['first_only']}, to the second alone "
        f"{above['second_only']}, to neither {above['neither']}: kappa {kappa}"
    )
    told = (
        f"{sheet['pairs']} pairs of replies for people: {sheet['sheet']}" if sheet["pairs"] else "no pairs for people"
    )
    say(f"{told} ({sheet['questions_without_pair']} questions had none above 80 beside one below 20)", markup=False)


def _signals(found: Json) -> None:
    """Signals of every arm; they are no scores."""
    table = Table("signal", *found["means"], "rank correlation with", box=None, pad_edge=False)
    for name, agreed in found["agreement"].items():
        means = (estimate(arm[name], 2) for arm in found["means"].values())
        table.add_row(name, *means, f"{agreed['with']} {estimate(agreed['spearman'], 2)}")
    console.print(table)


def chat(_config: ChatConfig, _result: Json) -> None:
    """Nothing: all was said."""


def shift(config: ShiftConfig, result: Json) -> None:
    """A table of vectors for every finetuned model."""
    for tuned in result["tuned"]:
        table = Table("vector", "layer", "shift", "over replies", "random", box=None, pad_edge=False)
        for name, moved in tuned["shift"].items():
            random = tuned["random_control"][name]
            spread = f"{'beyond' if random['beyond'] else 'within'} {random['low']:.2f} to {random['high']:.2f}"
            over_replies = estimate(tuned["response_shift"][name], 2)
            table.add_row(escape(name), str(result["layers"][name]), estimate(moved, 2), over_replies, spread)
        say(tuned["tuned"], markup=False)
        console.print(table)
    say(f"{config.model} before; {result['out']}/result.json; {result['seconds']:.0f} seconds", markup=False)


def finetune(config: ReportConfig, result: Json) -> None:
    """What was trained on, how, and where it is."""
    if config.report:
        return _before_after(result)
    skipped = f", {result['skipped']:,} skipped (skipped.jsonl)" * bool(result["skipped"])
    say(f"{result['rows']:,} rows of {config.data}, {result['tokens']:,} tokens{skipped}", markup=False)
    for one in result["steering"]:
        dose = f" (dose {one['dose']:.2f})" if one.get("dose") is not None else ""
        amount = f", coef {one['coef']:.3g}{dose}" if "coef" in one else ""
        where = f", layer {one['layer']}" if "layer" in one else ""
        random = "a random direction in place of " * result["random"]
        say(f"{result['method']}: {random}{one['trait']}{where}{amount}", markup=False)
    loss = result["loss"]
    say(f"{result['steps']:,} steps, loss {loss['first']:.3f} at first, {loss['last']:.3f} at last")
    if held_out := result["held_out"]:
        base, tuned = (estimate(held_out[name], 3) for name in ("base", "tuned"))
        unused = f" ({held_out['skipped']:,} skipped)" * bool(held_out["skipped"])
        say(f"loss on {held_out['rows']:,} held-out rows{unused}: {base} before, {tuned} after")
    say(f"trained: {result['tuned']}\n{result['seconds']:.0f} seconds", markup=False)


def _before_after(result: Json) -> None:
    """A line an arm."""
    costs = {"loss": result["arms"][0]["loss"], **result["arms"][0]["costs"]}
    shown = [name for name, found in costs.items() if found]
    table = Table("arm", *result["traits"], "kept", "coherence", *shown, box=None, pad_edge=False)
    for arm in result["arms"]:
        own, first = arm["traits"], next(iter(arm["traits"].values()))
        found = [row["trait_score"] for row in own.values()] + [first["kept"], first["coherence"]]
        every = {"loss": arm["loss"], **arm["costs"]}
        cells = [estimate(one, 1 + (one is first["kept"])) if one else "–" for one in found]
        table.add_row(arm["arm"], *cells, *(estimate(every[name], 2) if every[name] else "–" for name in shown))
    console.print(table)
    say(f"kept: share of plain training's change of {result['traits'][0]} that is left")
    for trait, judge in result["judges"].items():
        if judge["weak_judge"]:
            say(f"weak judge of {trait}: AUC {estimate(judge['judge_auc'], 2)}")
    for arm, why in result["left_out"].items():
        say(f"left out: {arm}, because {why}", markup=False)
    say(f"report: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def verify(config: VerifyConfig, result: Json) -> None:
    """One line a check."""
    shape = f"{result['n_layers']} layers, {result['d_model']} wide"
    say(f"{config.model}: {shape}, {result['dtype']} on {result['device']}", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in result["checks"]:
        table.add_row("[green]ok[/]" if check["passed"] else "[red]FAILED[/]", check["name"], escape(check["detail"]))
    console.print(table)
    failed = sum(not check["passed"] for check in result["checks"])
    say("[green]all checks passed[/]" if result["passed"] else f"[red]{failed} of {len(result['checks'])} failed[/]")


def write_trait(_config: WriteTraitConfig, result: Json) -> None:
    """What was written and what was not taken, and what to do next."""
    ends = f" ({result['adjective']}, {result['antonym']})" if result["adjective"] else ""
    sets = result["questions"]
    say(
        f"{result['trait']}{ends}: {result['pairs']} pairs, {sets['extract']} + {sets['evaluate']} questions, "
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
    told = ", ".join(f"{usage[kind]:,} {kind}" for kind in ("valid", "invalid", "refused", "failed", "retried"))
    server = usage["server"]
    spent = f"; {server['calls']:,} calls, {server['tokens']:,} tokens" if server else ""
    say(f"answers: {usage['asked']:,} ({told}{spent})")


def screen(config: ScreenConfig, result: Json) -> None:
    """The plan, the set's projections, what stands out, and the files."""
    _plan(result["plan"]["estimates"])
    if config.plan:
        return
    used = result["rows"] - result["skipped"]
    say(f"{used:,} of {result['rows']:,} rows of {config.data} screened on {config.model}", markup=False)
    for reason, count in result["skipped_by_reason"].items():
        say(f"skipped {count:,}: {reason}", markup=False)
    if result["rows_with_more_turns"]:
        say(f"{result['rows_with_more_turns']:,} rows have turns that were not read (--turn {config.turn})")
    table = Table("vector", "layer", result["estimate"], "random directions", "", box=None, pad_edge=False)
    for name, mean in result["projection_difference"].items():
        random = result["random_control"][name]
        verdict = "beyond random" if random["beyond"] else "not beyond random"
        spread = f"{random['low']:.3f} to {random['high']:.3f}"
        table.add_row(escape(name), str(result["layers"][name]), estimate(mean, 3), spread, verdict)
    console.print(table)
    if config.cost == "proxy":
        say("a proxy ranks rows; how far it is from the projection difference only --cost sampled or full can tell")
    if sampled := result["sampled"]:
        say(f"from {sampled['base_replies']:,} base replies, {sampled['base_tokens']:,} tokens")
        if top := sampled["top_k"]:
            told = ", ".join(f"{name} {share:.2f}" for name, share in top["expected_recall"].items())
            say(f"extreme rows: {top['base_replies']:,} base replies in all; expected recall {told}", markup=False)
    if flags := result["flags"]:
        say(
            f"above the {flags['percentile']:g}th percentile of {flags['of']}: {flags['dropped']:,} rows dropped, "
            f"{flags['kept']:,} kept",
            markup=False,
        )
    for name, file in result["files"].items():
        say(f"{name}: {file}", markup=False)
    say(f"table: {result['table']}\nreport: {result['report']}", markup=False)
    speed = f", {result['rows_per_second']:.1f} rows a second" if result["rows_per_second"] else ""
    say(f"{result['seconds']:.0f} seconds{speed}")


def _plan(estimates: Sequence[Json]) -> None:
    """What every cost takes."""
    priced = any(row["price"] is not None for row in estimates)
    table = Table(
        "rows", "cost", "tokens read", "tokens written", "time", *["price"] * priced, box=None, pad_edge=False
    )
    for row in estimates:
        cells = [f"{row['rows']:,}", row["cost"], f"{row['tokens_read']:,}", f"{row['tokens_written']:,}"]
        cells += [duration(row["seconds"]), *["–" if row["price"] is None else f"{row['price']:,.2f}"] * priced]
        table.add_row(*cells)
    console.print(table)


def paper(config: PaperConfig, result: Json) -> None:
    """How often each verdict was reached, and what was left out."""
    if config.plan:
        return say(f"in all about {sum(result['plan'].values()):.0f} minutes from nothing")
    table = Table(
        "part", "same direction", "weaker", "absent", "contradicted", "not measured", box=None, pad_edge=False
    )
    for part in result["parts"].values():
        found = [claim["verdict"] for claim in part["claims"]]
        table.add_row(part["title"], *(str(found.count(verdict)) for verdict in result["tally"]))
    table.add_row("all", *map(str, result["tally"].values()))
    console.print(table)
    say(f"report: {result['report']}\n{result['minutes']:.0f} minutes", markup=False)


def space(_config: SpaceConfig, result: Json) -> None:
    """How many dimensions, where the assistant lies, and what cosines foretell."""
    layer = result["layer"]
    own = result["ranks"][layer]
    say(
        f"{result['personas']} personas on {result['model']} at layer {layer}: effective rank "
        f"{estimate(own['effective_rank'], 1)}; shuffled {own['shuffled'][0]:.1f} to {own['shuffled'][1]:.1f}",
        markup=False,
    )
    table = Table("axis", "variance", "one end", "other end", "assistant beyond", box=None, pad_edge=False)
    for index, axis in enumerate(result["axes"]["axes"], 1):
        ends = (", ".join(axis[side][:2]) for side in ("low", "high"))
        table.add_row(str(index), f"{axis['share']:.0%}", *ends, f"{axis['percentile']:.0f}%")
    console.print(table)
    if found := result["coexpression"]:
        r = "no correlation" if found["r"] is None else f"r {found['r']:.2f}, p {found['null']['p']:.3f}"
        say(f"cosine and co-expression over {found['pairs']} pairs: {r}")
        for name, reach in found["reach"].items():
            say(f"{name}: {reach['verdict']} in the dose", markup=False)
    say(f"report: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def decompose(_config: DecomposeConfig, result: Json) -> None:
    """The terms and tokens that carry most."""
    say(
        f"{result['trait']} at layer {result['layer']}: the two sides lie {estimate(result['whole'], 2)} apart",
        markup=False,
    )
    table = Table("written by", "difference", "", box=None, pad_edge=False)
    for one in sorted(result["terms"], key=lambda one: -abs(one["difference"]["mean"]))[:8]:
        beyond = "beyond random" if one["random"]["beyond"] else "not beyond random"
        table.add_row(one["term"], estimate(one["difference"], 2), beyond)
    console.print(table)
    told = ", ".join(f"{one['token'].strip() or '␣'} {one['share']:.0%}" for one in result["tokens"]["for"][:8])
    say(f"tokens: {told}\nreport: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)
