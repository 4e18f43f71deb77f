"""The gradient of a reply's likelihood is what a small dose does to it, by steering itself, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from support import tiny
from torch import Tensor

from personavec.errors import ModelError
from personavec.model.chat_model import ChatModel
from personavec.model.hooks import attach
from personavec.model.logits import reply_logprobs
from personavec.model.machine.limits import Limit
from personavec.steering import gradient as module
from personavec.steering.gradient import likelihood_gradients


def rows_of(count: int = 5) -> list[dict[str, Any]]:
    prompts, replies = (
        [tiny.prompt(3 + n, n) for n in range(count)],
        [tiny.prompt(4 + 2 * n % 5, 50 + n) for n in range(count)],
    )
    pairs = zip(prompts, replies, strict=True)
    return [
        {"prompt_ids": tuple(a), "response_ids": tuple(b), "reasoning_tokens": n % 2} for n, (a, b) in enumerate(pairs)
    ]


def gradients(model: ChatModel, rows: list[dict[str, Any]], layers: list[int], **options: Any) -> Tensor:
    out = torch.zeros((len(rows), len(layers), model.identity.d_model))
    for places, found in likelihood_gradients(model, rows, layers, **options):
        out[places] = found[:, 0]
    return out


def likelihood(model: ChatModel, row: dict[str, Any], layer: int, added: Tensor) -> float:
    """Mean log-probability of what counts of a reply, with something added at every token of a layer."""
    ids = [*row["prompt_ids"], *row["response_ids"]]
    with attach(model, lambda _: None, {layer: lambda stream: stream + added.to(stream.dtype)}), torch.no_grad():
        logits = model.hf(**model.inputs([ids])).logits[0].double()
    first = len(row["prompt_ids"]) + row["reasoning_tokens"]
    read = logits.log_softmax(-1)[first - 1 : -1].gather(1, torch.tensor(ids[first:])[:, None])
    return float(read.mean())


def test_it_is_a_finite_difference_of_the_likelihood(any_model: ChatModel) -> None:
    rows, layers = rows_of(), [any_model.n_layers - 1, 1]
    found = gradients(any_model, rows, layers, limit=Limit(24))
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(any_model.identity.d_model, generator=generator)
    direction /= direction.norm()
    for place, row in enumerate(rows):
        for column, layer in enumerate(layers):
            up, down = (likelihood(any_model, row, layer, step * direction) for step in (0.02, -0.02))
            slope, ours = (up - down) / 0.04, float(found[place, column] @ direction)
            assert ours == pytest.approx(slope, rel=1e-2, abs=2e-4), (place, layer)
    assert found.abs().max() > 1e-3


def test_batches_and_padding_change_nothing(model: ChatModel) -> None:
    rows = rows_of(7)
    whole, alone = (gradients(model, rows, [2], limit=Limit(tokens)) for tokens in (10_000, 1))
    torch.testing.assert_close(whole, alone, rtol=1e-4, atol=1e-6)


def test_it_leaves_the_model_as_it_was(model: ChatModel) -> None:
    before = [weight.requires_grad for weight in model.hf.parameters()]
    weight = next(model.hf.parameters())
    weight.requires_grad_(True)
    with torch.no_grad():
        gradients(model, rows_of(2), [1])
    assert weight.grad is None and weight.requires_grad
    weight.requires_grad_(before[0])
    prompts, replies = ([row[kind] for row in rows_of(2)] for kind in ("prompt_ids", "response_ids"))
    assert all(torch.isfinite(each).all() for each in reply_logprobs(model, prompts, replies))


def test_of_what_the_model_writes_itself_it_is_nothing_on_average(model: ChatModel) -> None:
    """Over all replies of one token, weighed by their probability."""
    prompt = tuple(tiny.prompt(5, 1))
    with torch.no_grad():
        chances = model.hf(**model.inputs([prompt])).logits[0, len(prompt) - 1].softmax(-1)
    rows = [{"prompt_ids": prompt, "response_ids": (token,)} for token in range(len(chances))]
    found = gradients(model, rows, [1])[:, 0]
    mean = (chances[:, None] * found).sum(dim=0)
    assert mean.norm() < 1e-3 * found.norm(dim=-1).mean()


def test_a_row_that_does_not_fit_is_spilled(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several rows are halved first; one alone keeps what it needs for the way back in the main memory."""
    back, asked = module._back, list[tuple[int, bool]]()

    def small(*args: Any, spill: bool) -> Tensor:
        asked.append((len(args[1]), spill))
        if not spill:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return back(*args, spill=spill)

    rows = rows_of(2)
    whole = gradients(model, rows, [2])
    monkeypatch.setattr(module, "_back", small)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    torch.testing.assert_close(gradients(model, rows, [2]), whole, rtol=1e-4, atol=1e-6)
    assert asked == [(2, False), (1, False), (1, True), (1, False), (1, True)]


def test_a_model_that_cannot_go_back_says_so(model: ChatModel, monkeypatch: pytest.MonkeyPatch) -> None:
    def cannot(*_: Any) -> None:
        raise NotImplementedError("no backward\nof this kernel")

    monkeypatch.setattr(torch.autograd, "grad", cannot)
    with pytest.raises(ModelError, match="to run backwards, got: no backward of this kernel; choose another --cost"):
        gradients(model, rows_of(1), [1])


@pytest.mark.parametrize("quantised", ["torchao:int8"])
def test_quantised_weights_run_backwards(
    quantised: str, saved: Any, model: ChatModel, unchecked: Callable[..., Any]
) -> None:
    pytest.importorskip("torchao")
    chat = ChatModel.load(str(saved[0]), dtype="float32", device="cpu", quantise=quantised)
    whole = gradients(ChatModel.load(str(saved[0]), dtype="float32", device="cpu"), rows_of(2), [1])
    assert torch.cosine_similarity(gradients(chat, rows_of(2), [1]), whole, dim=-1).min() > 0.95
