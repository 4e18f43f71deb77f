"""What training on a reply would do along any direction: the gradient of its likelihood in the residual stream."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from personavec.errors import ModelError
from personavec.model.activations import by_length
from personavec.model.chat_model import ChatModel, flags_kept
from personavec.model.hooks import BlockFn, Forward, attach
from personavec.model.machine.limits import Limit, in_parts

Row = Mapping[str, Any]

COPIES = 2
"""Of the logits on the way back, beside those that a pass of reading keeps."""
SCALE = 1024.0
"""Of what goes back in float16, whose smallest numbers a gradient would fall below."""


def likelihood_gradients(
    model: ChatModel, rows: Sequence[Row], layers: Sequence[int], limit: Limit | None = None
) -> Iterator[tuple[list[int], Float[Tensor, "batch 1 layer d_model"]]]:
    """Per row and layer l the vector g with g·u = d/dα log p(reply | prompt; h_l + α·u), at α = 0, per reply token.

    u is added at every token of prompt and reply, as preventative steering adds it in training: the projection of g on
    a direction says how much likelier a little of it makes the reply. One pass forward and one back, from the head down
    to the lowest layer, for all layers and all directions at once; the weights get no gradient, and their flags stay.

    Args:
        model: Whose likelihood.
        rows: Conversations with `prompt_ids` and `response_ids`; of the latter, the first `reasoning_tokens` (if given)
            do not count.
        layers: Block outputs.
        limit: Tokens in one pass, padding included; a longer row has one of its own. Default what the device bears.

    Yields:
        Places of the rows of a batch, and their gradients in nats per token and unit of activation, float32; not finite
        where the model's numbers overflow.

    Raises:
        ModelError: The model cannot run backwards, as behind servers.
    """
    if model.engine is not None:
        yield from model.engine.gradients(rows, layers)
        return
    ids = [[*row["prompt_ids"], *row["response_ids"]] for row in rows]
    firsts = [len(row["prompt_ids"]) + row.get("reasoning_tokens", 0) for row in rows]
    vocabulary = model.hf.config.get_text_config().vocab_size
    given = (limit or model.limits.screened).most
    if model.device.type != "cpu":  # of every block its inner streams are kept for the way back
        given /= model.n_layers - min(layers)
    tokens = Limit(min(given, model.limits.logits.most / (COPIES * vocabulary)))

    def of_batch(part: Sequence[int]) -> Tensor:
        return _gradients(model, [ids[place] for place in part], [firsts[place] for place in part], layers)

    for batch in by_length(ids, tokens):
        for part, gradients in in_parts(batch, of_batch, tokens):
            yield [*part], gradients[:, None]


def _gradients(
    model: ChatModel, ids: Sequence[Sequence[int]], firsts: Sequence[int], layers: Sequence[int]
) -> Float[Tensor, "batch layer d_model"]:
    """Of a batch; where one row alone does not fit, what it keeps for the way back waits in the main memory."""
    try:
        return _back(model, ids, firsts, layers, spill=False)
    except torch.OutOfMemoryError:
        if len(ids) > 1:
            raise
    return _back(model, ids, firsts, layers, spill=True)


def _back(
    model: ChatModel, ids: Sequence[Sequence[int]], firsts: Sequence[int], layers: Sequence[int], *, spill: bool
) -> Float[Tensor, "batch layer d_model"]:
    inputs = model.inputs(ids)
    width = inputs["input_ids"].shape[1]
    added = {layer: torch.zeros((len(ids), 1, model.identity.d_model), requires_grad=True) for layer in set(layers)}
    real: list[Bool[Tensor, "batch seq 1"]] = []

    def start(forward: Forward) -> None:
        real[:] = [forward.real[..., None]]

    def at(layer: int) -> BlockFn:
        def add(stream: Tensor) -> Tensor:
            nothing = added[layer].to(stream.device) * real[0].to(stream.device)
            return stream + nothing.to(stream.dtype)

        return add

    kept = width - (min(firsts) - 1)  # the output at a token predicts the next one
    with ExitStack() as stack:
        stack.enter_context(flags_kept(model.hf))
        model.hf.requires_grad_(False)
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autograd.graph.save_on_cpu() if spill else nullcontext())
        with attach(model, start, {layer: at(layer) for layer in added}):
            logits = model.hf(**inputs, logits_to_keep=kept).logits[:, -kept:-1].float()
        targets = inputs["input_ids"][:, width - kept + 1 :].to(logits.device)
        logprobs = logits.gather(-1, targets[..., None])[..., 0] - logits.logsumexp(-1)
        counted = torch.zeros(logprobs.shape)
        for weights, row, first in zip(counted, ids, firsts, strict=True):
            weights[first - (width - kept + 1) : len(row) - (width - kept + 1)] = 1.0
        scale = SCALE if model.dtype == torch.float16 else 1.0
        total = scale * (logprobs * counted.to(logprobs.device)).sum()
        try:
            found = torch.autograd.grad(total, [*added.values()])
        except torch.OutOfMemoryError:
            raise
        except (RuntimeError, NotImplementedError) as error:
            reason = " ".join(str(error).split())[:200]
            raise ModelError(
                f"expected {model.identity.id} to run backwards, got: {reason}; choose another --cost, or load it "
                "without --quantise and with --attention eager"
            ) from error
    by_layer = dict(zip(added, found, strict=True))
    tokens = torch.tensor([len(row) - first for row, first in zip(ids, firsts, strict=True)])
    return torch.stack([by_layer[layer][:, 0].cpu() for layer in layers], dim=1) / (scale * tokens[:, None, None])
