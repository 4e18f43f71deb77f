"""What `extract`, `evaluate`, `verify` and `demo` print for people."""

import shlex

from rich.markup import escape
from rich.table import Table

from personavec.cli.demo import DemoConfig
from personavec.cli.lines import Json, console, estimate, headed, judge_usage, not_scored, planned, say
from personavec.runs.show import interval
from personavec.verbs.evaluate.options import EvaluateConfig, VerifyConfig
from personavec.verbs.extract.options import ExtractConfig


def extract(config: ExtractConfig | DemoConfig, result: Json) -> None:
    """Each trait's verdict, scores and files, and what to do next; of a plan what it takes."""
    if isinstance(config, ExtractConfig) and config.plan:
        return planned(result)
    for trait in result["traits"]:
        colour = "green" if trait["proven"] else "red"
        say(f"[bold]{trait['trait']}[/] on {escape(config.model)}: [{colour}]{trait['verdict_word']}[/]")
        table = headed("arm", "trait score", "coherence")
        for arm, score in trait["trait_score"].items():
            table.add_row(arm, estimate(score), estimate(trait["coherence"][arm]))
        table.add_row("random direction", estimate(trait["random_control"]), "")
        console.print(table)
        say(
            f"layer {trait['layer']}, coef {trait['coef']:.3g}, dose {trait['dose']:.2g}; "
            f"vector from {trait['n_pos']} + {trait['n_neg']} replies; judge "
            f"AUC against {', '.join(f'{name} {estimate(auc, 2)}' for name, auc in trait['judge_aucs'].items())}"
        )
        if not trait["above_floor"]:
            say("no layer and dose stayed surely above the coherence floor: the most coherent one was taken")
        if trait["above_floor"] and trait.get("largest_dose"):
            say("the largest dose that was tried was chosen: larger --doses may bring more of the trait")
        measures = (trait.get("confounds") or {"measures": {}})["measures"]
        if out := [name for name, measure in measures.items() if measure["stands_out"]]:
            say(f"the two sides also differ in {', '.join(out)}: see the report")
        for arm, dropped in trait["unscored"].items():
            not_scored(arm, dropped)
        if (check := trait["independent_check"]) is None:
            say("no independent check in the trait file: the judge alone speaks for it")
        else:
            shares = ", ".join(f"{arm} {check['arms'][arm]['mean']:.2f}" for arm in trait["trait_score"])
            say(f"independent check ({check['unit']}): {shares}", markup=False)
        if not trait["proven"]:
            say(f"what decided: {trait['deciding']}", markup=False)
        for condition in trait["verdict"]:
            if not condition["holds"]:
                say(f"{'cannot be seen' if condition.get('moot') else 'against it'}: {condition['text']}", markup=False)
        steering = shlex.quote(f"{trait['vector']}:{trait['coef']:.3g}@{trait['layer']}")
        say(f"vector: {trait['vector']}\nreport: {trait['report']}", markup=False)
        if trait["sheet"]:
            say(f"for blind readers: {trait['sheet']}", markup=False)
        say(f"next: personavec chat --model {shlex.quote(config.model)} --steer {steering}", markup=False)
    if len(result["traits"]) + len(result["failed"]) > 1:
        for name, above in ((result["judge_by_trait"] or {}).get("above") or {}).items():
            difference = estimate(above["difference"])
            say(f"judge of {name}: its own replies score {difference} above those of {above['largest']}")
        say(f"all traits: {result['report']}", markup=False)
    judge_usage(result)
    say(f"{result['seconds']:.0f} seconds")


demo = extract


def evaluate(config: EvaluateConfig, result: Json) -> None:
    """Trait score and coherence, beside the plain model's where something was changed."""
    if config.sheet:
        _sheets(result)
        return
    changes = ", ".join([*([f"adapter {config.adapter}"] if config.adapter else []), *config.steer])
    say(f"{result['trait']} on {config.model}{changes and f' with {changes}'}", markup=False)
    table = headed("", "trait score", "coherence")
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
    if costs := result.get("capability"):  # what the base model can, and the changed one
        for name, base in costs["base"].items():
            digits = 1 if name == "perplexity" else 3
            also = f", {estimate(costs['changed'][name], digits)} changed" * ("changed" in costs)
            say(f"{name}: {estimate(base, digits)} base{also}", markup=False)
    if "agreement" in result:
        _agreement(result)
    if signals := result.get("signals"):  # of every arm; they are no scores
        table = headed("signal", *signals["means"], "rank correlation with")
        for name, agreed in signals["agreement"].items():
            means = (estimate(arm[name], 2) for arm in signals["means"].values())
            table.add_row(name, *means, f"{agreed['with']} {estimate(agreed['spearman'], 2)}")
        console.print(table)
    say(f"{result['seconds']:.0f} seconds")


def _sheets(result: Json) -> None:
    """What each reader chose, and how far readers and judge agree."""
    for reader in result["readers"]:
        name = f"reader {reader['reader']}"
        if reader["steered_chosen"]:
            say(f"{name} chose the steered reply in {_share(reader['steered_chosen'])}", markup=False)
        say(f"{name} agrees with the judge ({result['judge']}) in {_share(reader['judge_agreement'])}", markup=False)
        for what in ("cannot_tell", "missing"):
            if reader[what]:
                say(f"{name}, {what.replace('_', ' ')}: {reader[what]} of {result['pairs']} pairs", markup=False)
    for pair in result["between"]:
        kappa = estimate(pair["kappa"] | {"dropped": 0}, 2)
        say(f"readers {' and '.join(pair['readers'])} agree in {_share(pair['equal'])}, kappa {kappa}", markup=False)


def _share(share: Json) -> str:
    """A share of pairs with its interval, in percent."""
    scaled = {"mean": share["mean"] and 100 * share["mean"], "ci": [end and 100 * end for end in share["ci"]]}
    return f"{interval(scaled)} of {share['n']} pairs".replace(" [", "% [", 1)


def _agreement(result: Json) -> None:
    """Two judges of the same replies, and the sheet for readers."""
    compared, sheet = result["agreement"], result["sheet"]
    trait, above = compared["trait"], compared["trait"]["above_50"]
    table = headed("two judges", "AUC")
    for judge, auc in zip(compared["judges"], trait["auc"], strict=True):
        table.add_row(escape(judge), estimate(auc, 2))
    console.print(table)
    kappa = "–" if trait["kappa"] is None else f"{trait['kappa']:.2f}"
    coherence = compared["coherence"]
    note = f"coherence {estimate(coherence['spearman'], 2)}" if coherence else "one judge of coherence for both"
    say(
        f"{trait['scored_by_both']} of {compared['replies']} replies scored by both: rank correlation "
        f"{estimate(trait['spearman'] | {'dropped': 0}, 2)}, {note}"
    )
    say(
        f"above 50 to both {above['both']}, to the first alone {above['first_only']}, to the second alone "
        f"{above['second_only']}, to neither {above['neither']}: kappa {kappa}"
    )
    note = (
        f"{sheet['pairs']} pairs of replies for readers: {sheet['sheet']}" if sheet["pairs"] else "no pairs for readers"
    )
    say(f"{note} ({sheet['questions_without_pair']} questions had none above 80 beside one below 20)", markup=False)


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
