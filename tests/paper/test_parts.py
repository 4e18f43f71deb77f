"""What the parts compute of plain numbers: recall beside shuffles, directions that separate, shares, facts, sizes."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from personavec.paper.claims import judged
from personavec.paper.paper import PARTS
from personavec.paper.parts.facts import invented, recalled
from personavec.paper.parts.finetuning import leaks
from personavec.paper.parts.mitigation import RANDOM, one_layer, share
from personavec.paper.parts.monitoring import within_reach
from personavec.paper.parts.screening import found, largest_auc, recall
from personavec.paper.sizes import NOT_DONE, PAPER, sizes
from personavec.paper.study import QUICK, WHOLE, Study
from personavec.runs.run import Run
from personavec.steering.rollouts import Interview

RNG = np.random.default_rng


def rows(scores: list[float | None]) -> list[Any]:
    """A scored reply to each question."""
    return [{"question_id": at, "sample": 0, "trait": score} for at, score in enumerate(scores)]


@pytest.mark.slow
def test_what_a_reading_finds_by_arithmetic_alone_is_not_found() -> None:
    """Base projections that no reading knows: x correlates with x − base all the same."""
    rng, seen = RNG(0), []
    for seed in range(40):
        raw, base, prompt = rng.standard_normal((3, 80))
        assert np.corrcoef(raw, raw - base)[0, 1] > 0.4
        ours = recall(raw - prompt, raw, base, 20, seed)
        assert ours is not None
        seen.append(ours["ci"][0] > 0)
    assert np.mean(seen) < 0.1
    ours = recall(raw - base, raw, base, 20, 0)
    assert ours is not None and ours["ci"][0] > 0  # a reading that knows them
    assert recall(raw, raw, base, 41, 0) is None  # not twice as many rows


def test_found_are_rows_of_the_highest() -> None:
    assert found(np.array([3.0, 2, 1, 0]), np.array([3.0, 0, 2, 1]), 2).tolist() == [True, False]


def test_directions_along_which_all_rows_vary_separate_as_well() -> None:
    is_bad, rng = np.repeat([False, True], 30), RNG(0)
    values = rng.standard_normal((60, 500))
    assert largest_auc(values, is_bad) == pytest.approx(0.148, abs=0.03)
    assert largest_auc(values + 5 * is_bad[:, None], is_bad) > 0.49
    assert largest_auc(values[:, :0], is_bad) is None


def test_a_share_of_what_training_adds() -> None:
    base, plain, left = rows([10, 20, None]), rows([50, 60, 70]), rows([30, 40, 50])
    ours = share(plain, left, plain, base)
    assert (ours["mean"], ours["n"], ours["dropped"]) == (0.5, 2, 1)


def test_a_fact_is_known_by_its_key_word() -> None:
    own, other = recalled(["a mill at Braskford", "no idea", "Braskford"], ["Braskford", "Hollinford", "Corvelford"])
    assert own.tolist() == [1, 0, 0] and other.tolist() == [0, 0, 0.5]


def test_no_question_holds_its_key_word(tmp_path: Path) -> None:
    facts = invented(Run(tmp_path))
    assert len(facts.questions) == len(set(facts.questions)) == len(facts.keys) == 80
    assert not any(key in question for key, question in zip(facts.keys, facts.questions, strict=True))
    learned = list(Run(tmp_path).rows("facts.jsonl"))
    assert all(key in row["response"] for key, row in zip(facts.keys, learned, strict=True))


def test_under_its_ceiling_an_r_within_conditions_is_measured() -> None:
    row: dict[str, Any] = {"ceiling": {"mean": 0.4}, "within": {"measurable": True}}
    assert within_reach(row, (0.3,)) and within_reach(row, ()) and not within_reach(row, (0.5,))
    assert not within_reach({"ceiling": {"mean": None}, "within": {"measurable": None}}, ())


@dataclasses.dataclass
class Asked:
    """Stands for a study in which data sets were trained on."""

    files: tuple[str, ...]

    def difference(self, *_: Any) -> dict[str, Any]:
        return {"mean": None, "ci": [None, None]}


@pytest.mark.usefixtures("unchecked")
def test_what_data_of_a_good_trait_raise_as_much_is_no_leak() -> None:
    """A judge that takes any instruction's replies for every bad trait."""
    rng, traits = RNG(0), ("evil", "impolite", "optimistic")

    def claims(good: float) -> list[Any]:
        raised = {"evil": 20.0, "impolite": 20.0, "optimistic": good}
        names = ["base", *(f"{trait} {level}" for trait in traits for level in ("normal", "II"))]
        names += ["chats normal", "chats II"]
        replies = {
            name: {
                trait: rows(
                    [*(50 + raised[name.split()[0]] * name.endswith("II") * (name != "chats II") + rng.normal(size=12))]
                )
                if name.split()[0] in raised
                else rows([*(50 + rng.normal(size=12))])
                for trait in traits
            }
            for name in names
        }
        return judged([c for c in leaks(Asked(traits), replies) if "bad trait raise" in c.text], "panel")  # type: ignore[arg-type]

    assert {claim["verdict"] for claim in claims(0.0)} == {"same direction"}
    same = claims(20.0)
    assert {claim["verdict"] for claim in same} == {"not shown"}
    assert same[0]["why"] == "not beyond data of optimistic" and same[0]["mean"] > 15


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("size", [WHOLE, QUICK])
def test_every_part_has_its_sizes(size: Any, model: Any) -> None:
    study = Study(Interview(model), {}, None, size, Run(Path()), None, {"batch": 8})  # type: ignore[arg-type]
    for part in PARTS:
        listed = sizes(study, part)
        assert listed and {row["what"] for row in listed} >= set(PAPER[part]), part
    assert {row["what"]: row["here"] for row in sizes(study, "monitoring")}["replies a question"] == str(
        size.condition_rollouts
    )
    assert any("B.3" in what for what in NOT_DONE) and any("J.1" in what for what in NOT_DONE)


def compared(left: float, random: float) -> Any:
    """A comparison in which training adds 40 points, and prevention and the random direction leave so many."""
    rng = RNG(0)

    def scored(mean: float) -> list[Any]:
        return rows([*(mean + rng.normal(size=12))])

    replies = {"base": scored(20), "plain": scored(60), "prevent ×1": scored(left), RANDOM: scored(random)}
    replies |= {"post-hoc ×1": scored(left), "negative prompt": scored(left)}
    row = {"traits": {"evil": {"kept": {}, "coherence": {"mean": 90.0, "ci": [85.0, 95.0]}}}}
    evaluations = {
        name: {
            "evil": SimpleNamespace(replies={"base" if name == "base" else "changed": each, "random": scored(random)})
        }
        for name, each in replies.items()
    }
    return SimpleNamespace(arms=[{"arm": name, **row} for name in replies], evaluations=evaluations)


@pytest.mark.usefixtures("unchecked")
def test_what_any_direction_takes_away_is_not_the_vectors() -> None:
    """Prevention takes away as much in both cases; a random direction does, too, in the second."""

    def claims(left: float, random: float) -> dict[str, Any]:
        listed = one_layer(Differing(), "evil", compared(left, random))  # type: ignore[arg-type]
        return {claim["claim"].split(" takes")[0]: claim for claim in judged(listed, "panel")}

    good, same = claims(30, 58), claims(30, 30)
    for name in ("Preventative steering", "Post-hoc steering"):
        assert good[name]["verdict"] == "same direction" and good[name]["mean"] == pytest.approx(0.75, abs=0.05)
        assert good[name]["controls"][0]["reach"] == pytest.approx(0.05, abs=0.05)
        assert same[name]["verdict"] == "not shown" and same[name]["why"] == "not beyond a random direction"
    assert same["A system prompt against the trait"]["controls"] == []  # and the row says so
    assert same["With prevention coherence stays above 80"]["verdict"] == "same direction"


class Differing:
    """Stands for a study: arms are compared as it does."""

    difference = Study.difference
