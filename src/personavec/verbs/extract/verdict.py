"""The verdict: what the final check shows, condition by condition, and how sure that is."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.judges.lessons import GROUPS
from personavec.judges.panel import OPPOSITE, STRENGTH, TRAIT
from personavec.judges.scale import calibrate
from personavec.judges.scoring import (
    WEAK_AUC,
    Judges,
    ScoredRow,
    column,
    mean_difference,
    mean_score,
    paired_difference,
    question_ids,
    questions_asked,
)
from personavec.stats.intervals import FEWEST_CLUSTERS, Interval, auc_interval, clustered_mean, equivalent
from personavec.traits.independent_check import RELEVANT, IndependentCheck
from personavec.verbs.extract.confounds import REFUSAL

Row = dict[str, Any]
Arms = Mapping[str, Sequence[ScoredRow]]
Word = Literal["proven", "not proven", "inconclusive", "not shown by this model"]

SHOWN: Word = "not shown by this model"
EQUIVALENT = 1 / 3
"""Share of the steered effect that random directions may bring."""
RELEVANT_SCORE = 5.0
"""Effects below it, or below the check's `RELEVANT`, are none: an interval that stays under it refutes, a wider one
leaves the question open."""
SHOWN_AUC = 0.55
"""How well the independent check must tell replies told to show the trait from those told the opposite, at least."""
RARE = 0.15
"""Share of unsteered replies that show the trait to the check, by its whole interval, below which there is too little
of it to be seen going away."""
REFUSED = 0.9
"""Share of refusals among the replies told to show the trait from which the model is said to refuse it."""
SIDES = {"pos": TRAIT, "neg": OPPOSITE}
POWER = 1.43
"""Smallest effect that is seen 4 times of 5, in half widths of a 95% interval: (1.96 + 0.84) / 1.96."""


@dataclass(frozen=True)
class Condition:
    """One thing that has to be so."""

    name: str
    text: str
    """With its figures."""
    holds: bool
    refuted: bool = False
    """Whether more data could hardly change it: it does not hold, and not for want of precision."""
    effect: Interval | None = None
    """The contrast behind it, where there is one."""
    moot: bool = False
    """Whether it could not be seen even if it were so: then it speaks neither for the vector nor against it."""

    def to_json(self) -> Row:
        """As it stands in result files."""
        least = {} if self.effect is None else {"effect": self.effect.to_json(), "least": smallest(self.effect)}
        return {
            "name": self.name,
            "text": self.text,
            "holds": self.holds,
            "refuted": self.refuted,
            "moot": self.moot,
        } | least


def smallest(effect: Interval) -> float | None:
    """The smallest effect that such an interval would have shown to lie above 0, four times of five."""
    width = (effect.high - effect.low) / 2 * POWER
    return None if np.isnan(width) else round(width, 2)


def trait_contrast(arms: Arms, first: str, second: str) -> Interval:
    """Mean trait score of one arm minus another's, by their names; paired by question, t over questions."""
    return mean_difference(arms[first], arms[second], "trait")


def checked_contrast(check: IndependentCheck, arms: Arms, first: str, second: str) -> Interval:
    """The same of the independent check, in the direction of the trait."""
    return paired_difference(arms[first], arms[second], _counted(check, arms[first]), _counted(check, arms[second]))


def _counted(check: IndependentCheck, rows: Sequence[ScoredRow]) -> Float[ndarray, " row"]:
    """What the check counts, more of it meaning more of the trait."""
    return check.sign * np.array(check.values([row["response"] for row in rows]), dtype=float)


def _shown(check: IndependentCheck, rows: Sequence[ScoredRow]) -> Float[ndarray, " row"]:
    """1 for every reply that shows the trait to a check of phrases, 0 for the others."""
    counted = _counted(check, rows)
    return counted if check.sign > 0 else 1 + counted


def checked_mean(check: IndependentCheck, rows: Sequence[ScoredRow]) -> Interval:
    """Mean of what the check counts, not turned into the direction of the trait."""
    return clustered_mean(check.sign * _counted(check, rows), question_ids(rows))


def judge_table(known: Sequence[ScoredRow]) -> Row:
    """The trait judge on replies of which it is known who wrote them, by writer, and its own less the largest other's.

    Scores are those of fits that never saw the question and the instruction.
    """
    groups: dict[str, list[ScoredRow]] = {}
    for row in known:
        groups.setdefault(_writer(row), []).append(row)
    means = {
        name: clustered_mean(
            column(rows, "trait"),
            questions_asked(rows),
        )
        for name, rows in groups.items()
    }
    others = {name: mean.mean for name, mean in means.items() if name != TRAIT and not np.isnan(mean.mean)}
    largest = max(others, key=lambda name: others[name]) if others else None
    above = None if largest is None else round(means[TRAIT].mean - others[largest], 2)
    return {"scores": {name: mean.to_json() for name, mean in means.items()}, "largest": largest, "above": above}


def elicited(check: IndependentCheck, rollouts: Sequence[ScoredRow]) -> Interval:
    """How well the check tells replies told to show the trait from those told the opposite."""
    values = _counted(check, rollouts)
    known = ~np.isnan(values)
    is_pos = np.array([row["side"] == "pos" for row in rollouts])
    questions = question_ids(rollouts)
    return auc_interval(values[known], is_pos[known], questions[known])


def specificity(known: Sequence[ScoredRow], arms: Arms) -> tuple[str, Interval] | None:
    """How much more steering raises the trait's score than that of the other persona whose score it raises most.

    Every persona gets a judge like the trait's, fitted to tell its replies from all others that are known, from the
    same readings. One that cannot, by fits that did not see the question, takes anything unusual for its persona and is
    not heard, unless none can; nor is one of whom replies to a single question are left. None where no persona is left,
    or the trait's judge makes no such readings.

    Args:
        known: Replies of which it is known who wrote them.
        arms: Replies of the check.
    """
    read = [row for row in known if TRAIT in row["evidence"]]
    writers = np.array([_writer(row) for row in read])
    questions = questions_asked(read)
    # a judge of replies to one question alone would have seen it, whatever was held out
    asked = {row["writer"]: len({*questions[writers == row["writer"]].tolist()}) for row in read if "writer" in row}
    personas = sorted(name for name, count in asked.items() if count > 1)
    if not personas or not {TRAIT, "base"} <= {*writers.tolist()}:
        return None
    features = tuple(read[0]["evidence"])

    def evidence(rows: Sequence[ScoredRow]) -> Float[ndarray, "row feature"]:
        return np.array([[row["evidence"].get(name, np.nan) for name in features] for row in rows])

    lessons, steered, base = evidence(read), evidence(arms["steered"]), evidence(arms["base"])
    raised: dict[str, Interval] = {}
    separates: dict[str, float] = {}
    for persona in personas:
        is_persona = writers == persona
        scale, held_out = calibrate(lessons, is_persona, questions, groups=writers.tolist(), strength=STRENGTH)
        separates[persona] = auc_interval(held_out, is_persona, questions).mean
        over = [
            column(arms[name], "trait") - 100 * scale.predict(values)
            for name, values in (("steered", steered), ("base", base))
        ]
        raised[persona] = paired_difference(arms["steered"], arms["base"], *over)
    heard = [persona for persona in personas if separates[persona] >= WEAK_AUC] or personas
    closest = min(heard, key=lambda persona: raised[persona].mean)
    return closest, raised[closest]


def _writer(row: ScoredRow) -> str:
    """Who wrote a reply that judges learn from."""
    side = row.get("side")
    return row.get("writer", row.get("arm", "")) if side is None else SIDES[side]


def conditions(
    known: Sequence[ScoredRow], arms: Arms, judges: Judges, check: IndependentCheck | None, floor: float
) -> list[Condition]:
    """Everything that a proof asks for."""
    effect = trait_contrast(arms, "steered", "base")
    suppression = trait_contrast(arms, "base", "suppressed")
    down = [_above("lowers", "Subtracting the vector lowers it", suppression), _more_than_damage(arms, check)]
    if check is not None and check.kind == "phrases":
        shown = clustered_mean(_shown(check, arms["base"]), question_ids(arms["base"]))
        if shown.high < RARE:
            down = [_moot(each) for each in down]
    listed = [
        _above("raises", "Steering raises the trait score", effect),
        *down,
        _alike(trait_contrast(arms, "random", "base"), effect.mean * EQUIVALENT),
        *(
            _above(f"beyond {arm}", f"Steering does more than {what}", trait_contrast(arms, "steered", arm))
            for arm, what in {
                "random": "random directions",
                "matched": "random directions like the model's own activations",
                "shuffled": "the vector of shuffled labels",
                "garbled": "damaging the words",
            }.items()
        ),
    ]
    if (specific := specificity(known, arms)) is not None:
        persona, gain = specific
        listed.append(_above("specific", f"It raises the trait more than any other persona (next: {persona})", gain))
    if check is not None:
        moved = checked_contrast(check, arms, "steered", "base")
        listed.append(_above("independent", f"The independent check rises as well ({check.unit})", moved, check))
    questions = len({row["question_id"] for row in arms["base"]})
    enough = questions >= FEWEST_CLUSTERS
    return [
        *listed,
        _coherent(arms, floor),
        _separates(judges),
        Condition("questions", f"At least {FEWEST_CLUSTERS} questions were asked: {questions}", enough),
    ]


def unanswerable(check: IndependentCheck | None, rollouts: Sequence[ScoredRow]) -> tuple[Word, str] | None:
    """A verdict and its reason where the check does not fit the replies, or the model refuses to show the trait."""
    told = [row["response"] for row in rollouts if row["side"] == "pos"]
    refused = sum(bool(REFUSAL.match(text)) for text in told)
    if refused >= REFUSED * len(told):
        return SHOWN, f"Told to show the trait, the model refuses: so {refused} of {len(told)} replies begin"
    if check is not None:
        counted = {value for value in _counted(check, rollouts).tolist() if value == value}
        if len(counted) == 1:
            same = f"the same in all {len(rollouts)} rollouts ({counted.pop():g}; {check.unit})"
            advice = "it may be for another language; give the trait another check, or none"
            return "inconclusive", f"The independent check counts {same}: {advice}"
    return None


def verdict(listed: Sequence[Condition], shown: Interval | None) -> tuple[Word, str]:
    """The verdict, and the condition that decides it.

    Args:
        listed: The conditions.
        shown: What `elicited` gives; None without an independent check.
    """
    failing = [condition for condition in listed if not (condition.holds or condition.moot)]
    too_few = [condition for condition in failing if condition.name == "questions"]
    if too_few:  # neither a proof nor a refutation
        return "inconclusive", too_few[0].text
    if shown is not None and not shown.low > SHOWN_AUC:
        text = f"Told to show the trait or the opposite, the model hardly differs to the check: AUC {_ci(shown, 2)}"
        return SHOWN, text
    refuted = [condition for condition in failing if condition.refuted]
    if refuted:
        return "not proven", refuted[0].text
    if failing:
        return "inconclusive", failing[0].text
    if any(condition.moot for condition in listed):
        return (
            "proven",
            "Adding it brings the trait out; there is too little of the trait to see subtracting take it away",
        )
    return "proven", "Every condition holds"


def _above(name: str, text: str, effect: Interval, check: IndependentCheck | None = None) -> Condition:
    relevant, digits = (RELEVANT_SCORE, 1) if check is None else (RELEVANT[check.kind], 2)
    refuted = effect.high < relevant and not effect.low > 0
    return Condition(name, f"{text}: {_ci(effect, digits)}", effect.low > 0, refuted, effect)


def _moot(condition: Condition) -> Condition:
    """A condition on suppression where there is nothing to suppress; one that goes the other way stays as it is."""
    if condition.holds or condition.effect is None or condition.effect.high < 0:
        return condition
    return replace(condition, moot=True, text=f"{condition.text}; unsteered replies hardly show it")


def _alike(away: Interval, margin: float) -> Condition:
    """Random directions leave the score where it is: within a margin, by the whole interval."""
    holds = equivalent(away, margin)
    refuted = away.low > margin or away.high < -margin
    text = f"Random directions hardly move it: {_ci(away)}, at most {max(margin, 0):.1f} either way"
    return Condition("random alike", text, holds, refuted, away)


def _more_than_damage(arms: Arms, check: IndependentCheck | None) -> Condition:
    """A lower score is no suppression where damaged words have it as well; then the independent check decides."""
    below = trait_contrast(arms, "garbled", "suppressed")
    if below.low > 0 or check is None:
        return _above("beyond damage", "Subtracting does more than damage, garbled − suppressed", below)
    moved = checked_contrast(check, arms, "base", "suppressed")
    text = f"Subtracting does more than damage: garbled − suppressed {_ci(below)}, or base − suppressed to the check"
    return _above("beyond damage", text, moved, check)


def _coherent(arms: Arms, floor: float) -> Condition:
    up, down = (mean_score(arms[name], "coherence") for name in ("steered", "suppressed"))
    holds = up.mean >= floor and down.mean >= floor
    text = f"Replies stay coherent: {_ci(up)} steered, {_ci(down)} suppressed, floor {floor:g}"
    return Condition("coherent", text, holds, not holds)


def _separates(judges: Judges) -> Condition:
    """The judge tells the trait from all that it could mistake for it."""
    aucs = judges.trait.aucs
    figures = ", ".join(f"{GROUPS[name]} {_ci(auc, 2)}" for name, auc in aucs.items()) or "not measured"
    refuted = any(auc.high < WEAK_AUC for auc in aucs.values())
    text = f"The judge tells the trait from what it could mistake for it, AUC against: {figures}"
    return Condition("judge", text, bool(aucs) and not judges.weak, refuted)


def _ci(value: Interval, digits: int = 1) -> str:
    return f"{value.mean:.{digits}f} [{value.low:.{digits}f}, {value.high:.{digits}f}]"
