"""The formulas, restated in a few lines on activations read the plain way, against what the project computes.

Source: Persona Vectors (arXiv 2507.21509); sections are named at each test.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import tiny
from support.tiny import prompt
from torch import Tensor

from personavec.errors import JudgeError
from personavec.judges.fluency import FluencyJudge, garble
from personavec.judges.lessons import Lessons
from personavec.judges.panel import PanelJudge
from personavec.judges.personas import panel
from personavec.judges.plain import PlainReader
from personavec.judges.scale import LogisticScale
from personavec.judges.scoring import keep
from personavec.model import logits as logprobs
from personavec.model.activations import POSITIONS, activation_norms, activations, weights
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.model.logits import Ids, reply_logprobs
from personavec.steering.projection import projection
from personavec.steering.vector import Card, PersonaVector, increments
from personavec.traits.trait import Pair, Trait
from personavec.verbs.extract.difference import difference_in_means

Row = dict[str, Any]
SIZES = [(5, 3), (12, 9), (7, 1), (12, 6), (1, 4), (9, 9), (5, 11), (6, 2)]
BELOW = tiny.N_LAYERS - 1
"""Layers whose output the library's hidden states show as it is; the last of them is normed."""


def rows() -> list[Row]:
    """Ragged conversations, half of them of each side, two for each question."""
    return [
        {
            "prompt_ids": list(prompt(p, 20 + i)),
            "response_ids": list(prompt(r, 40 + i)),
            "side": ("pos", "neg")[i % 2],
            "question_id": i // 2,
        }
        for i, (p, r) in enumerate(SIZES)
    ]


@torch.inference_mode()
def states(model: ChatModel, ids: Sequence[int]) -> Tensor:
    """Every token's activations [layer, seq, d_model] of the layers below the last, one conversation at a time."""
    out = model.hf(input_ids=torch.tensor([list(ids)]), output_hidden_states=True, use_cache=False)
    return torch.stack([state[0] for state in out.hidden_states[1:-1]])


def average(model: ChatModel, row: Row, position: str) -> Tensor:
    """One conversation's activation [layer, d_model] as the paper defines it."""
    cut, found = len(row["prompt_ids"]), states(model, [*row["prompt_ids"], *row["response_ids"]])
    spans = {"response avg": found[:, cut:], "prompt avg": found[:, :cut], "prompt last": found[:, cut - 1 : cut]}
    return spans[position].mean(dim=1)


# activations and vectors


@pytest.mark.parametrize("family", ["llama", "gemma3", "peft"])
def test_averages_of_three_kinds_of_position(tiny_model: Any, family: str) -> None:
    """Sections 2.2 and A.3: response avg, prompt avg, prompt last."""
    model = tiny_model(family)
    conversations = rows()
    seen = []
    for batch, read in activations(model, conversations, POSITIONS):
        seen += batch
        for index, own in zip(batch, read, strict=True):
            for slot, position in enumerate(POSITIONS):
                wanted = average(model, conversations[index], position)
                torch.testing.assert_close(own[slot, :BELOW], wanted, atol=1e-4, rtol=1e-4)
    assert sorted(seen) == list(range(len(conversations)))


def test_the_vector_is_the_difference_of_means(model: ChatModel) -> None:
    """Section 2.2: mean over kept positive minus mean over kept negative replies, not normalised."""
    conversations = rows()[:7]  # four positive, three negative
    card = Card("t", model.identity, "response avg")
    found = difference_in_means(model, conversations, card, seed=0)
    for position in POSITIONS:
        means = {
            side: torch.stack([average(model, r, position) for r in conversations if r["side"] == side]).mean(0)
            for side in ("pos", "neg")
        }
        own = found[position]
        torch.testing.assert_close(own.direction[:BELOW], means["pos"] - means["neg"], atol=1e-4, rtol=1e-4)
        assert own.card.position == position and own.direction.shape == (model.n_layers, model.identity.d_model)


def test_reliability_is_the_cosine_of_two_halves(model: ChatModel) -> None:
    conversations = rows()
    card = Card("t", model.identity, "response avg")
    halves = []
    for parity in (0, 1):
        half = [row for row in conversations if row["question_id"] % 2 == parity]
        halves.append(difference_in_means(model, half, card, 0)["response avg"].direction)
    found = difference_in_means(model, conversations, card, 0)["response avg"].card.reliability
    torch.testing.assert_close(torch.tensor(found), torch.cosine_similarity(*halves), atol=1e-5, rtol=1e-5)


def test_shuffled_labels_split_the_same_replies_otherwise(model: ChatModel) -> None:
    conversations = rows()
    card = Card("t", model.identity, "response avg")
    found = difference_in_means(model, conversations, card, 0)
    assert found["shuffled"] != found["response avg"]
    averages = torch.stack([average(model, row, "response avg") for row in conversations])
    relabelled = np.random.default_rng(0).permutation([row["side"] == "pos" for row in conversations])
    wanted = averages[relabelled].mean(0) - averages[~relabelled].mean(0)
    torch.testing.assert_close(found["shuffled"].direction[:BELOW], wanted, atol=1e-4, rtol=1e-4)


def test_activation_norms_average_over_reply_tokens(model: ChatModel) -> None:
    """The unit of dose: every token weighs the same, whatever the length of its reply."""
    conversations = rows()
    norms = [
        states(model, [*row["prompt_ids"], *row["response_ids"]])[:, len(row["prompt_ids"]) :].norm(dim=-1)
        for row in conversations
    ]
    wanted = torch.cat(norms, dim=1).mean(dim=1)
    found = activation_norms(model, conversations)
    assert len(found) == model.n_layers
    torch.testing.assert_close(torch.tensor(found[:BELOW]), wanted, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("side", "trait", "coherence", "kept"),
    [
        ("pos", 50.1, 50, True),
        ("pos", 50, 90, False),
        ("neg", 49.9, 50, True),
        ("neg", 50, 90, False),
        ("pos", 90, 49.9, False),
        ("pos", None, 90, False),
        ("neg", None, 90, False),
        ("neg", 10, None, False),
        ("neg", 0, 100, True),
        ("pos", 0, 100, False),
    ],
)
def test_what_is_kept(side: str, trait: float | None, coherence: float | None, kept: bool) -> None:
    """Section 2.2, each side on its own: above 50 where the trait was asked for, below 50 where it was not."""
    assert keep({"side": side, "trait": trait, "coherence": coherence}) is kept


# reading and steering along a vector


def test_increments_are_differences_of_neighbouring_layers(model: ChatModel) -> None:
    """Appendix J.3."""
    v = tiny.vector(model).direction
    wanted = torch.stack([v[0], *(v[layer] - v[layer - 1] for layer in range(1, len(v)))])
    torch.testing.assert_close(increments(v), wanted, atol=0, rtol=0)


def test_projection(model: ChatModel) -> None:
    """Section 3.3: a·v/‖v‖, in numpy and float64."""
    a = torch.randn((5, 7, 32), generator=torch.Generator().manual_seed(0))
    v = tiny.vector(model).direction[2]
    x, y = a.double().numpy(), v.double().numpy()
    np.testing.assert_allclose(projection(a, v).numpy(), x @ y / np.sqrt(y @ y), atol=1e-5)


def test_monitoring_reads_the_last_prompt_token(model: ChatModel) -> None:
    """Section 3.3: the projection before any token is written."""
    v = tiny.vector(model)
    conversations = rows()
    for batch, read in activations(model, conversations, ["prompt last"], layers=[1]):
        for index, own in zip(batch, projection(read[:, 0, 0], v.direction[1]), strict=True):
            last = states(model, conversations[index]["prompt_ids"])[1, -1]
            torch.testing.assert_close(own, last @ v.direction[1] / v.direction[1].norm(), atol=1e-4, rtol=1e-4)


def test_finetuning_shift(tiny_model: Any) -> None:
    """Section 4.2: (mean over prompts of a_tuned − mean of a_base)·v̂, a at the last prompt token."""
    base, tuned = tiny_model("llama"), tiny_model("peft")
    prompts = [prompt(length, 60) for length in (4, 11, 7, 1)]
    v = tiny.vector(base)
    last = torch.zeros(len(prompts), 1, max(map(len, prompts)))
    for own, ids in zip(last, prompts, strict=True):
        own[0, len(ids) - 1] = 1
    found = [projection(capture(m, prompts, last, [2])[:, 0, 0].mean(0), v.direction[2]) for m in (base, tuned)]
    means = [torch.stack([states(m, ids)[2, -1] for ids in prompts]).mean(0) for m in (base, tuned)]
    wanted = (means[1] - means[0]) @ v.unit(2)
    torch.testing.assert_close(found[1] - found[0], wanted, atol=1e-4, rtol=1e-4)
    assert abs(float(wanted)) > 1e-2


def test_projection_difference(model: ChatModel) -> None:
    """Section 6.1: mean over samples of [a(x, y) − a(x, y')]·v̂, a = response avg."""
    v = tiny.vector(model)
    data = rows()
    own = [row | {"response_ids": list(prompt(3 + i, 80))} for i, row in enumerate(data)]
    sides = []
    for side in (data, own):
        found = torch.zeros(len(side))
        for batch, read in activations(model, side, layers=[2]):
            found[batch] = projection(read[:, 0, 0], v.direction[2])
        sides.append(found)
    wanted = torch.stack(
        [
            (average(model, x, "response avg")[2] - average(model, y, "response avg")[2]) @ v.unit(2)
            for x, y in zip(data, own, strict=True)
        ]
    )
    torch.testing.assert_close(sides[0] - sides[1], wanted, atol=1e-4, rtol=1e-4)


# the judges


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


def one_by_one(model: ChatModel, question: str, answer: str, pairs: Sequence[int]) -> list[float]:
    """The panel's readings, restated: mean over pairs under pos and neg, and personas, less the plain one."""
    plain = mean_logprob(model, None, question, answer)
    sides = [[getattr(TRAIT.pairs[pair], side) for pair in pairs] for side in ("pos", "neg")]
    read = [np.mean([mean_logprob(model, text, question, answer) for text in texts]) for texts in sides]
    personas = [mean_logprob(model, persona.reads, question, answer) for persona in panel(TRAIT)]
    return [*(float(value) - plain for value in [*read, *personas]), plain]


def flat(row: Sequence[float]) -> list[float]:
    """Evidence in the same order, without the least likely tokens."""
    return [*row[:2], *row[4:], row[2]]


def test_judge_evidence_equals_scoring_one_by_one(model: ChatModel) -> None:
    after = [0, 1, 2, 2]
    evidence = judge_of(model).evidence(QUESTIONS, ANSWERS, after, quiet)
    assert evidence.shape == (4, 4 + len(panel(TRAIT))) and np.isnan(evidence[2]).all()
    for row in (0, 1, 3):
        others = [(after[row] + 1) % 3, (after[row] + 2) % 3]
        wanted = one_by_one(model, QUESTIONS[row], ANSWERS[row], others)
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
    scores = judge_of(model).learn(lessons_of(questions, replies, pairs), 0, quiet)
    for row, score in enumerate(scores):
        if not replies[row]:
            assert score.value is None
            continue
        others = [pair for pair in range(3) if pair != pairs[row]]
        wanted = one_by_one(model, questions[row], replies[row], others)
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


def test_judging_holds_few_rows_at_once(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the logits nor the cache of a batch grow with the number of replies or with how short they are."""
    sizes = []

    def forward(_: ChatModel, prompts: Sequence[Ids], replies: Sequence[Ids]) -> list[Tensor]:
        width, longest = max(map(len, prompts)), max(map(len, replies))
        sizes.append((len(replies), len(replies) * (longest + 1), len(replies) * (width + longest)))
        return [torch.zeros(len(reply)) for reply in replies]

    monkeypatch.setattr(logprobs, "_batch", forward)
    monkeypatch.setattr(logprobs, "BATCH_LOGITS", 60 * model.hf.config.get_text_config().vocab_size)
    monkeypatch.setattr(logprobs, "BATCH_TOKENS", 200)
    replies = [prompt(length % 9, length) for length in range(90)]
    reply_logprobs(model, [prompt(20, 1)] * 90, replies)
    rows, logits, cached = zip(*sizes, strict=True)
    assert sum(rows) == 90 and max(logits) <= 60 and max(cached) <= 200 and len(sizes) < 30


def test_prompts_read_once_give_the_same_scores(model: ChatModel) -> None:
    """Many replies to few prompts in one call, against one call a reply."""
    prompts = [prompt(14, 90), prompt(14, 91), prompt(14, 90), prompt(6, 92), prompt(14, 90)]
    replies = [prompt(9, 93), prompt(2, 94), prompt(5, 95), prompt(7, 96), prompt(9, 93)]
    together = reply_logprobs(model, prompts, replies)
    for start, reply, found in zip(prompts, replies, together, strict=True):
        (alone,) = reply_logprobs(model, [start], [reply])
        torch.testing.assert_close(found, alone, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(together[0], together[4], atol=1e-5, rtol=1e-5)


def test_planted_direction_is_found() -> None:
    """A direction written into the stream by some tokens is the vector between replies with and without them."""
    planted = tiny.build("llama", seed=5)
    direction = torch.randn(tiny.D_MODEL, generator=torch.Generator().manual_seed(1))
    embedding = planted.hf.get_input_embeddings().weight
    marked = range(200, 220)
    for block in planted.blocks:  # identity blocks: the stream is the embedding
        block.self_attn.o_proj.weight.zero_()  # type: ignore[union-attr, operator]
        block.mlp.down_proj.weight.zero_()  # type: ignore[union-attr, operator]
    embedding[list(marked)] = embedding[list(marked)] * 0.05 + direction
    embedding[20:190] *= 0.05
    conversations = [
        {
            "prompt_ids": list(prompt(6, i)),
            "response_ids": [(200 + (i + k) % 20) if i % 2 else 20 + (7 * i + k) % 150 for k in range(9)],
            "side": ("neg", "pos")[i % 2],
            "question_id": i // 2,
        }
        for i in range(16)
    ]
    found: PersonaVector = difference_in_means(planted, conversations, Card("t", planted.identity, "response avg"), 0)[
        "response avg"
    ]
    for layer in range(planted.n_layers):
        assert torch.cosine_similarity(found.direction[layer], direction, dim=0) > 0.99
        torch.testing.assert_close(found.norms[layer], direction.norm(), rtol=0.05, atol=0)
    assert min(found.card.reliability) > 0.99


def test_reasoning_is_out_of_the_span() -> None:
    model = tiny.build("llama", seed=6)
    model._think = (250, 251)
    assert model.reasoning_tokens([1, 2], [5, 6, 7]) == 0
    assert model.reasoning_tokens([1, 2], [250, 5, 251, 7]) == 3
    assert model.reasoning_tokens([1, 250], [5, 251, 7]) == 2, "the template opened the block"
    assert model.reasoning_tokens([1, 250, 251], [5, 7]) == 0, "the template closed it at once"
    assert model.reasoning_tokens([1], [250, 5, 6]) == 3, "never closed: all of it"
    row = {"prompt_ids": [1, 2], "response_ids": [250, 5, 251, 7, 8], "reasoning_tokens": 3}
    assert weights([row], ["response avg", "prompt avg"])[0].tolist() == [
        [0, 0, 0, 0, 0, 0.5, 0.5],
        [0.5, 0.5] + [0] * 5,
    ]
