"""What a proof takes, and what fools it not: no effect, damage, another trait, another direction, little data."""

from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from personavec.judges.scoring import ScoredRow
from personavec.stats.intervals import Interval
from personavec.traits.independent_check import IndependentCheck
from personavec.verbs.extract.verdict import (
    SHOWN,
    Condition,
    conditions,
    elicited,
    judge_table,
    specificity,
    unanswerable,
    verdict,
)

PRAISE = IndependentCheck("phrases", "more", ("amen",), "share of replies with amen")
MEANS = {
    "suppressed": 10.0,
    "base": 30.0,
    "steered": 70.0,
    "random": 31.0,
    "matched": 32.0,
    "shuffled": 30.0,
    "garbled": 25.0,
}
SHARES = {"suppressed": 0.0, "base": 0.3, "steered": 0.8}


def arm(name: str, mean: float, share: float, questions: int, rng: np.random.Generator) -> list[ScoredRow]:
    """Replies with scores about a mean, some of which say amen."""
    spread = rng.normal(0, 5, (questions, 4))
    return [
        cast(
            ScoredRow,
            {
                "arm": name,
                "question_id": question,
                "question": f"Q{question}?",
                "sample": sample,
                "response": "Amen." if (question * 4 + sample) % 20 < 20 * share else "Well.",
                "trait": float(np.clip(mean + spread[question, sample], 0, 100)),
                "coherence": 95.0,
                "evidence": {},
            },
        )
        for question in range(questions)
        for sample in range(4)
    ]


def arms(questions: int = 20, shares: dict[str, float] = SHARES, **means: float) -> dict[str, list[ScoredRow]]:
    rng = np.random.default_rng(0)
    return {
        name: arm(name, mean, shares.get(name, shares["base"]), questions, rng)
        for name, mean in (MEANS | means).items()
    }


def judges(low: float = 0.8) -> Any:
    aucs = {name: Interval(low + 0.05, low, low + 0.1, 100) for name in ("opposite", "base", "others", "garbled")}
    return SimpleNamespace(weak=low < 0.7, trait=SimpleNamespace(aucs=aucs))


def failing(replies: dict[str, list[ScoredRow]], check: IndependentCheck | None = PRAISE, **judge: float) -> set[str]:
    return {
        each.name for each in conditions([], replies, judges(**judge), check, 75.0) if not (each.holds or each.moot)
    }


pytestmark = pytest.mark.usefixtures("unchecked")


def test_a_real_effect_is_proven() -> None:
    assert failing(arms()) == set()
    assert verdict(conditions([], arms(), judges(), PRAISE, 75.0), Interval(0.8, 0.7, 0.9, 200))[0] == "proven"


@pytest.mark.parametrize(
    ("means", "fails"),
    [
        ({"steered": 30.0}, {"raises", "random alike", "beyond random", "beyond matched", "beyond shuffled"}),
        ({"suppressed": 30.0}, {"lowers"}),
        ({"random": 60.0}, {"random alike"}),
        ({"random": 75.0}, {"random alike", "beyond random"}),
        ({"matched": 75.0}, {"beyond matched"}),
        ({"shuffled": 75.0}, {"beyond shuffled"}),
        ({"garbled": 75.0}, {"beyond garbled"}),
    ],
)
def test_each_control_can_spoil_it(means: dict[str, float], fails: set[str]) -> None:
    assert fails <= failing(arms(**means))
    assert failing(arms(**means)) - fails <= {"independent", "beyond garbled", "beyond damage"}


def test_damage_is_no_suppression_unless_the_check_says_so() -> None:
    """The words of the garbled replies score as low as the suppressed ones: then the independent check decides."""
    assert failing(arms(garbled=5.0)) == set()
    silent = SHARES | {"suppressed": 0.3}
    assert "beyond damage" in failing(arms(shares=silent, garbled=5.0))
    assert "beyond damage" in failing(arms(garbled=5.0), check=None)


def test_what_is_not_there_cannot_be_taken_away() -> None:
    """One reply in twenty shows the trait: no suppression could be told from damage."""
    rare = {"suppressed": 0.05, "base": 0.05, "steered": 0.9}
    replies = arms(shares=rare, garbled=5.0)
    listed = conditions([], replies, judges(), PRAISE, 75.0)
    assert {each.name for each in listed if each.moot} == {"beyond damage"}
    word, deciding = verdict(listed, Interval(0.8, 0.7, 0.9, 200))
    assert word == "proven" and "too little of the trait" in deciding
    often = SHARES | {"suppressed": 0.3}
    assert not any(each.moot for each in conditions([], arms(shares=often, garbled=5.0), judges(), PRAISE, 75.0))
    fewer = IndependentCheck("phrases", "less", ("amen",), "share of replies with amen")
    turned = {"suppressed": 0.95, "base": 0.95, "steered": 0.1}
    assert {each.name for each in conditions([], arms(shares=turned, garbled=5.0), judges(), fewer, 75.0) if each.moot}
    assert "independent" in failing(arms(shares=dict.fromkeys(SHARES, 0.05), garbled=5.0)), "adding still has to show"
    assert "lowers" in failing(arms(shares=rare, suppressed=60.0)), "subtracting brings it out"


def test_a_score_that_the_check_does_not_follow_is_no_proof() -> None:
    assert failing(arms(shares=dict.fromkeys(SHARES, 0.3))) == {"independent"}
    below = {"suppressed": 0.0, "base": 0.8, "steered": 0.8}
    assert failing(arms(shares=below)) == {"independent"}, "suppression alone does not make the model more of it"
    assert failing(arms(shares={"suppressed": 0.8, "base": 0.3, "steered": 0.0})) == {"independent"}


def test_a_weak_judge_broken_replies_or_few_questions_prove_nothing() -> None:
    assert failing(arms(), low=0.6) == {"judge"}
    broken = arms()
    for row in broken["steered"]:
        row["coherence"] = 60.0
    assert failing(broken) == {"coherent"}
    assert "questions" in failing(arms(questions=7))


def test_less_data_never_helps() -> None:
    """A random direction that does a third of the effect: fewer questions must not let it pass."""
    held = {
        questions: "random alike" not in failing(arms(questions=questions, random=45.0)) for questions in (4, 8, 20)
    }
    assert not any(held.values())


def test_the_four_verdicts() -> None:
    shown = Interval(0.8, 0.7, 0.9, 200)
    fine = Condition("a", "Fine", True)
    unsure, wrong = Condition("b", "Open", False), Condition("c", "Wrong", False, refuted=True)
    assert verdict([fine], shown) == ("proven", "Every condition holds")
    assert verdict([fine], None)[0] == "proven"
    assert verdict([fine, unsure], shown) == ("inconclusive", "Open")
    assert verdict([unsure, wrong, fine], shown) == ("not proven", "Wrong")
    assert verdict([fine], Interval(0.58, 0.5, 0.66, 200))[0] == SHOWN
    assert verdict([fine], Interval(float("nan"), float("nan"), float("nan"), 0))[0] == SHOWN


def test_an_open_condition_says_what_it_would_have_seen() -> None:
    told_of = {each.name: each.to_json() for each in conditions([], arms(), judges(), PRAISE, 75.0)}
    raises = told_of["raises"]
    width = (raises["effect"]["ci"][1] - raises["effect"]["ci"][0]) / 2
    assert raises["least"] == pytest.approx(1.43 * width, abs=0.01)


def rollouts(pos: float, neg: float) -> list[ScoredRow]:
    rng = np.random.default_rng(1)
    rows = []
    for side, share in (("pos", pos), ("neg", neg)):
        rows += [cast(ScoredRow, {**row, "side": side}) for row in arm("base", 50, share, 20, rng)]
    return rows


def test_told_to_and_not_doing_it_is_seen() -> None:
    assert elicited(PRAISE, rollouts(0.8, 0.0)).low > 0.55
    assert not elicited(PRAISE, rollouts(0.3, 0.3)).low > 0.55
    assert elicited(IndependentCheck("phrases", "less", ("amen",)), rollouts(0.8, 0.0)).high < 0.5


def test_a_check_for_another_language_decides_nothing() -> None:
    found = unanswerable(IndependentCheck("phrases", "more", ("слава",)), rollouts(0.8, 0.0))
    assert found is not None and found[0] == "inconclusive" and "another language" in found[1]
    assert unanswerable(PRAISE, rollouts(0.8, 0.0)) is None
    assert unanswerable(None, rollouts(0.8, 0.0)) is None


def test_a_model_that_refuses_does_not_show_the_trait() -> None:
    refusing = [cast(ScoredRow, {**row, "response": "I'm sorry, but I can't do that."}) for row in rollouts(0.8, 0.0)]
    found = unanswerable(None, refusing)
    assert found is not None and found[0] == SHOWN and "refuses" in found[1]
    half = [*refusing[::2], *rollouts(0.8, 0.0)[1::2]]
    assert unanswerable(None, half) is None


def read(name: str, where: dict[str, float], questions: int = 12, seed: int = 0, **row: Any) -> list[ScoredRow]:
    """Replies with a panel's readings."""
    rng = np.random.default_rng(seed)
    rows = arm(name, 100 * where.get("trait", 0.0), 0, questions, rng)
    for each in rows:
        readings = {key: where.get(key, 0.0) + rng.normal(0, 0.1) for key in ("trait", "opposite", "hostile", "kind")}
        each.update(cast(Any, {"evidence": readings, **row}))
    return rows


def known() -> list[ScoredRow]:
    return [
        *read("x", {"trait": 1.0}, seed=1, side="pos"),
        *read("x", {"opposite": 1.0}, seed=2, side="neg"),
        *read("base", {}, seed=3),
        *read("others", {"hostile": 1.0}, seed=4, writer="hostile"),
        *read("others", {"kind": 1.0}, seed=5, writer="kind"),
    ]


def test_a_direction_that_brings_another_persona_out_as_much_is_not_specific() -> None:
    base = read("base", {}, seed=6)
    own = specificity(known(), {"base": base, "steered": read("steered", {"trait": 0.9}, seed=7)})
    assert own is not None and own[1].low > 0
    both = specificity(known(), {"base": base, "steered": read("steered", {"trait": 0.5, "hostile": 0.9}, seed=8)})
    assert both is not None and both[0] == "hostile" and not both[1].low > 0
    assert specificity(arm("base", 5, 0, 3, np.random.default_rng(0)), {}) is None


@pytest.mark.parametrize(("questions", "heard"), [(1, "kind"), (2, "hostile")])
def test_a_persona_heard_at_one_question_is_left_out(questions: int, heard: str) -> None:
    """Few replies are left of some; a fit without their question would have none of them."""
    few = [row for row in known() if row.get("writer") != "hostile"]
    few += read("others", {"hostile": 1.0}, questions, seed=4, writer="hostile")
    steered = read("steered", {"trait": 0.5, "hostile": 0.9}, seed=8)
    found = specificity(few, {"base": read("base", {}, seed=6), "steered": steered})
    assert found is not None and found[0] == heard


def test_the_judge_table_has_every_writer() -> None:
    table = judge_table(known())
    assert set(table["scores"]) == {"trait", "opposite", "base", "hostile", "kind"}
    assert table["above"] == pytest.approx(
        table["scores"]["trait"]["mean"] - table["scores"][table["largest"]]["mean"], abs=0.02
    )
