"""What `screen`, `shift` and `finetune` print for people."""

from collections.abc import Sequence

from rich.markup import escape

from personavec.cli.lines import Json, console, duration, estimate, headed, planned, say
from personavec.runs.show import dropped_by, higher_said, said
from personavec.verbs.finetune.options import ReportConfig, ShiftConfig
from personavec.verbs.screen.options import ScreenConfig


def shift(config: ShiftConfig, result: Json) -> None:
    """A table of vectors for every finetuned model."""
    for tuned in result["tuned"]:
        table = headed("vector", "layer", "shift", "over replies", "random")
        for name, moved in tuned["shift"].items():
            random = tuned["random_control"][name]
            spread = f"{'beyond' if random['beyond'] else 'within'} {random['low']:.2f} to {random['high']:.2f}"
            over_replies = estimate(tuned["response_shift"][name], 2)
            table.add_row(escape(name), str(result["layers"][name]), estimate(moved, 2), over_replies, spread)
        say(tuned["tuned"], markup=False)
        console.print(table)
    say(f"{config.model} before; {result['out']}/result.json; {result['seconds']:.0f} seconds", markup=False)


def finetune(config: ReportConfig, result: Json) -> None:
    """What was trained on, how, and where it is; of a plan what it takes."""
    if config.plan:
        return planned(result)
    if config.report:
        return _before_after(result)
    skipped = f", {result['skipped']:,} skipped (skipped.jsonl)" * bool(result["skipped"])
    say(f"{result['rows']:,} rows of {config.data}, {result['tokens']:,} tokens{skipped}", markup=False)
    if benign := result["benign"]:
        unused = f" ({benign['skipped']:,} skipped)" * bool(benign["skipped"])
        say(f"{benign['sequences']:,} harmless sequences of {config.benign} among them{unused}", markup=False)
    for row in result["steering"]:
        dose = f" (dose {row['dose']:.2f})" if row.get("dose") is not None else ""
        amount = f", coef {row['coef']:.3g}{dose}" if "coef" in row else ""
        where = f", layer {row['layer']}" if "layer" in row else ""
        random = "a random direction in place of " * result["random"]
        say(f"{result['method']}: {random}{row['trait']}{where}{amount}", markup=False)
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
    shown = [name for name, measured in costs.items() if measured]
    table = headed("arm", *result["traits"], "left", "coherence", *shown)
    for arm in result["arms"]:
        rows, every = [*arm["traits"].values()], {"loss": arm["loss"], **arm["costs"]}
        kept = rows[0]["kept"]
        scores = [*(row["trait_score"] for row in rows), kept, rows[0]["coherence"]]
        cells = [estimate(score, 1 + (score is kept)) if score else "–" for score in scores]
        table.add_row(arm["arm"], *cells, *(estimate(every[name], 2) if every[name] else "–" for name in shown))
    console.print(table)
    say(f"left: share of plain training's change of {result['traits'][0]} that is still there")
    for trait, judge in result["judges"].items():
        if judge["weak_judge"]:
            say(f"weak judge of {trait}: AUC {estimate(judge['judge_auc'], 2)}")
    for arm, why in result["left_out"].items():
        say(f"left out: {arm}, because {why}", markup=False)
    say(f"report: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def screen(config: ScreenConfig, result: Json) -> None:
    """The plan alone where it was asked for; else the set's projections, what stands out, and the files."""
    if config.plan:
        _plan(result["plan"]["estimates"])
        return
    if config.side == "both":
        _sides(config, result)
        return
    used = result["rows"] - result["skipped"]
    what = "replies" if config.turn == "every" else "rows"
    say(f"{used:,} of {result['rows']:,} {what} of {config.data} screened on {config.model}", markup=False)
    for reason, count in result["skipped_by_reason"].items():
        say(f"skipped {count:,}: {reason}", markup=False)
    if result["rows_with_more_turns"]:
        say(f"{result['rows_with_more_turns']:,} rows have turns that were not read (--turn {config.turn})")
    table = headed("vector", "layer", result["estimate"], "random directions", "")
    for name, mean in result["projection_difference"].items():
        verdict = said(result["verdict"][name]) if result["verdict_against"] else "–"
        layer, spread = _read_at(result["layers"][name], result["random_control"][name])
        table.add_row(escape(name), layer, estimate(mean, 3), spread, verdict)
    console.print(table)
    for name, difference in (result["difference_from_clean"] or {}).items():
        say(
            f"{name}: {estimate(difference, 3)} from {result['verdict_against']}, which the verdict is of", markup=False
        )
    if not result["verdict_against"]:
        say(f"{said(None)}; --cost sampled or full tells where the set lies")
    if sampled := result["sampled"]:
        say(f"from {sampled['base_replies']:,} base replies, {sampled['base_tokens']:,} tokens")
        if top := sampled["top_k"]:
            recall = ", ".join(f"{name} {share:.2f}" for name, share in top["expected_recall"].items())
            say(f"extreme rows: {top['base_replies']:,} base replies in all; expected recall {recall}", markup=False)
    if flags := result["flags"]:
        whole = f", of {flags['kept_conversations']:,} conversations all" if config.turn == "every" else ""
        kept = f"{flags['kept']:,} kept{whole}"
        say(f"{dropped_by(flags)}: {flags['dropped']:,} {what} dropped, {kept}", markup=False)
        for hint in flags["hints"]:
            say(hint, markup=False)
    for name, file in result["files"].items():
        say(f"{name}: {file}", markup=False)
    say(f"table: {result['table']}\nreport: {result['report']}", markup=False)
    speed = f", {result['rows_per_second']:.1f} rows a second" if result["rows_per_second"] else ""
    say(f"{result['seconds']:.0f} seconds{speed}")


def _read_at(layer: int | None, random: Json) -> tuple[str, str]:
    """The layer of a score, and where the same along random directions lies; a lift has neither."""
    if layer is None:
        return "–", "–"
    return str(layer), f"{random['low']:.3f} to {random['high']:.3f}"


def _sides(config: ScreenConfig, result: Json) -> None:
    """Both sides of preferences, their difference, and the files of each."""
    say(
        f"{result['rows']:,} pairs of {config.data} screened on {config.model}, {result['skipped']:,} skipped",
        markup=False,
    )
    table = headed("vector", "layer", "chosen less rejected", "random directions", "")
    for name, difference in result["difference"].items():
        layer, spread = _read_at(result["layers"][name], difference["random_control"])
        table.add_row(escape(name), layer, estimate(difference, 3), spread, higher_said(difference["higher"]))
    console.print(table)
    for side in ("chosen", "rejected"):
        figures = result[side]
        for reason, count in figures["skipped_by_reason"].items():
            say(f"{side}, skipped {count:,}: {reason}", markup=False)
        for name, mean in figures["projection_difference"].items():
            verdict = figures["verdict"][name]
            outcome = f": {said(verdict)}, compared with {figures['verdict_against']}" if verdict else ""
            say(f"{side}, {name}: {figures['estimate']} {estimate(mean, 3)}{outcome}", markup=False)
        for name, file in figures["files"].items():
            say(f"{side}, {name}: {file}", markup=False)
        say(f"{side}, table: {figures['table']}", markup=False)
    if result["caveat"]:
        say(result["caveat"], markup=False)
    say(f"report: {result['report']}\n{result['seconds']:.0f} seconds", markup=False)


def _plan(estimates: Sequence[Json]) -> None:
    """What every cost takes."""
    priced = any(row["price"] is not None for row in estimates)
    table = headed("rows", "cost", "tokens read", "tokens written", "time", *["price"] * priced)
    for row in estimates:
        cells = [f"{row['rows']:,}", row["cost"], f"{row['tokens_read']:,}", f"{row['tokens_written']:,}"]
        cells += [duration(row["seconds"]), *["–" if row["price"] is None else f"{row['price']:,.2f}"] * priced]
        table.add_row(*cells)
    console.print(table)
