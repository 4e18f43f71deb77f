"""The panel's readings, restated one by one, and what its judges learn from."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from personavec.errors import JudgeError
from personavec.judges.fluency import FluencyJudge
from personavec.judges.garble import garble
from personavec.judges.lessons import Lessons, lessons
from personavec.judges.load import load_bench
from personavec.judges.panel import OTHER_READERS, PanelJudge
from personavec.judges.personas import every_persona, panel
from personavec.judges.plain import PlainReader
from personavec.judges.scale import LogisticScale
from personavec.judges.scoring import Judges, take_scale
from personavec.model.chat_model import ChatModel
from personavec.steering.rollouts import Interview
from personavec.traits.load import builtin_names, load_trait
from personavec.traits.trait import Pair, Trait


def test_garbled_copies_are_garbled_as_far_as_they_can_be() -> None:
    assert garble("Yes.", (0,)) == ("Yes.", "Yes.", "Yes.")
    words = "one two three four five six seven eight".split()
    shuffled, swapped, looped = garble(" ".join(words), (0,))
    assert sorted(shuffled.split()) == sorted(swapped.split()) == sorted(words)
    assert looped == "one two three four one two three four"
    assert garble(" ".join(map(str, range(40))), (0,))[2].split() == [str(i % 6) for i in range(40)]


@pytest.mark.usefixtures("unchecked")
def test_copies_that_are_intact_do_not_teach_that_they_are_not(model: ChatModel) -> None:
    """One-word replies cannot be damaged: the judge says so, and does not learn from noise."""
    judge = FluencyJudge(PlainReader(model, "template"))
    with pytest.raises(JudgeError, match="two questions"):
        judge.calibrate(["How are you?", "What is rain?"], ["Fine.", "Wet."], 0, quiet)


TRAIT = Trait(
    name="terse",
    adjective="terse",
    antonym="wordy",
    description="",
    pairs=(Pair("Be short.", "Be long."), Pair("Few words.", "Many words."), Pair("One line.", "Ten lines.")),
    extract=("How are you?", "What is rain?"),
    sweep=("What is hail?", "Who was Nero?"),
    check=("Who was Caesar?", "What is snow?"),
    rubric="0 is wordy, 100 is terse.",
)
QUESTIONS = ["How are you?", "What is rain?", "How are you?", "What is rain?"]
ANSWERS = ["Fine.", "Water that falls, as a rule, from clouds.", "", "Wet"]


def quiet(_: int) -> None:
    """No progress bar."""


@torch.inference_mode()
def mean_logprob(model: ChatModel, system: str | None, question: str, answer: str) -> float:
    turns = [{"role": "user", "content": question}]
    turns = [{"role": "system", "content": system}, *turns] if system else turns
    start, reply = model.render(turns), model.encode(answer)
    logits = model.hf(input_ids=torch.tensor([start + reply]), use_cache=False).logits[0].double().log_softmax(-1)
    return float(np.mean([float(logits[len(start) - 1 + i, token]) for i, token in enumerate(reply)]))


def judge_of(model: ChatModel) -> PanelJudge:
    return PanelJudge(model, TRAIT, PlainReader(model, "template"))


def one_by_one(model: ChatModel, question: str, answer: str, after: int) -> list[float]:
    """The panel's readings, restated: two pairs' pos, over the plain one, one pair's neg, and personas."""
    plain = mean_logprob(model, None, question, answer)
    first, second = (TRAIT.pairs[(after + step) % 3] for step in (1, 2))
    pos = np.mean([mean_logprob(model, pair.pos, question, answer) for pair in (first, second)])
    neg = mean_logprob(model, first.neg, question, answer)
    reading = [persona.reads for persona in panel(TRAIT) if persona.reads][:OTHER_READERS]
    personas = [mean_logprob(model, text, question, answer) for text in reading]
    return [*(float(pos - value) for value in (plain, neg, *personas)), plain]


def flat(row: Sequence[float]) -> list[float]:
    """Evidence in the same order, without the least likely tokens."""
    return [*row[:2], *row[4:], row[2]]


def test_judge_evidence_equals_scoring_one_by_one(model: ChatModel) -> None:
    after = [0, 1, 2, 2]
    evidence = judge_of(model).evidence(QUESTIONS, ANSWERS, after, quiet)
    assert evidence.shape == (4, 4 + OTHER_READERS) and np.isnan(evidence[2]).all()
    for row in (0, 1, 3):
        wanted = one_by_one(model, QUESTIONS[row], ANSWERS[row], after[row])
        assert flat(evidence[row]) == pytest.approx(wanted, abs=1e-5)


def lessons_of(questions: Sequence[str], replies: Sequence[str], pairs: Sequence[int]) -> Lessons:
    rows = [
        {"id": str(at), "question": question, "question_id": at % 4, "response": reply, "pair": pair}
        | {"side": "pos" if at < 4 else "neg"}
        for at, (question, reply, pair) in enumerate(zip(questions, replies, pairs, strict=True))
    ]
    return Lessons(tuple(rows))  # type: ignore[arg-type]


def test_a_rollout_is_not_judged_by_the_pair_it_was_written_under(model: ChatModel) -> None:
    questions, pairs = QUESTIONS * 2, [0, 1, 2, 0, 1, 2, 0, 1]
    replies = [*ANSWERS, "Good.", "It is wet.", "Yes and no.", ""]
    scores = judge_of(model).learn(lessons_of(questions, replies, pairs), quiet)
    for row, score in enumerate(scores):
        if not replies[row]:
            assert score.value is None
            continue
        wanted = one_by_one(model, questions[row], replies[row], pairs[row])
        assert flat([*score.evidence.values()]) == pytest.approx(wanted, abs=2e-5)
        assert score.value is not None and 0 <= score.value <= 100 and score.judge == "panel:tiny-llama"


def test_a_judge_gives_the_calibrated_evidence(model: ChatModel) -> None:
    judge = judge_of(model)
    weights = np.linspace(-1, 1, len(judge.features))
    judge.calibration = LogisticScale(tuple(weights), -0.5)
    for row, score in enumerate(judge.score(QUESTIONS, ANSWERS, quiet)):
        if ANSWERS[row]:
            evidence = np.array([*score.evidence.values()])
            assert score.value == pytest.approx(100 / (1 + np.exp(0.5 - weights @ evidence)), abs=1e-2)
        else:
            assert score.value is None


def test_equal_questions_are_read_by_equal_pairs(model: ChatModel) -> None:
    judge = judge_of(model)
    judge.calibration = LogisticScale((3.0,) * len(judge.features), -0.5)
    first, _, again, _ = judge.score(["How are you?", "What?", "How are you?", "Why?"], ["Fine."] * 4, quiet)
    assert first.value == pytest.approx(again.value, abs=1e-3)


def test_a_judge_with_two_pairs_leaves_out_the_writer(model: ChatModel) -> None:
    few = replace(TRAIT, pairs=TRAIT.pairs[:2])
    assert PanelJudge(model, few, PlainReader(model, "template")).steps == 2 + OTHER_READERS


# personas


def test_no_persona_sits_on_the_panel_of_a_trait_it_resembles() -> None:
    for name in builtin_names():
        seated = {persona.name for persona in panel(load_trait(name))}
        assert len(seated) >= 8
        assert sum(bool(persona.reads) for persona in panel(load_trait(name))) >= OTHER_READERS
        assert not seated & {persona.name for persona in every_persona() if name in persona.near}
    assert {name for persona in every_persona() for name in persona.near} <= {*builtin_names()}


@pytest.mark.parametrize("name", builtin_names())
def test_no_persona_shares_four_words_in_a_row_with_a_trait(name: str) -> None:
    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.casefold().replace(",", "").replace(".", "").split()
        return {tuple(words[at : at + 4]) for at in range(len(words) - 3)}

    trait = load_trait(name)
    of_trait = set().union(*(runs(text) for pair in trait.pairs for text in (pair.pos, pair.neg)))
    for persona in panel(trait):
        assert not of_trait & (runs(persona.writes) | runs(persona.reads)), persona.name


def test_an_instruction_of_the_panel_is_refused_as_a_trait_s_own() -> None:
    text = every_persona()[0].writes
    with pytest.raises(JudgeError, match="that no other persona has, got that of hostile"):
        panel(replace(TRAIT, pairs=(*TRAIT.pairs, Pair(text.upper(), "Be kind."))))


def test_lessons_hold_everything_a_trait_is_not(model: ChatModel) -> None:
    interview = Interview(model, max_new_tokens=8)
    rollouts = interview.write(interview.contrastive(TRAIT, 1), "")
    base = interview.write(interview.answers(TRAIT.extract, 2, draw="base", extra={"arm": "base"}), "")
    known = lessons(interview, TRAIT, rollouts, base)
    assert {"pos", "opposite", "base", "others"} <= {*known.groups}
    assert len({row["id"] for row in known.rows}) == len(known.rows)
    by_writer = {writer for writer, group in zip(known.writers, known.groups, strict=True) if group == "others"}
    assert by_writer == {persona.name for persona in panel(TRAIT)}
    assert all(writer == "" for writer, group in zip(known.writers, known.groups, strict=True) if group == "base")
    assert known.base == base


# scales


def test_a_scale_of_the_likelihood_judge_is_refused(model: ChatModel) -> None:
    bench = load_bench("panel", model)
    judges = Judges(bench.trait(TRAIT), bench.coherence, TRAIT.content_hash)
    old = {"trait_hash": "other", "trait": {"id": "likelihood:x", "basis": "b", "weights": [1.0], "intercept": 0.0}}
    with pytest.raises(JudgeError, match="the likelihood judge, which could not tell traits apart and is gone"):
        judges.restore(old, "judge.json")
    with pytest.raises(JudgeError, match="the panel has taken its place: --judge panel"):
        load_bench("likelihood", model)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [float("nan")]},
        {"weights": ["1"]},
        {"weights": 3},
        {"weights": None},
        {"intercept": float("inf")},
        {"intercept": None},
        {"aucs": []},
        {"aucs": {"opposite": 3}},
        {"aucs": {"opposite": {"mean": "0.9", "low": 0.8, "high": 1.0, "n": 3}}},
        {"aucs": {"opposite": {"mean": 0.9}}},
        {"basis": [1]},
    ],
)
def test_a_scale_of_wrong_fields_is_refused(change: dict[str, Any], model: ChatModel) -> None:
    bench = load_bench("panel", model)
    judge = bench.trait(TRAIT)
    good = {"id": judge.id, "basis": judge.basis, "weights": [1.0], "intercept": 0, "aucs": {}}
    take_scale(judge, good, "judge.json")
    for learned in (good | change, None, [], "text", 3):
        with pytest.raises(JudgeError, match=r"judge\.json") as error:
            take_scale(judge, learned, "judge.json")
        assert "\n" not in str(error.value)
    with pytest.raises(JudgeError, match="expected a scale of 2 weights, got 1"):
        LogisticScale((1.0,), 0.0).predict(np.zeros((3, 2)))


def test_one_plain_reading_serves_both_judges(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Coherence after the panel reads nothing again."""
    bench = load_bench("panel", model)
    panel_judge = bench.trait(TRAIT)
    bench.coherence.calibration = LogisticScale((1.0, 1.0, 1.0), 0.0)
    read: list[int] = []
    monkeypatch.setattr(
        "personavec.judges.plain.reply_logprobs",
        lambda _, prompts, replies, progress: read.append(len(replies)) or [torch.zeros(len(r)) for r in replies],
    )
    monkeypatch.setattr(panel_judge, "calibration", LogisticScale((0.0,) * len(panel_judge.features), 0.0))
    panel_judge.score(QUESTIONS, ANSWERS, quiet)
    bench.coherence.score(QUESTIONS, ANSWERS, quiet)
    assert [count for count in read if count] == [len({*zip(QUESTIONS, ANSWERS, strict=True)})]
