"""Lines of a summary that several verbs share."""

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from personavec.runs.show import interval

Json = Mapping[str, Any]

console = Console(highlight=False)


def headed(*names: str) -> Table:
    """An empty table with these columns, in the look that all tables share."""
    return Table(*names, box=None, pad_edge=False)


def not_scored(arm: str, dropped: Json) -> None:
    """What kept replies of an arm from a score."""
    for kind, whys in dropped.items():
        text = ", ".join(f"{count} {why}" for why, count in whys.items() if count)
        if text:
            say(f"{arm.replace('_', ' ')}: no {kind} score for {text}")


def judge_usage(result: Json) -> None:
    """What a judge's server was asked."""
    if usage := result["judge_usage"]:
        say(
            f"judge server: {usage['calls']:,} calls ({usage['retries']:,} of them retries, {usage['failed']:,} "
            f"failed), {usage['tokens']:,} tokens; {usage['cached']:,} answers from the cache"
        )


def planned(result: Json) -> None:
    """What a plan says, a line each."""
    from personavec.model.machine.plan import MachinePlan

    for name, text in MachinePlan(result).lines():
        say(f"{name}: {text}", markup=False)


def say(text: str, markup: bool = True) -> None:
    """A line that is never wrapped, so that paths and commands can be copied."""
    console.print(text, soft_wrap=True, markup=markup)


def estimate(value: Json, digits: int = 1) -> str:
    """A mean with its interval, and what was dropped: 41.2 [38.0, 44.1], 3 dropped."""
    if value["mean"] is None:
        return "–"
    return interval(value, digits) + (f", {value['dropped']} dropped" if value["dropped"] else "")


def reasons(title: str, counts: Json) -> None:
    """A line of reasons with their counts; nothing where there are none."""
    if counts:
        say(f"{title}: " + ", ".join(f"{count:,} {reason}" for reason, count in counts.items()), markup=False)


def duration(seconds: float | None) -> str:
    """Seconds in a unit that people think in."""
    if seconds is None:
        return "–"
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:.0f} s"
