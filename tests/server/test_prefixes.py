"""What was read of earlier turns is not read again, and replies are what they were."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import tiny
from support.asking import SAMPLING, Asked, ask
from support.tiny import prompt

from personavec.model.chat_model import ChatModel
from personavec.model.kv_cache import continued
from personavec.model.machine.limits import HABITS, ON_A_GPU
from personavec.server.writing.engine import Engine
from personavec.server.writing.prefixes import BLOCK, Prefixes
from personavec.steering.generate import Request, Watch, generate
from personavec.steering.steer import Steering
from personavec.steering.vector import PersonaVector

Turn = tuple[int, ...]


def converse(engine: Engine, turns: Sequence[Turn], **options: Any) -> list[Asked]:
    """Each turn asks with all that was said before."""
    said: Turn = ()
    asked = []
    for seed, turn in enumerate(turns):
        (one,) = ask(engine, [Asked(engine.model, said + turn, seed, **options)])
        said += (*turn, *one.job.reply.ids)
        asked.append(one)
    return asked


def own(model: ChatModel, asked: Asked) -> Turn:
    """The reply of the offline batch, which keeps nothing."""
    return generate(model, [Request(asked.job.prompt, asked.job.steering, asked.job.seed)], SAMPLING)[0].ids


def test_a_chat_is_read_once_in_every_family(any_model: ChatModel) -> None:
    engine = Engine(any_model, rows=2)
    asked = converse(engine, [prompt(9 + turn) for turn in range(5)])
    engine.close(5)
    assert [tuple(one.job.reply.ids) for one in asked] == [own(any_model, one) for one in asked]
    read = [len(one.job.prompt) + len(one.job.reply.read) - 1 for one in asked]
    assert [one.job.reused for one in asked] == [0, *(tokens // BLOCK * BLOCK for tokens in read[:-1])]


def test_no_token_is_lost_where_no_column_is_padding(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(HABITS, "cpu", ON_A_GPU)
    engine = Engine(model, rows=2)
    asked = converse(engine, [prompt(9 + turn) for turn in range(4)])
    engine.close(5)
    assert [tuple(one.job.reply.ids) for one in asked] == [own(model, one) for one in asked]
    assert all(one.job.reused for one in asked[1:])


def test_ten_turns_read_a_third_of_the_tokens_at_most(model: ChatModel, engine: Engine) -> None:
    asked = converse(engine, [prompt(12)] * 10)
    whole = sum(len(one.job.prompt) for one in asked)
    assert whole >= 3 * (whole - sum(one.job.reused for one in asked))


STEERINGS: dict[str, Any] = {
    "none": lambda v: (),
    "response": lambda v: (Steering(v, 2.0, 1),),
    "prompt": lambda v: (Steering(v, -2.0, 3, "prompt"),),
    "all": lambda v: (Steering(v, 1.0, "all", "all"),),
    "ablate": lambda v: (Steering(v, layer="all", op="ablate", positions="all"),),
    "gated": lambda v: (Steering(v, 4.0, 2, "all", above=0.0),),
    "mixed": lambda v: (Steering(v, 1.0, 2, "all"), Steering(v, -3.0, 1)),
    "nothing": lambda v: (Steering(v, 0.0, 1, "all"),),
}


@pytest.mark.parametrize("name", STEERINGS)
def test_steered_chats_are_those_of_the_offline_batch(
    model: ChatModel, engine: Engine, v: PersonaVector, name: str
) -> None:
    """All of them first, so that each would find the prefixes of the others, were they not told apart."""
    chats = {other: converse(engine, [prompt(20)] * 2, steering=STEERINGS[other](v)) for other in STEERINGS}
    for one in chats[name]:
        assert tuple(one.job.reply.ids) == own(model, one)
    assert chats[name][1].job.reused >= BLOCK
    alike = {"none": ("response", "nothing"), "response": ("none", "nothing"), "nothing": ("none", "response")}
    first = chats[name][0].job.reused
    assert first == 0 or (name in alike and first == BLOCK)  # what is not steered in its prompt shares it


def test_a_change_of_steering_in_a_conversation_begins_anew(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    said = prompt(40)
    for number, steering in enumerate([(), (Steering(v, 2.0, 1, "all"),), (Steering(v, 2.5, 1, "all"),), ()]):
        (one,) = ask(engine, [Asked(model, said, number, steering=steering)])
        assert tuple(one.job.reply.ids) == own(model, one)
        assert (one.job.reused > 0) == (number == 3)


def test_a_steered_reply_is_read_again_where_it_is_no_reply_any_more(
    model: ChatModel, engine: Engine, v: PersonaVector
) -> None:
    """Its tokens were moved when they were written; in the prompt of the next turn they are not."""
    first, second = converse(engine, [prompt(33), prompt(4)], steering=(Steering(v, 2.0, 1),))
    assert second.job.reused == 2 * BLOCK and len(first.job.prompt) == 33
    assert tuple(second.job.reply.ids) == own(model, second)


def test_projections_at_the_last_prompt_token_are_read_anew(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    watch = (Watch(1, v.unit(1)), Watch(3, v.unit(3)))
    for _ in range(2):
        (kept,) = ask(engine, [Asked(model, prompt(33), watch=watch)])
    fresh = Engine(model, rows=2, prefix_bytes=0)
    (anew,) = ask(fresh, [Asked(model, prompt(33), watch=watch)])
    fresh.close(5)
    assert (kept.job.reused, anew.job.reused) == (2 * BLOCK, 0)
    torch.testing.assert_close(
        torch.tensor(kept.job.reply.read), torch.tensor(anew.job.reply.read), atol=1e-4, rtol=1e-4
    )


def test_rows_that_know_different_amounts_are_read_together(model: ChatModel, engine: Engine) -> None:
    ask(engine, [Asked(model, prompt(50)), Asked(model, prompt(20))])
    mixed = [Asked(model, ids, 3 + n) for n, ids in enumerate([prompt(60), (*prompt(20)[::-1], 9), prompt(21), (5,)])]
    with engine._changed:
        for one in mixed:
            engine.submit([one.job])
    assert [tuple(one.wait().job.reply.ids) for one in mixed] == [own(model, one) for one in mixed]


def test_an_overflowing_row_leaves_nothing(model: ChatModel, engine: Engine, v: PersonaVector) -> None:
    for _ in range(2):
        (bad,) = ask(engine, [Asked(model, prompt(40), steering=(Steering(v, 1e30, 1, "all"),))])
        assert (bad.job.reply.finish, bad.job.reused) == ("error", 0)
    assert engine.prefixes.bytes == 0


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_conversations_in_any_order(model: ChatModel, v: PersonaVector, data: st.DataObject) -> None:
    """Branches, repeats, edits and shared beginnings of several conversations, at once, within little memory."""
    engine = Engine(tiny.build("llama"), rows=3, prefix_bytes=data.draw(st.sampled_from([0, 20_000, 2**20])))
    said: list[Turn] = [()]
    for seed in range(data.draw(st.integers(1, 6))):
        round_ = []
        for number in range(data.draw(st.integers(1, 3))):
            before = data.draw(st.sampled_from(said))
            before = before[: data.draw(st.integers(0, len(before)))] if data.draw(st.booleans()) else before
            turn = tuple(data.draw(st.lists(st.integers(7, 12), min_size=1, max_size=40)))
            steering = STEERINGS[data.draw(st.sampled_from(sorted(STEERINGS)))](v)
            round_.append(Asked(model, (before + turn)[:180], 10 * seed + number, steering=steering))
        with engine._changed:
            for one in round_:
                engine.submit([one.job])
        for one in round_:
            assert tuple(one.wait().job.reply.ids) == own(model, one)
            said.append((*one.job.prompt, *one.job.reply.ids))
        assert engine.prefixes.bytes <= engine.prefixes.most_bytes
    engine.close(5)


# the store


def states(tokens: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.arange(tokens)[None, :, None].float(), torch.arange(tokens)[None, :, None].float())]


SIZE = 2 * 4 * BLOCK
"""Bytes of one block of these."""


def ids(*blocks: int) -> Turn:
    return tuple(block for block in blocks for _ in range(BLOCK))


@settings(max_examples=200, deadline=None)
@given(kept=st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=5), max_size=12), blocks=st.integers(0, 6))
def test_a_store_stays_within_its_bound_and_finds_beginnings(kept: list[list[int]], blocks: int) -> None:
    store = Prefixes(blocks * SIZE)
    for blocks_kept in kept:
        store.keep((), ids(*blocks_kept), states(BLOCK * len(blocks_kept)))
        assert store.bytes == SIZE * len(store._by_use) <= store.most_bytes
        found = store.find((), ids(*blocks_kept))
        assert len(found) == min(len(blocks_kept), blocks)  # the latest is always there
        for number, block in enumerate(found):
            assert block.states[0][0][0, :, 0].tolist() == list(range(BLOCK * number, BLOCK * (number + 1)))


def test_what_was_not_used_for_longest_goes_first() -> None:
    store = Prefixes(3 * SIZE)
    for block in (1, 2, 3):
        store.keep((), ids(block), states(BLOCK))
    store.find((), ids(1))
    store.keep((), ids(4), states(BLOCK))
    assert [len(store.find((), ids(block))) for block in (1, 2, 3, 4)] == [1, 0, 1, 1]
    assert store.find((), ids(1)[:-1]) == []
    store.clear()
    assert store.bytes == 0 and store.find((), ids(1)) == []


@pytest.mark.parametrize("kind", ["dynamic", "longrope"])
def test_nothing_is_kept_where_a_longer_conversation_turns_its_tokens_otherwise(kind: str) -> None:
    model = tiny.build("llama")
    assert continued(model)
    model.hf.config.rope_parameters = {"full": {"rope_type": kind}, "rope_theta": 1.0}
    assert not continued(model)
