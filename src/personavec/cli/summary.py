"""What a verb found, for people: a few lines on stdout. Scripts take `--json`."""

import shlex
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from personavec.config import ChatConfig, Common, DemoConfig, EvaluateConfig, ExtractConfig, VerifyConfig

Json = Mapping[str, Any]

console = Console(highlight=False)


def extract(config: ExtractConfig | DemoConfig, result: Json) -> None:
    """Each trait's verdict, scores and files, and what to do next."""
    for trait in result.get("traits", [result]):
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
        for name in ("vector", "report"):
            if name in trait:
                _say(f"{name}: {trait[name]}", markup=False)
        _next(config, "chat", f"{trait['vector']}:{trait['coef']:.3g}@{trait['layer']}")
    if "report" in result and len(result.get("traits", ())) > 1:
        _say(f"all traits: {result['report']}", markup=False)
    _say(f"{result['seconds']:.0f} seconds")


demo = extract


def evaluate(config: EvaluateConfig, result: Json) -> None:
    """Trait score and coherence."""
    how = "".join([f", adapter {config.adapter}" if config.adapter else "", *(f", {text}" for text in config.steer)])
    _say(f"{config.trait} on {config.model}{how}", markup=False)
    for name, value in result.items():
        if isinstance(value, Mapping) and "mean" in value:
            _say(f"  {name.replace('_', ' '):<16} {_estimate(value)}", markup=False)
        elif isinstance(value, str | int | float) and not isinstance(value, bool):
            _say(f"  {name.replace('_', ' '):<16} {value}", markup=False)


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


def _next(config: Common, verb: str, steering: str) -> None:
    _say(f"next: personavec {verb} --model {shlex.quote(config.model)} --steer {shlex.quote(steering)}", markup=False)


def _say(text: str, markup: bool = True) -> None:
    """A line that is never wrapped, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True, markup=markup)


def _estimate(value: Json, digits: int = 1) -> str:
    """A mean with its interval: 41.2 [38.0, 44.1]."""
    if value["mean"] is None:
        return "–"
    low, high = value["ci"]
    return f"{value['mean']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
