"""What a verb found, for people: a few lines on stdout. Scripts take `--json`."""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from personavec.config import ChatConfig, DemoConfig, EvaluateConfig, ExtractConfig, VerifyConfig

Json = Mapping[str, Any]

console = Console(highlight=False)


def extract(config: ExtractConfig | DemoConfig, result: Json) -> None:
    """Each trait's verdict, scores and files, and what to do next."""
    for trait in result["traits"]:
        proven = "[green]proven[/]" if trait["proven"] else "[red]not proven[/]"
        _say(f"[bold]{trait['trait']}[/] on {escape(config.model)}: {proven}")
        table = Table("arm", "trait score", "coherence", box=None, pad_edge=False)
        for arm, score in trait["trait_score"].items():
            table.add_row(arm, _estimate(score), _estimate(trait["coherence"][arm]))
        table.add_row("random direction", _estimate(trait["random_control"]), "")
        console.print(table)
        _say(
            f"layer {trait['layer']}, coef {trait['coef']:.3g}, dose {trait['dose']:.2g}; "
            f"vector from {trait['n_pos']} + {trait['n_neg']} replies; judge AUC {_estimate(trait['judge_auc'], 2)}"
        )
        if not trait["above_floor"]:
            _say("no layer and dose stayed surely above the coherence floor: the most coherent one was taken")
        for arm, dropped in trait["unscored"].items():
            _not_scored(arm, dropped)
        for condition in trait["verdict"]:
            if not condition["holds"]:
                _say(f"against it: {condition['text']}", markup=False)
        steering = shlex.quote(f"{trait['vector']}:{trait['coef']:.3g}@{trait['layer']}")
        _say(f"vector: {trait['vector']}\nreport: {trait['report']}", markup=False)
        _say(f"next: personavec chat --model {shlex.quote(config.model)} --steer {steering}", markup=False)
    for failure in result["failed"]:
        _say(f"{failure['trait']}: {failure['error']}", markup=False)
    if len(result["traits"]) + len(result["failed"]) > 1:
        _say(f"all traits: {result['report']}", markup=False)
    _usage(result)
    _say(f"{result['seconds']:.0f} seconds")


demo = extract


def evaluate(config: EvaluateConfig, result: Json) -> None:
    """Trait score and coherence, beside the plain model's where something was changed."""
    changes = ", ".join([*([f"adapter {config.adapter}"] if config.adapter else []), *config.steer])
    _say(f"{result['trait']} on {config.model}{changes and f' with {changes}'}", markup=False)
    table = Table("", "trait score", "coherence", box=None, pad_edge=False)
    table.add_row("changed" if changes else "base", _estimate(result["trait_score"]), _estimate(result["coherence"]))
    for row in ("base", "difference") if changes else ():
        table.add_row(row, _estimate(result[row]["trait"]), _estimate(result[row]["coherence"]))
    if result["random_control"]:
        table.add_row("random direction", _estimate(result["random_control"]), "")
    console.print(table)
    auc = "" if result["judge_auc"] is None else f", AUC {_estimate(result['judge_auc'], 2)}"
    _say(f"judge {result['judge']}{auc}{', a weak judge' if result['weak_judge'] else ''}", markup=False)
    _say(f"{result['replies']} replies: {result['table']}", markup=False)
    for arm, dropped in result["unscored"].items():
        _not_scored(arm, dropped)
    _usage(result)
    _say(f"{result['seconds']:.0f} seconds")


def chat(_config: ChatConfig, _result: Json) -> None:
    """Nothing: all was said."""


def verify(config: VerifyConfig, result: Json) -> None:
    """One line a check."""
    shape = f"{result['n_layers']} layers, {result['d_model']} wide"
    _say(f"{config.model}: {shape}, {result['dtype']} on {result['device']}", markup=False)
    table = Table(box=None, show_header=False, pad_edge=False)
    for check in result["checks"]:
        table.add_row("[green]ok[/]" if check["passed"] else "[red]FAILED[/]", check["name"], escape(check["detail"]))
    console.print(table)
    failed = sum(not check["passed"] for check in result["checks"])
    _say("[green]all checks passed[/]" if result["passed"] else f"[red]{failed} of {len(result['checks'])} failed[/]")


def _not_scored(arm: str, dropped: Json) -> None:
    """What kept replies of an arm from a score."""
    for kind, whys in dropped.items():
        told = ", ".join(f"{count} {why}" for why, count in whys.items() if count)
        if told:
            _say(f"{arm.replace('_', ' ')}: no {kind} score for {told}")


def _usage(result: Json) -> None:
    """What a judge's server was asked."""
    if usage := result["judge_usage"]:
        _say(
            f"judge server: {usage['calls']:,} calls ({usage['retries']:,} of them retries, {usage['failed']:,} "
            f"failed), {usage['tokens']:,} tokens; {usage['cached']:,} answers from the cache"
        )


def _say(text: str, markup: bool = True) -> None:
    """A line that is never wrapped, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True, markup=markup)


def _estimate(value: Json, digits: int = 1) -> str:
    """A mean with its interval, and what was dropped: 41.2 [38.0, 44.1], 3 dropped."""
    if value["mean"] is None:
        return "–"
    low, high = ("–" if bound is None else f"{bound:.{digits}f}" for bound in value["ci"])
    dropped = f", {value['dropped']} dropped" if value["dropped"] else ""
    return f"{value['mean']:.{digits}f} [{low}, {high}]{dropped}"
