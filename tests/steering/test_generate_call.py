"""Steering a model of the caller's own: `with vector.steer(model): model.generate(…)`, as its users call it."""

from typing import Any

import pytest
import torch
from support import tiny
from support.tiny import hooks

from personavec.errors import ConfigError, ModelError, VectorError
from personavec.model.chat_model import ChatModel
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering, steer

PROMPTS = (tiny.prompt(9, 1), tiny.prompt(5, 2), tiny.prompt(7, 3))
SAMPLING: dict[str, Any] = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
FAMILIES = ("llama", "qwen2", "gemma3", "gpt2", "gpt_neox", "peft")


def sampling(model: ChatModel) -> Any:
    from personavec.model.sampling import Sampling

    return Sampling(8, temperature=0)


def theirs(model: ChatModel, prompts: Any, **options: Any) -> list[tuple[int, ...]]:
    """Replies by `generate` of transformers, without what stands behind an end token."""
    ids, mask = model.tensor(prompts, left=True)
    written = model.hf.generate(input_ids=ids, attention_mask=mask, **SAMPLING | options)
    replies = []
    for row in written[:, ids.shape[1] :].tolist():
        end = next((place for place, token in enumerate(row) if token in model.stop_ids), len(row))
        replies.append(tuple(row[:end]))
    return replies


def ours(model: ChatModel, steering: Steering) -> list[tuple[int, ...]]:
    requests = [Request(prompt, (steering,)) for prompt in PROMPTS]
    return [reply.ids for reply in generate(model, requests, sampling(model))]


@pytest.mark.parametrize("positions", tiny.KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_generate_is_steered_as_our_own_loop_is(tiny_model: Any, family: str, positions: Any) -> None:
    model = tiny_model(family)
    v = tiny.vector(model)
    wanted = ours(model, Steering(v, 3.0, 1, positions))
    with v.steer(model, 3.0, layer=1, positions=positions) as steered:
        padded = theirs(model, PROMPTS)
        alone = [theirs(model, [prompt])[0] for prompt in PROMPTS]
        uncached = theirs(model, PROMPTS, use_cache=False)
    assert padded == alone == uncached == wanted
    assert steered.tokens > 0 and hooks(model) == 0
    assert wanted != [reply.ids for reply in generate(model, [Request(p) for p in PROMPTS], sampling(model))]


def test_several_replies_to_a_prompt(model: ChatModel) -> None:
    v = tiny.vector(model)
    wanted = ours(model, Steering(v, 3.0, 1))
    with v.steer(model, 3.0, layer=1):
        twice = theirs(model, PROMPTS, num_return_sequences=2, num_beams=2)
        assert len(twice) == 6
        assert theirs(model, PROMPTS) == wanted, "the next call has its own prompts"
    with steer(model, [[Steering(v, 3.0, 1)], [], [Steering(v, 3.0, 1)]], "call"):  # row by row
        rows = theirs(model, PROMPTS)
    assert [rows[0], rows[2]] == [wanted[0], wanted[2]]
    assert rows[1] == generate(model, [Request(PROMPTS[1])], sampling(model))[0].ids


def test_the_model_may_be_a_plain_one_of_transformers(model: ChatModel) -> None:
    v = tiny.vector(model, layer=1, coef=3.0)
    wanted = ours(model, Steering(v, 3.0, 1))
    before = model.hf.generate
    with v.steer(model.hf):
        assert theirs(model, PROMPTS) == wanted
        with v.steer(model.hf, -3.0):  # they add up
            assert theirs(model, PROMPTS) == ours(model, Steering(v, 0.0, 1))
        assert theirs(model, PROMPTS) == wanted
    assert model.hf.generate == before and "generate" not in vars(model.hf)


def test_of_a_pass_by_itself_all_is_prompt(model: ChatModel) -> None:
    v = tiny.vector(model)
    rows = list(PROMPTS)
    lengths = [len(row) for row in rows]
    wanted, _ = tiny.steered(model, rows, [(Steering(v, 2.0, 1),)] * 3, lengths)
    with v.steer(model, 2.0, layer=1):
        _, logits, _ = tiny.forward(model, rows)
    torch.testing.assert_close(logits, wanted)


def test_after_an_exception_nothing_is_left(model: ChatModel) -> None:
    v = tiny.vector(model)
    with pytest.raises(RuntimeError, match="stop"), v.steer(model, 2.0, layer=1):
        theirs(model, PROMPTS)
        raise RuntimeError("stop")
    assert hooks(model) == 0 and "generate" not in vars(model.hf)
    with pytest.raises(ModelError, match="to touch a token, got none"), v.steer(model, 2.0, layer=1):
        pass
    assert hooks(model) == 0 and "generate" not in vars(model.hf)


def test_what_at_means(model: ChatModel) -> None:
    v = tiny.vector(model, layer=2, coef=1.5, activation_norms=(4.0,) * 4)
    assert (v.at().coef, v.at().layer, v.at().positions) == (1.5, 2, "response")
    assert v.at(dose=0.5).coef == pytest.approx(v.coef(2, 0.5)) and v.at(dose=-0.5).coef < 0
    assert v.at(2.0, layer="all").layer == "all" and v.at(2.0, layer=0, positions="all").layer == 0
    bare = tiny.vector(model)
    for call, error, text in (
        (lambda: v.at(1.0, dose=0.1), ConfigError, "expected a coef or a dose, got coef 1.0 and dose 0.1"),
        (lambda: v.at(dose=0.1, layer="all"), ConfigError, "expected a coef at all layers"),
        (lambda: v.at(layer=1), VectorError, "expected a recommended coef for tiny at layer 1"),
        (lambda: v.at(1.0, layer=9), VectorError, "expected a layer from 0 to 3"),
        (lambda: bare.at(1.0), VectorError, "expected a recommended layer for tiny"),
        (lambda: bare.at(dose=0.1, layer=1), VectorError, "expected activation norms"),
    ):
        with pytest.raises(error, match=text):
            call()


def test_chat_and_stream(model: ChatModel, unchecked: None) -> None:
    v = tiny.vector(model, layer=1, coef=3.0)
    plain = model.chat("Hi there.", max_new_tokens=12, seed=3)
    assert plain == model.chat([{"role": "user", "content": "Hi there."}], max_new_tokens=12, seed=3)
    assert "".join(model.stream("Hi there.", max_new_tokens=12, seed=3)) == plain
    assert model.chat("Hi there.", steer=v.at(), max_new_tokens=12, seed=3) != plain
    assert model.chat("Hi there.", steer=[v.at(0.0)], max_new_tokens=12, seed=3) == plain
    with pytest.raises(ConfigError, match=r"expected steer=vector.at\(…\), got PersonaVector"):
        model.chat("Hi there.", steer=[v])
    pieces = model.stream("Hi there.", steer=v.at(), max_new_tokens=12)
    next(pieces)
    pieces.close()
    assert hooks(model) == 0


def test_a_vector_of_another_model_is_refused_before_anything_is_hooked(model: ChatModel) -> None:
    other = tiny.vector(tiny.build("llama", seed=1), layer=1, coef=1.0)
    with pytest.raises(VectorError, match="expected a vector for tiny-llama"), other.steer(model):
        pass
    assert hooks(model) == 0 and "generate" not in vars(model.hf)
