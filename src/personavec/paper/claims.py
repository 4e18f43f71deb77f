"""What the paper claims, what was measured here, and the verdict, which is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

Verdict = Literal["same direction", "weaker", "absent", "contradicted", "not measured"]
VERDICTS: tuple[Verdict, ...] = ("same direction", "weaker", "absent", "contradicted", "not measured")
COSINE = "cosine × the paper's sign, ± what 95% of random pairs reach"
"""Unit of claims whose figure has no interval."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Claim:
    """One figure next to the paper's. Above zero is the paper's direction."""

    where: str
    """Section, figure or appendix of the paper."""
    text: str
    """What is claimed; alike for all subjects, so that they stand in one table."""
    subject: str
    """Trait or data set."""
    ours: Mapping[str, Any] | None
    """`mean` and `ci`; None where it could not be measured."""
    unit: str = "points"
    control: float | None = None
    """What directions without meaning, or shuffled labels, reach: the upper end."""
    published: tuple[float, ...] = ()
    """The paper's figures for Qwen2.5-7B and Llama-3.1-8B, or the first alone."""

    @property
    def verdict(self) -> Verdict:
        """Whether the paper's claim holds here.

        contradicted: the whole interval lies below zero. absent: it reaches zero, or the mean is not above the control.
        weaker: the whole interval lies below the least of the paper's figures. same direction: everything else.
        """
        mean, low, high = self._figures
        if mean is None or low is None or high is None:
            return "not measured"
        if high < 0:
            return "contradicted"
        if low <= 0 or (self.control is not None and mean <= self.control):
            return "absent"
        return "weaker" if self.published and high < min(self.published) else "same direction"

    @property
    def _figures(self) -> tuple[float | None, float | None, float | None]:
        return (self.ours["mean"], *self.ours["ci"]) if self.ours else (None, None, None)

    def to_json(self) -> Row:
        """As it stands in the result."""
        mean, low, high = self._figures
        return {
            "where": self.where,
            "claim": self.text,
            "subject": self.subject,
            "unit": self.unit,
            "mean": mean,
            "ci": [low, high],
            "control": self.control,
            "published": list(self.published),
            "verdict": self.verdict,
        }


def tally(claims: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often each verdict was reached."""
    return {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}


def above(value: Mapping[str, Any], bound: float) -> Row:
    """How far a mean lies above a bound, with its interval."""
    mean, low, high = (None if x is None else x - bound for x in (value["mean"], *value["ci"]))
    return {"mean": mean, "ci": [low, high]}


def complement(share: Mapping[str, Any] | None) -> Row | None:
    """The rest of a share with its interval: what is kept becomes what is taken away."""
    if share is None or share["mean"] is None:
        return None
    low, high = share["ci"]
    return {"mean": 1 - share["mean"], "ci": [None if high is None else 1 - high, None if low is None else 1 - low]}


def correlation(pearson: Mapping[str, Any] | None) -> Row | None:
    """Pearson's r as `prediction` has it, as a mean with its interval."""
    return None if pearson is None or pearson["r"] is None else {"mean": pearson["r"], "ci": pearson["ci"]}
