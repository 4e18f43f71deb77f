"""Replies that share their prompt are read as if each stood alone."""

import pytest
import torch
from support import tiny

from personavec.model.activations import branches
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import capture


def test_shared_prompts_read_as_if_alone(any_model: ChatModel) -> None:
    prompts = [tiny.prompt(length, seed=1) for length in (3, 11, 20)]
    owners = [0, 0, 1, 2, 2, 2]
    replies = [tiny.prompt(length, seed=2) for length in (5, 9, 1, 14, 2, 7)]
    weights = torch.zeros((len(replies), 3, 1 + max(map(len, replies))))
    for weight, reply in zip(weights, replies, strict=True):
        weight[0, 1 : 1 + len(reply)] = 1 / len(reply)
        weight[1, 0] = 1
        weight[2, 1 : 1 + min(2, len(reply))] = 0.5
    layers = [1, 3]
    found = branches(any_model, prompts, replies, owners, weights, layers)
    for own, reply, owner, weight in zip(found, replies, owners, weights, strict=True):
        row = [*prompts[owner], *reply]
        alone = torch.zeros((1, 3, len(row)))
        alone[0, :, len(prompts[owner]) - 1 :] = weight[:, : 1 + len(reply)]
        torch.testing.assert_close(own, capture(any_model, [row], alone, layers)[0], rtol=2e-4, atol=2e-4)
    assert tiny.hooks(any_model) == 0


def test_blocks_above_the_deepest_layer_do_not_run(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[int] = []
    for layer, block in enumerate(model.blocks):
        own = block.self_attn.forward
        monkeypatch.setattr(block.self_attn, "forward", lambda *a, k=layer, f=own, **o: (ran.append(k), f(*a, **o))[1])
    branches(model, [tiny.prompt(6)], [tiny.prompt(4)], [0], torch.ones((1, 1, 5)), [1])
    assert sorted(set(ran)) == [0, 1] and len(ran) == 4
