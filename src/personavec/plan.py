"""What screening costs: tokens and time of every rung, from measured rates."""

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from typing import Any

COSTS = ("raw", "proxy", "sampled", "full")
SIZES = (1_000_000, 100_000_000)
"""Rows of the larger data sets that the plan tells about."""


@dataclass(frozen=True)
class Rates:
    """What was measured on some rows of the data set, with this model on this machine."""

    prompt_tokens: float
    """Mean per row."""
    response_tokens: float
    base_tokens: float
    """Mean length of the base replies that were written."""
    read_per_second: float
    """Tokens."""
    written_per_second: float | None
    """None where no base replies were asked for."""
    rows: int
    """How many rows it was measured on."""


def sample_size(rows: int, precision: float) -> int:
    """Rows that need a base reply for an interval of ± precision standard deviations, were the proxy worth nothing."""
    needed = (1.96 / precision) ** 2
    return min(rows, ceil(needed / (1 + needed / rows))) if rows else 0


def estimate(rates: Rates, rows: int, precision: float, price_per_hour: float | None = None) -> list[dict[str, Any]]:
    """Tokens read and written, seconds, and price of every rung for that many rows."""
    read = rates.prompt_tokens + rates.response_tokens
    answered = {"raw": 0, "proxy": 0, "sampled": sample_size(rows, precision), "full": rows}
    table = []
    for cost in COSTS:
        # a prompt is read once to write the base reply, and once more with both replies after it
        again = rates.prompt_tokens * 2 + rates.base_tokens + (rates.response_tokens if cost == "sampled" else 0)
        tokens_read = rows * read + answered[cost] * (again if cost == "sampled" else again - rates.prompt_tokens)
        tokens_written = answered[cost] * rates.base_tokens
        seconds = None
        if not tokens_written or rates.written_per_second:
            seconds = tokens_read / rates.read_per_second + tokens_written / (rates.written_per_second or 1)
        table.append(
            {
                "cost": cost,
                "rows": rows,
                "base_replies": answered[cost],
                "tokens_read": round(tokens_read),
                "tokens_written": round(tokens_written),
                "seconds": None if seconds is None else round(seconds, 1),
                "price": None
                if price_per_hour is None or seconds is None
                else round(price_per_hour * seconds / 3600, 2),
            }
        )
    return table


def foretold(rung: Mapping[str, Any], chosen: bool) -> str:
    """A line of the plan."""
    took = "not measured" if rung["seconds"] is None else f"about {rung['seconds'] / 60:.1f} min"
    mark = "this run" if chosen else ""
    told = f"{rung['cost']:<8} reads {rung['tokens_read']:>15,} tokens, writes {rung['tokens_written']:>13,}: {took}"
    return f"{told:<76} {mark}".rstrip()
