"""What a verb found, for people: a few lines on stdout. Scripts take `--json`."""

from personavec.cli.lines import Json, console, estimate, headed, say
from personavec.paper.options import PaperConfig
from personavec.verbs.analyse.options import DecomposeConfig, SpaceConfig


def paper(config: PaperConfig, result: Json) -> None:
    """How often each verdict was reached, and what was left out."""
    if config.plan:
        return say(f"in all about {sum(result['plan'].values()):.0f} minutes from nothing")
    table = headed("part", "same direction", "weaker", "absent", "contradicted", "not measured")
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
        r = "no correlation" if effects["r"] is None else f"r {effects['r']:.2f}, p {effects['null']['p']:.3f}"
        say(f"cosine and co-expression over {effects['pairs']} pairs: {r}")
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
