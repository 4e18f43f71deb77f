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

from personavec.judges.scoring import keep
from personavec.model import logits as logprobs
from personavec.model.activations import POSITIONS, activation_norms, activations, weights
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.model.logits import Ids, reply_logprobs
from personavec.steering.projection import projection
from personavec.steering.vector import Card, PersonaVector, increments
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


# log-probabilities of replies


def test_judging_holds_few_rows_at_once(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the logits nor the cache of a batch grow with the number of replies or with how short they are."""
    sizes = []

    def forward(_: ChatModel, prompts: Sequence[Ids], replies: Sequence[Ids], __: bool) -> list[Tensor]:
        width, longest = max(map(len, prompts)), max(map(len, replies))
        sizes.append((len(replies), len(replies) * (longest + 1), len(replies) * (width + longest)))
        return [torch.zeros(len(reply)) for reply in replies]

    monkeypatch.setattr(logprobs, "_batch", forward)
    monkeypatch.setattr(model.limits.logits, "most", 60 * model.hf.config.get_text_config().vocab_size)
    monkeypatch.setattr(model.limits.cached, "most", 200)
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
    tokenizer = tiny.tokenizer()
    tokenizer.add_tokens(["<think>", "</think>"])
    opened, closed = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    model = ChatModel(tiny.build("llama", seed=6, vocab_size=len(tokenizer)).hf, tokenizer)
    assert model.reasoning_tokens([1, 2], [5, 6, 7]) == 0
    assert model.reasoning_tokens([1, 2], [opened, 5, closed, 7]) == 3
    assert model.reasoning_tokens([1, opened], [5, closed, 7]) == 2, "the template opened the block"
    assert model.reasoning_tokens([1, opened, closed], [5, 7]) == 0, "the template closed it at once"
    assert model.reasoning_tokens([1], [opened, 5, 6]) == 3, "never closed: all of it"
    row = {"prompt_ids": [1, 2], "response_ids": [opened, 5, closed, 7, 8], "reasoning_tokens": 3}
    assert weights([row], ["response avg", "prompt avg"])[0].tolist() == [
        [0, 0, 0, 0, 0, 0.5, 0.5],
        [0.5, 0.5] + [0] * 5,
    ]
