"""Laws of generation: a reply depends on its request alone, and is steered as one full pass would be."""

from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support import tiny
from support.tiny import KINDS, Row, mixed, prompt, steered

from personavec.model.chat_model import ChatModel
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, Watch, batches, generate, stream
from personavec.steering.steer import Positions, Steering, steer
from personavec.steering.vector import PersonaVector


def requests_of(v: PersonaVector) -> list[Request]:
    """Ragged prompts, some equal, steered in different ways, each with its own seed."""
    prompts = [prompt(5, 1), prompt(13, 2), prompt(13, 2), prompt(1, 4), prompt(9, 5), prompt(13, 2), prompt(5, 1)]
    what = [*mixed(v), (), (Steering(v, 2.0, 1, "prompt"),), (Steering(v, 2.0, 2, "response"),)]
    return [Request(p, w, (7, i)) for i, (p, w) in enumerate(zip(prompts, what, strict=True))]


@pytest.mark.parametrize("sampling", [Sampling(10, 0), Sampling(10, 0.8, 0.9)])
def test_a_batch_equals_one_by_one(any_model: ChatModel, sampling: Sampling) -> None:
    requests = requests_of(tiny.vector(any_model))
    assert generate(any_model, requests, sampling) == [
        generate(any_model, [request], sampling)[0] for request in requests
    ]


def test_a_reply_does_not_depend_on_its_batch(model: ChatModel, v: PersonaVector) -> None:
    """More stop tokens, so that rows end at different times and the batch is packed meanwhile."""
    chatty = tiny.build("llama")
    chatty.stop_ids = list(range(2, 260, 25))
    requests = requests_of(v) * 4
    requests = [Request(r.prompt, r.steering, (3, i)) for i, r in enumerate(requests)]
    whole = generate(chatty, requests, Sampling(30))
    assert {reply.finish for reply in whole} == {"stop", "length"} and len({len(r.ids) for r in whole}) > 5
    backwards = generate(chatty, requests[::-1], Sampling(30))[::-1]
    assert whole == backwards
    assert whole[3::5] == generate(chatty, requests[3::5], Sampling(30))
    # a longer limit continues the same reply
    longer = generate(chatty, requests[:4], Sampling(40))
    assert [reply.ids[:30] for reply in longer] == [reply.ids for reply in whole[:4]]


def test_seeds_separate_replies(model: ChatModel) -> None:
    replies = generate(model, [Request(prompt(5), seed=(0, i)) for i in range(8)], Sampling(12))
    assert len({reply.ids for reply in replies}) == 8


@pytest.mark.parametrize("kind", KINDS)
def test_equal_prompts_share_reading_but_not_steering(model: ChatModel, v: PersonaVector, kind: Positions) -> None:
    """The prompt is read once per distinct prompt and steering of it; rows must not get each other's."""
    same = prompt(11, 8)
    what: list[tuple[Steering, ...]] = [
        (),
        (Steering(v, 3.0, 1, kind),),
        (Steering(v, -3.0, 1, kind),),
        (Steering(v, 3.0, 1, kind),),
        (Steering(v, 0.0, 1, kind),),
    ]
    requests = [Request(same, w, (1,)) for w in what]
    replies = [reply.ids for reply in generate(model, requests, Sampling(12, 0))]
    assert replies == [uncached_greedy(model, same, w, 12) for w in what]
    assert replies[1] == replies[3] and replies[0] == replies[4]
    assert len({replies[0], replies[1], replies[2]}) == 3


@torch.inference_mode()
def uncached_greedy(model: ChatModel, start: Row, what: Sequence[Steering], count: int) -> Row:
    """Greedy tokens, the whole conversation read again for each of them."""
    ids = list(start)
    for _ in range(count):
        with steer(model, [what], [len(start)]):
            ids.append(int(model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in model.stop_ids:
            return tuple(ids[len(start) : -1])
    return tuple(ids[len(start) :])


@pytest.mark.parametrize("kind", KINDS)
def test_generation_steers_as_one_full_pass_would(any_model: ChatModel, kind: Positions) -> None:
    v = tiny.vector(any_model)
    for op in ("add", "ablate", "cap"):
        what = (Steering(v, 1.0, 2, kind, op=op, ceiling=0.3),)  # type: ignore[arg-type]
        (reply,) = generate(any_model, [Request(prompt(9), what)], Sampling(8, 0))
        assert reply.ids == uncached_greedy(any_model, prompt(9), what, 8)


@pytest.mark.parametrize("family", ["llama", "gemma3", "gpt2", "peft"])
@pytest.mark.parametrize("kind", KINDS)
def test_generation_by_transformers_is_steered_alike(
    tiny_model: Callable[[str], ChatModel], family: str, kind: Positions
) -> None:
    """The library's own loop, on a left-padded batch, inside the same context."""
    model = tiny_model(family)
    what: list[tuple[Steering, ...]] = [(Steering(tiny.vector(model), 1.5, 1, kind),), (), mixed(tiny.vector(model))[2]]
    rows = [prompt(4), prompt(12), prompt(7)]
    replies = generate(model, [Request(row, w) for row, w in zip(rows, what, strict=True)], Sampling(8, 0))
    ids, mask = model.tensor(rows, left=True)
    with steer(model, what, [len(row) for row in rows]):
        found = model.hf.generate(input_ids=ids, attention_mask=mask, do_sample=False, max_new_tokens=8)
    for reply, tokens in zip(replies, found[:, ids.shape[1] :].tolist(), strict=True):
        assert tuple(tokens[: len(reply.ids)]) == reply.ids


def test_watched_projections_are_those_of_the_steered_stream(model: ChatModel, v: PersonaVector) -> None:
    requests = [Request(prompt(5), (Steering(v, 1.5, 1),)), Request(prompt(12))]
    steps = list(stream(model, requests, Sampling(6, 0), [Watch(1, v.unit(1)), Watch(3, v.unit(3))]))
    for index, request in enumerate(requests):
        tokens = tuple(int(step.tokens[index]) for step in steps)
        found = torch.stack([step.projections[index] for step in steps])
        row = request.prompt + tokens[:-1]
        _, streams = steered(model, [row], [request.steering], [len(request.prompt)])
        read = streams[:, 0, len(request.prompt) - 1 : len(row)]
        wanted = torch.stack([read[1] @ v.unit(1), read[3] @ v.unit(3)], dim=1)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_stop_tokens_end_a_reply_and_are_not_part_of_it(model: ChatModel) -> None:
    free = generate(model, [Request(prompt(5))], Sampling(10, 0))[0]
    assert free.finish == "length" and len(free.ids) == 10
    stopping = tiny.build("llama")
    stopping.stop_ids = [free.ids[4]]
    first = free.ids.index(free.ids[4])
    assert generate(stopping, [Request(prompt(5))], Sampling(10, 0)) == [(free.ids[:first], "stop")]


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 50), max_size=30), new=st.integers(1, 30), budget=st.integers(1, 400))
def test_batches_hold_every_request_once_within_the_budget(lengths: list[int], new: int, budget: int) -> None:
    requests = [Request((5,) * length) for length in lengths]
    packed = batches(requests, new, budget)
    assert sorted(index for batch in packed for index in batch) == list(range(len(lengths)))
    for batch in packed:
        assert len(batch) == 1 or len(batch) * (max(lengths[i] for i in batch) + new) <= budget
