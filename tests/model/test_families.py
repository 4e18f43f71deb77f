"""Every family of models: blocks are found, read, steered and generated from in the same way."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
import transformers
from support import tiny
from support.tiny import prompt
from torch import nn

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture
from personavec.model.layout.blocks import find_blocks
from personavec.model.logits import reply_logprobs
from personavec.model.sampling import Sampling
from personavec.steering.generate import Request, generate
from personavec.steering.steer import Steering, steer

ROWS = [prompt(5, 1), prompt(17, 2), prompt(9, 3), prompt(1, 4)]
LAYERS = tuple(range(tiny.N_LAYERS))


def position_weights(rows: list[tuple[int, ...]]) -> torch.Tensor:
    """One span per position: capture then returns every token's activation."""
    width = max(map(len, rows))
    weights = torch.eye(width).repeat(len(rows), 1, 1)
    for own, row in zip(weights, rows, strict=True):
        own[len(row) :] = 0
    return weights


@torch.inference_mode()
def hidden_states(model: ChatModel, row: tuple[int, ...]) -> tuple[torch.Tensor, ...]:
    ids = torch.tensor([row])
    out = model.hf(input_ids=ids, attention_mask=torch.ones_like(ids), output_hidden_states=True, use_cache=False)
    return tuple(state[0] for state in out.hidden_states)


# finding the blocks


def test_blocks_are_found(any_model: ChatModel) -> None:
    assert len(any_model.blocks) == any_model.n_layers == tiny.N_LAYERS
    assert len({type(block) for block in any_model.blocks}) == 1
    assert "Expert" not in type(any_model.blocks[0]).__name__
    assert any_model.identity.d_model == tiny.D_MODEL


def test_lists_inside_blocks_are_not_mistaken_for_blocks() -> None:
    hf = tiny.build("mixtral").hf
    blocks = list(hf.model.layers)
    for block in blocks:
        block.mlp.spare_experts = nn.ModuleList(nn.Linear(2, 2) for _ in LAYERS)
    assert list(find_blocks(hf)[1]) == blocks


def test_a_vision_model_gives_its_language_blocks() -> None:
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    text = {**tiny.ROPE, "vocab_size": tiny.VOCAB, "hidden_size": 32, "num_hidden_layers": 4}
    config = transformers.Gemma3Config(text_config=text, vision_config=vision | {"num_hidden_layers": 4})
    hf = transformers.Gemma3ForConditionalGeneration(config)
    decoder, blocks = find_blocks(hf)
    assert blocks is hf.model.language_model.layers and decoder is hf.model.language_model


class Odd(nn.Module):
    """A decoder with the given numbers of blocks in lists of its own."""

    def __init__(self, **lists: int) -> None:
        super().__init__()
        self.config: Any = SimpleNamespace(get_text_config=lambda: SimpleNamespace(num_hidden_layers=3))
        for name, count in lists.items():
            setattr(self, name, nn.ModuleList(nn.Linear(2, 2) for _ in range(count)))

    def get_decoder(self) -> nn.Module:
        return self


def test_ambiguous_or_missing_blocks_are_named() -> None:
    assert len(find_blocks(Odd(layers=3, norms=4))[1]) == 3
    with pytest.raises(ModelError, match="got layers, norms"):
        find_blocks(Odd(layers=3, norms=3))
    with pytest.raises(ModelError, match="expected one list of 3 blocks in Odd, got none"):
        find_blocks(Odd(layers=2))


# reading


def test_capture_reads_block_outputs(any_model: ChatModel) -> None:
    found = capture(any_model, ROWS, position_weights(ROWS), LAYERS)
    last = tiny.N_LAYERS - 1
    for index, row in enumerate(ROWS):
        states = hidden_states(any_model, row)
        for layer in LAYERS[:-1]:
            torch.testing.assert_close(found[index, : len(row), layer], states[layer + 1], atol=1e-4, rtol=1e-4)
        assert not torch.allclose(found[index, : len(row), last], states[-1], atol=1e-2), "the last one is normed"
    assert found.dtype == torch.float32 and found.device.type == "cpu"


def test_the_last_layer_is_read_before_the_final_norm(any_model: ChatModel) -> None:
    found = capture(any_model, ROWS[1:2], position_weights(ROWS[1:2]), [tiny.N_LAYERS - 1])[0, :, 0]
    (norm,) = [
        module for name, module in any_model.decoder.named_children() if name in {"norm", "ln_f", "final_layer_norm"}
    ]
    with torch.inference_mode():
        torch.testing.assert_close(norm(found), hidden_states(any_model, ROWS[1])[-1], atol=1e-4, rtol=1e-4)


def test_capture_averages_spans_of_ragged_rows(any_model: ChatModel) -> None:
    weights = torch.zeros(len(ROWS), 2, max(map(len, ROWS)))
    for own, row in zip(weights, ROWS, strict=True):
        own[0, : len(row)] = 1 / len(row)
        own[1, len(row) - 1] = 1
    found = capture(any_model, ROWS, weights, [2, 0])
    assert found.shape == (len(ROWS), 2, 2, tiny.D_MODEL)
    for index, row in enumerate(ROWS):
        states = hidden_states(any_model, row)
        for slot, layer in enumerate((2, 0)):
            torch.testing.assert_close(found[index, 0, slot], states[layer + 1].mean(0), atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(found[index, 1, slot], states[layer + 1][-1], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("deepest", [0, 2])
def test_nothing_runs_above_the_deepest_layer_read(any_model: ChatModel, deepest: int) -> None:
    ran: list[int] = []
    handles = [b.register_forward_hook(lambda *_, k=k: ran.append(k)) for k, b in enumerate(any_model.blocks)]  # type: ignore[misc]
    handles.append(any_model.hf.get_output_embeddings().register_forward_hook(lambda *_: ran.append(99)))
    try:
        capture(any_model, ROWS, position_weights(ROWS), [deepest, 0])
    finally:
        for handle in handles:
            handle.remove()
    assert set(ran) <= set(range(deepest + 1)) and max([-1, *ran]) >= deepest - 1


# steering


@pytest.mark.parametrize("layer", LAYERS)
def test_steering_moves_its_layer_by_coef_times_v(any_model: ChatModel, layer: int) -> None:
    v = tiny.vector(any_model)
    weights = position_weights(ROWS)
    plain = capture(any_model, ROWS, weights, LAYERS)
    with steer(any_model, [(Steering(v, -1.5, layer, "all"),)]) as did:
        moved = capture(any_model, ROWS, weights, LAYERS)
    assert did.tokens == sum(map(len, ROWS)) and did.layers == [layer]
    for before, after, row in zip(plain, moved, ROWS, strict=True):
        assert torch.equal(after[:, :layer], before[:, :layer])
        delta = after[: len(row), layer] - before[: len(row), layer]
        torch.testing.assert_close(delta, (-1.5 * v.direction[layer]).expand_as(delta), atol=1e-5, rtol=1e-5)
        for above in range(layer + 1, tiny.N_LAYERS):
            assert not torch.allclose(after[: len(row), above], before[: len(row), above])


# writing and scoring


def test_greedy_replies_equal_those_of_transformers(any_model: ChatModel) -> None:
    """Long enough to leave a sliding window behind."""
    replies = generate(any_model, [Request(row) for row in ROWS[:3]], Sampling(14, 0))
    for row, reply in zip(ROWS, replies, strict=False):
        ids = torch.tensor([row])
        wanted = any_model.hf.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=14
        )[0, len(row) :].tolist()
        assert list(reply.ids) == [token for token in wanted if token not in any_model.stop_ids]


def test_reply_logprobs_equal_a_full_pass(any_model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prompts that are read once for several replies, empty replies, one-token prompts."""
    prompts = [ROWS[1], ROWS[0], ROWS[1], ROWS[3], ROWS[1], ROWS[2]]
    replies = [prompt(12, 7), prompt(4, 8), (), prompt(6, 9), prompt(3, 10), prompt(1, 11)]
    for budget in (3072, 30, 1):
        vocabulary = any_model.hf.config.get_text_config().vocab_size
        monkeypatch.setattr(any_model.limits.logits, "most", budget * vocabulary)
        found = reply_logprobs(any_model, prompts, replies)
        for start, reply, own in zip(prompts, replies, found, strict=True):
            with torch.inference_mode():
                logits = any_model.hf(input_ids=torch.tensor([start + reply]), use_cache=False).logits[0]
            every = logits.log_softmax(-1)[len(start) - 1 : -1]
            wanted = every[torch.arange(len(reply)), torch.tensor(reply, dtype=torch.long)]
            torch.testing.assert_close(own, wanted, atol=1e-4, rtol=1e-4)
