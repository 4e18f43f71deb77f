"""Which tokens and blocks write a direction: terms sum to the whole in every family, and are what was added."""

from typing import Any

import numpy as np
import pytest
import torch
from support import tiny

from personavec.model.chat_model import ChatModel
from personavec.model.hooks import parts
from personavec.verbs.analyse.contributions import tokens, written

SPLIT = {"llama", "qwen2", "qwen3", "gemma3", "mistral", "gpt2", "phi3", "olmo2", "mixtral", "peft"}
"""Families whose attention and MLP add one after the other; GPT-NeoX's read the same stream."""


def rows() -> list[dict[str, Any]]:
    rng = np.random.default_rng(0)
    return [
        {
            "side": ("neg", "pos")[i % 2],
            "question_id": i // 2,
            "prompt_ids": rng.integers(7, 60, 3 + i % 4).tolist(),
            "response_ids": rng.integers(7, 60, 4 + i % 5).tolist(),
        }
        for i in range(8)
    ]


@pytest.mark.parametrize("family", list(tiny.FAMILIES))
def test_terms_sum_to_the_projection(family: str, tiny_model: Any) -> None:
    model: ChatModel = tiny_model(family)
    layer, conversations = 2, rows()
    units = torch.nn.functional.normalize(torch.randn((3, model.identity.d_model)), dim=-1)
    found = written(model, conversations, layer, units)
    np.testing.assert_allclose(found.values.sum(axis=1), found.whole, atol=1e-4)
    kinds = {term.split()[0] for term in found.terms}
    assert kinds == ({"embedding", "attention", "MLP"} if family in SPLIT else {"embedding", "block"})
    own = tokens(model, conversations, layer, units[0])
    for index, row in enumerate(conversations):
        mean = np.mean([one.projection for one in own if one.row == index])
        assert mean == pytest.approx(found.whole[index, 0], abs=1e-4)
        assert [one.id for one in own if one.row == index] == row["response_ids"]
    for side in ("pos", "neg"):
        assert sum(one.weight for one in own if conversations[one.row]["side"] == side) == pytest.approx(1)
    assert tiny.hooks(model) == 0


@pytest.mark.parametrize("family", ["llama", "gemma3", "olmo2"])
def test_the_middle_is_what_the_attention_adds(family: str, tiny_model: Any) -> None:
    """Without its MLP a block ends where its middle is."""
    model: ChatModel = tiny_model(family)
    seen: dict[int, torch.Tensor] = {}
    ids = torch.tensor([[9, 8, 7, 12, 30]])

    def keep(layer: int, kind: str, stream: torch.Tensor) -> None:
        if kind == "middle":
            seen[layer] = stream.clone()

    with parts(model, [1], keep), torch.inference_mode():
        states = model.decoder(ids, output_hidden_states=True).hidden_states
        last = model.blocks[1].mlp(torch.zeros_like(states[1]))
    assert last.abs().max() < 1e-6, "an MLP without bias adds nothing to nothing"
    added = states[2] - seen[1]
    assert added.abs().max() > 1e-4 and (seen[1] - states[1]).abs().max() > 1e-4
    norm = getattr(model.blocks[1], "pre_feedforward_layernorm", None) if family == "gemma3" else None
    norm = norm or (None if family == "olmo2" else model.blocks[1].post_attention_layernorm)
    with torch.inference_mode():
        mlp = model.blocks[1].mlp(seen[1] if norm is None else norm(seen[1]))
        end = getattr(model.blocks[1], "post_feedforward_layernorm", None)
        torch.testing.assert_close(added, mlp if end is None else end(mlp), atol=1e-5, rtol=1e-4)
