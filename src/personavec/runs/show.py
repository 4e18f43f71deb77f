"""How values show themselves in a notebook: small HTML without style sheets, every text escaped."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

CELL = "padding:2px 10px 2px 0;text-align:left;vertical-align:top"


def table(head: Sequence[str], rows: Iterable[Sequence[object]], title: str = "") -> str:
    """A table; numbers as they print."""
    names = "".join(f'<th style="{CELL}">{escape(name)}</th>' for name in head) if any(head) else ""
    lines = "".join(
        "<tr>" + "".join(f'<td style="{CELL}">{escape(str(cell))}</td>' for cell in row) + "</tr>" for row in rows
    )
    caption = f"<b>{escape(title)}</b>" if title else ""
    return f"<div>{caption}<table><thead><tr>{names}</tr></thead><tbody>{lines}</tbody></table></div>"


def shaded(pieces: Sequence[str], values: Sequence[float], low: float, high: float) -> str:
    """Text whose pieces are shaded by a value: blue toward `low`, orange toward `high`, plain half-way.

    Args:
        pieces: Text of each token.
        values: One of each.
        low: Value that is shaded blue in full.
        high: Value that is shaded orange in full.
    """
    middle, reach = (low + high) / 2, max(high - low, 1e-9) / 2
    spans = []
    for piece, value in zip(pieces, values, strict=True):
        share = max(-1.0, min(1.0, (value - middle) / reach))
        colour = "213,94,0" if share > 0 else "0,114,178"
        style = f"background:rgba({colour},{abs(share) * 0.55:.2f})"
        spans.append(f'<span style="{style}" title="{value:+.2f}">{escape(piece)}</span>')
    return f'<div style="white-space:pre-wrap;line-height:1.6">{"".join(spans)}</div>'


SHADED = (0.05, 0.95)
"""Quantiles of a reply's values between which its tokens are shaded."""


def shaded_tokens(tokens: Sequence[Sequence[Any]]) -> str:
    """A reply whose tokens, given as text and value, are shaded against each other."""
    if not tokens:
        return ""
    texts, values = zip(*tokens, strict=True)
    order = sorted(values)
    low, high = (order[round(share * (len(order) - 1))] for share in SHADED)
    return shaded(texts, values, low, high)


def interval(value: Mapping[str, Any] | None, digits: int = 1) -> str:
    """A mean with its interval, as `Interval.to_json` has it: 41.2 [38.0, 44.1], and whether clusters are too few."""
    if not value or value.get("mean") is None:
        return "–"
    shown = ("–" if bound is None else f"{bound:.{digits}f}" for bound in value["ci"])
    return f"{value['mean']:.{digits}f} [{', '.join(shown)}]{few(value)}"


SAID = {"toward": "toward the trait", "against": "against the trait", "neither": "stands out to neither side"}


def said(verdict: str | None) -> str:
    """A data set's verdict along a vector in words; None is that of a score that only ranks rows."""
    return SAID[verdict] if verdict else "no verdict on the set: this score only ranks rows"


def dropped_by(flags: Mapping[str, Any]) -> str:
    """Which rows a screening drops: on which side, beyond which percentile of what."""
    high, low = f"above the {flags['percentile']:g}th", f"below the {100 - flags['percentile']:g}th"
    sides = {"high": f"{high} (toward the trait)", "low": f"{low} (against the trait)", "both": f"{high} or {low}"}
    return f"{sides[flags['drop']]} percentile of {flags['of']}"


def higher_said(side: str) -> str:
    """Which replies of preferences lie higher along a vector, in words."""
    return f"{side} replies lie higher" if side != "neither" else "neither side stands out"


def alerts_said(expectation: Mapping[str, Any]) -> str:
    """Alerts of a monitoring next to what chance alone gives."""
    return f"{expectation['alerts']:,} alerts, where chance alone gives about {expectation['by_chance']:g}"


def few(value: Mapping[str, Any]) -> str:
    """What to say of an interval that rests on too few clusters; nothing of others."""
    from personavec.stats.intervals import FEWEST_CLUSTERS

    clusters = value.get("clusters")
    return "" if clusters is None or clusters >= FEWEST_CLUSTERS else f", too few: {clusters}"


def ceiling_of(r: Mapping[str, Any]) -> str:
    """The highest r within conditions that any signal could have, and whether the one measured is within reach."""
    return f"ceiling {interval(r['ceiling'], 2)}" + ", not measurable" * (r["within"]["measurable"] is False)
