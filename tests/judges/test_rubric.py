"""Rubric judges: what they are asked, what their answers are worth, and a local model on letters."""

import itertools
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from support import tiny_chat

from personavec.errors import JudgeError, ModelError
from personavec.judges.hf import LocalReader
from personavec.judges.judge import Score
from personavec.judges.lessons import Lessons
from personavec.judges.load import load_bench
from personavec.judges.rubric import LETTERS, NUMBERS, REFUSED, Message, Rubric, RubricJudge, expectation, parse
from personavec.model.chat_model import ChatModel
from personavec.verbs.evaluate.evaluate import evaluate


def quiet(_: int) -> None:
    return


# what is asked


@pytest.mark.parametrize("text", ["Warm? {", "}{", "{0} {x!r}", "{{ question }}", "100% {of} it", "\\1 \\g<0>"])
def test_stray_braces_are_text(text: str) -> None:
    (asked,) = Rubric(text, refusable=False).messages("{answer}", "{question} {0}", NUMBERS)
    assert text in asked["content"] and "{question} {0}" in asked["content"]


def test_a_rubric_with_places_is_filled_in_one_go() -> None:
    rubric = Rubric("Q: {question} A: {answer} Give 0-100.", refusable=True)
    (asked,) = rubric.messages("why {answer}?", "because {question}", LETTERS)
    assert asked["content"].startswith("Q: why {answer}? A: because {question} Give 0-100.")
    assert LETTERS.instruction in asked["content"] and f"answer {REFUSED} instead" in asked["content"]


def test_a_rubric_with_one_place_is_refused() -> None:
    with pytest.raises(JudgeError, match=r"got \{question\} alone; remove it"):
        Rubric("Judge {question}.", refusable=True)


def test_letters_stand_for_even_steps() -> None:
    values = list(LETTERS.values.values())
    assert values[0] == 0 and values[-1] == 100 and len(values) == 20
    assert {round(b - a, 9) for a, b in itertools.pairwise(values)} == {round(100 / 19, 9)}
    assert LETTERS.values["J"] < 50 < LETTERS.values["K"]


# what answers are worth


def logs(**chances: float) -> list[tuple[str, float]]:
    return [(token, math.log(chance)) for token, chance in chances.items()]


def test_expected_value_is_over_the_labels_alone() -> None:
    value, why, mass = expectation([(" 20", math.log(0.3)), ("80", math.log(0.1)), ("The", math.log(0.6))], NUMBERS)
    assert value == pytest.approx((20 * 0.3 + 80 * 0.1) / 0.4) and why is None and mass == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("tokens", "why"),
    [(logs(X=0.5, A=0.4), "refused"), (logs(A=0.2, I=0.04, The=0.7), "unparseable"), (logs(The=1.0), "unparseable")],
)
def test_too_little_on_the_scale_is_no_score(tokens: list[tuple[str, float]], why: str) -> None:
    value, found, _ = expectation(tokens, LETTERS)
    assert value is None and found == why


@given(st.dictionaries(st.sampled_from(list(NUMBERS.values)), st.floats(0.01, 1), min_size=1))
def test_expected_value_lies_among_its_labels(chances: dict[str, float]) -> None:
    total = sum(chances.values())
    value, _, mass = expectation([(label, math.log(p / total)) for label, p in chances.items()], NUMBERS)
    assert value is not None and mass == pytest.approx(1)
    assert min(map(float, chances)) - 1e-6 <= value <= max(map(float, chances)) + 1e-6


@pytest.mark.parametrize(
    ("said", "value"),
    [
        ("85", 85), (" 85.\n", 85), ("Score: 85", 85), ("85/100", 85), ("85 out of 100", 85), ("85%", 85), ("7.5", 7.5),
        ("0", 0), ("100", 100), ("**85**", 85), ("<think>maybe 20, or 30</think>\n85", 85), ("85, yes: 85", 85),
    ],
)  # fmt: skip
def test_a_number_in_words_is_read(said: str, value: float) -> None:
    assert parse(said) == (value, None)


@pytest.mark.parametrize(
    "said", ["", "good", "101", "-5", "between 20 and 30", "7 out of 10", "1,000", "v2", "20-30", "1e3", "<think>85"]
)
def test_what_names_no_single_score_is_none(said: str) -> None:
    assert parse(said) == (None, "unparseable")


@pytest.mark.parametrize("said", ["X", "X.", "**X**"])
def test_a_refusal_is_told_from_nonsense(said: str) -> None:
    assert parse(said) == (None, "refused")


# AUC


class Fixed:
    """A reader that says what it is told to."""

    id, basis, scale = "fixed", "none", NUMBERS

    def __init__(self, values: list[float | None]) -> None:
        self.values = values

    def read(self, conversations: list[list[Message]], progress: object) -> list[Score]:
        assert len(conversations) == len(self.values)
        return [Score(value, self.id, why=None if value is not None else "refused") for value in self.values]


def known(questions: list[str], sides: list[str]) -> Lessons:
    rows = [
        {"id": str(at), "question": question, "question_id": at, "response": "x", "side": side, "pair": 0}
        for at, (question, side) in enumerate(zip(questions, sides, strict=True))
    ]
    return Lessons(tuple(rows))  # type: ignore[arg-type]


def test_rollouts_give_the_auc_and_what_was_dropped() -> None:
    judge = RubricJudge(Fixed([90.0, 80.0, None, 10.0, 85.0, 20.0]), Rubric("Warm?", refusable=True))
    scores = judge.learn(known(["a?", "b?", "c?"] * 2, ["pos", "pos", "pos", "neg", "neg", "neg"]), quiet)
    auc = judge.aucs["opposite"]
    assert auc.mean == pytest.approx(5 / 6) and auc.dropped == 1
    assert [score.why for score in scores].count("refused") == 1


def test_a_judge_that_scores_one_side_only_is_told() -> None:
    judge = RubricJudge(Fixed([90.0, None]), Rubric("Warm?", refusable=True))
    with pytest.raises(JudgeError, match=r"got 1 positive and 0 negative scores \(1 refused\)"):
        judge.learn(known(["a?", "b?"], ["pos", "neg"]), quiet)


# a local model


def test_a_local_judge_takes_the_whole_distribution() -> None:
    model = tiny_chat.build()
    reader = LocalReader(model)
    rubric = Rubric("Warm?", refusable=True)
    asked = [rubric.messages("Hi?", "x" * n, LETTERS) for n in (1, 5, 30)]
    reads: list[int] = []
    found = reader.read(asked, reads.append)
    assert sum(reads) == 3
    for messages, score in zip(asked, found, strict=True):
        with torch.inference_mode():
            logits = model.hf(input_ids=torch.tensor([model.render(messages)])).logits[0, -1]
        chances = logits.softmax(-1)
        mass = {label: float(chances[model.encode(label)[0]]) for label in LETTERS.values}
        assert score.evidence["mass"] == pytest.approx(sum(mass.values()), abs=1e-5)
        if score.value is not None:
            value = sum(LETTERS.values[label] * p for label, p in mass.items()) / sum(mass.values())
            assert score.value == pytest.approx(value, abs=1e-4)


def test_a_tokenizer_without_single_letters_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_chat.build()
    for name in ("encode", "reply_ids"):
        whole = getattr(model, name)
        monkeypatch.setattr(model, name, lambda text, whole=whole: (1, 2) if text.strip() == "Q" else whole(text))
    with pytest.raises(JudgeError, match="got several for Q; choose another judge model"):
        LocalReader(model)


# which judge


@pytest.mark.parametrize("spec", ["gpt-4", "openai", "openai:", "hf:", "hf", "panel:", "likelihood", "vibes:x", ""])
def test_an_unknown_judge_is_told(spec: str, model: ChatModel) -> None:
    with pytest.raises(JudgeError, match="expected the judge panel, panel:MODEL, hf:MODEL or openai:MODEL"):
        load_bench(spec, model)


def test_no_key_is_told_before_anything_is_written(
    model: ChatModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(ModelError, match="OPENAI_API_KEY"):
        evaluate(model, "optimistic", judge="openai:some", store=tmp_path / "run")
    assert not (tmp_path / "run").exists()
