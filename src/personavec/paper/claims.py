"""What the paper claims, what was measured here, and the verdict, which is computed."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np

from personavec.stats.intervals import CONFIDENCE
from personavec.stats.nulls import ALPHA
from personavec.verbs.extract.verdict import POWER

Verdict = Literal["same direction", "weaker", "not shown", "contradicted", "not measurable", "not measured"]
VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
COSINE = "cosine × the paper's sign, ± what 95% of random pairs reach"
"""Unit of claims whose figure has no interval."""
SPANS = {"r": 1.0, "rank correlation": 1.0, "AUC − 0.5": 0.5}
"""Units whose intervals are symmetric on Fisher's scale, which is half the logit of an AUC, and their largest value."""
LARGEST = SPANS | {"points": 100.0, "share of": 1.0}
"""The largest effects that there are, by the beginning of their unit."""
OWN, GRADED, CHATS, FACTS = "the model's own replies", "other instructions", "real chats", "invented facts"
"""Where the data of a claim come from; all but the first are from elsewhere than the vector."""

Row = dict[str, Any]
Figure = Mapping[str, Any]
"""`mean`, `ci` and, if it is over questions, `clusters`."""


@dataclass(frozen=True)
class Control:
    """What the same figure is where there is nothing to find."""

    what: str
    """In words."""
    reach: float | None = None
    """How far it reaches, either way, in the claim's unit; None where it is taken off the figure."""
    over: Figure | None = None
    """The figure less the control's, paired, in the claim's unit; this decides where it is given."""


@dataclass(frozen=True)
class Claim:
    """One figure next to the paper's. Above zero is the paper's direction."""

    where: str
    """Section, figure or appendix of the paper."""
    text: str
    """What is claimed; alike for all subjects, so that they stand in one table and are adjusted together."""
    subject: str
    """Trait or data set."""
    ours: Figure | None
    """None where it could not be measured."""
    unit: str = "points"
    controls: tuple[Control, ...] = ()
    """All have to be beaten; none is said."""
    published: tuple[float, ...] = ()
    """The paper's figures for Qwen2.5-7B and Llama-3.1-8B, or the first alone."""
    data: str = OWN
    """Where what is read or trained on comes from."""
    judge: str | None = ""
    """Who scores it; "" is the judge of the whole, None nobody."""
    ceiling: float | None = None
    """The highest figure that could have been seen."""
    measurable: bool = True
    """Whether that is known and lies high enough."""

    @property
    def known(self) -> bool:
        """Whether there is a figure with an interval."""
        return self.ours is not None and None not in (self.ours["mean"], *self.ours["ci"])

    @property
    def tests(self) -> list[tuple[str, float, float]]:
        """What the figure is held against, zero first: in words, the p-value, and the smallest effect that is seen.

        A figure below zero is held against what controls reach below it.
        """
        if not self.known or self.ours is None:
            return []
        sign = 1 if self.ours["mean"] > 0 else -1
        turned = _times(self.ours, sign)
        listed = [("zero", _p(turned, 0, self.unit), _least(turned, 0, self.unit))]
        for control in self.controls:
            over = control.over
            if over is not None and None in (over["mean"], *over["ci"]):
                listed.append((control.what, 1.0, np.inf))
            elif over is not None:
                least = _least(over, self.ours["mean"] - over["mean"], "")
                listed.append((control.what, _p(_times(over, sign), 0, ""), least))
            elif control.reach is not None:
                bar = abs(control.reach)
                listed.append((control.what, _p(turned, bar, self.unit), _least(turned, bar, self.unit)))
        return listed

    def judged(self, q: float | None, among: int) -> tuple[Verdict, str]:
        """The verdict, and why it is not another one.

        Args:
            q: The largest p of `tests`, adjusted over the subjects of this claim.
            among: How many those are.
        """
        if not self.measurable:
            return "not measurable", "the ceiling is not known" if self.ceiling is None else "the ceiling lies under it"
        if q is None or self.ours is None:
            return "not measured", ""
        if q > ALPHA:
            failed = [what for what, p, _ in self.tests if p > ALPHA]
            if not failed:
                return "not shown", f"one of {among}: q = {q:.2f}"
            return "not shown", "the interval holds zero" if failed[0] == "zero" else f"not beyond {', '.join(failed)}"
        if self.ours["mean"] < 0:
            return "contradicted", ""
        weaker = self.published and self.ours["ci"][1] < min(self.published)
        return ("weaker" if weaker else "same direction"), ""

    def to_json(self, q: float | None, among: int, judge: str) -> Row:
        """As it stands in the result."""
        verdict, why = self.judged(q, among)
        least = max((least for *_, least in self.tests), default=np.inf)
        largest = LARGEST.get(self.unit.partition(" the ")[0], np.inf)
        scored_by = judge if self.judge == "" else self.judge
        elsewhere = [f"data: {self.data}"] * (self.data != OWN)
        return {
            "where": self.where,
            "claim": self.text,
            "subject": self.subject,
            "unit": self.unit,
            "mean": self.ours["mean"] if self.ours else None,
            "ci": list(self.ours["ci"]) if self.ours else [None, None],
            "controls": [asdict(control) | {"reach": _reached(control, self.ours)} for control in self.controls],
            "p": round(max(p for _, p, _ in self.tests), 6) if self.tests else None,
            "q": None if q is None else round(q, 6),
            "least": round(float(least), 4) if least < largest else None,
            "ceiling": self.ceiling,
            "published": list(self.published),
            "elsewhere": elsewhere + [f"judge: {scored_by}"] * (scored_by not in (None, "panel")),
            "verdict": verdict,
            "why": why,
        }


def judged(claims: Sequence[Claim], judge: str) -> list[Row]:
    """All claims with their verdicts, adjusted over the subjects of each.

    Args:
        claims: Of one part.
        judge: Who scores replies; all but "panel" are from elsewhere than the vector.

    Source: Benjamini and Hochberg (1995), scipy.stats.false_discovery_control.
    """
    from scipy.stats import false_discovery_control

    ps = [max(p for _, p, _ in claim.tests) if claim.known and claim.measurable else None for claim in claims]
    rows = []
    for claim, p in zip(claims, ps, strict=True):
        same = [(claim.text, claim.unit) == (other.text, other.unit) for other in claims]
        group = [other for other, alike in zip(ps, same, strict=True) if alike and other is not None]
        q = None if p is None else float(false_discovery_control(group)[group.index(p)])
        rows.append(claim.to_json(q, len(group), judge))
    return rows


def tally(claims: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How often each verdict was reached."""
    return {verdict: sum(claim["verdict"] == verdict for claim in claims) for verdict in VERDICTS}


def above(value: Figure, bound: float) -> Row:
    """How far a mean lies above a bound, with its interval."""
    mean, low, high = (None if x is None else round(x - bound, 4) for x in (value["mean"], *value["ci"]))
    return {**value, "mean": mean, "ci": [low, high]}


def correlation(pearson: Mapping[str, Any] | None) -> Row | None:
    """Pearson's r as `prediction` has it, as a mean with its interval."""
    return None if pearson is None or pearson["r"] is None else {"mean": pearson["r"], "ci": pearson["ci"]}


def matched(null: Mapping[str, Any] | None) -> tuple[Control, ...]:
    """What covariance-matched directions reach: 95% of their |r|; nothing where they could not be drawn."""
    limit = (null or {}).get("percentiles", {}).get("95")
    return () if limit is None else (Control("matched random directions", limit),)


def _times(figure: Figure, sign: int) -> Row:
    low, high = sorted(sign * end for end in figure["ci"])
    return {**figure, "mean": sign * figure["mean"], "ci": [low, high]}


def _reached(control: Control, ours: Figure | None) -> float | None:
    """What a control comes to in the claim's unit."""
    over = control.over
    if over is None or ours is None or None in (ours["mean"], over["mean"]):
        return control.reach
    return round(float(ours["mean"] - over["mean"]), 4)


def _scaled(figure: Figure, unit: str) -> tuple[float, float, float]:
    """Largest value, mean and lower half of an interval, on the scale where both halves are alike.

    Linear without a largest value, or at it.
    """
    mean, low = figure["mean"], figure["ci"][0]
    span = SPANS.get(unit)
    if span is None or max(abs(mean), abs(low)) >= span:
        return np.inf, mean, mean - low
    return span, float(np.arctanh(mean / span)), float(np.arctanh(mean / span) - np.arctanh(low / span))


def _p(figure: Figure, bar: float, unit: str) -> float:
    """Two-sided p of a figure above a bar, read off its interval; 1 where it does not lie above it."""
    from scipy.stats import norm, t

    if figure["mean"] <= bar:
        return 1.0
    span, mean, half = _scaled(figure, unit)
    away = mean - (bar if np.isinf(span) else np.arctanh(bar / span))
    if half == 0:
        return 0.0
    law = t(figure["clusters"] - 1) if (figure.get("clusters") or 0) > 1 else norm
    return float(2 * law.sf(away / half * law.ppf((1 + CONFIDENCE) / 2)))


def _least(figure: Figure, bar: float, unit: str) -> float:
    """The smallest effect that such an interval shows to lie above a bar, and above zero, four times of five.

    Infinite where the interval has no width to tell.
    """
    span, _, half = _scaled(figure, unit)
    bar = max(0.0, bar)
    if half == 0:
        return np.inf
    if np.isinf(span) or bar >= span:
        return bar + POWER * half
    return float(span * np.tanh(np.arctanh(bar / span) + POWER * half))
