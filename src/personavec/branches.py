"""Reading several replies to one prompt, and the prompt only once."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from personavec.cache import empty, using
from personavec.hooks import read
from personavec.model import ChatModel

Ids = Sequence[int]


@torch.inference_mode()
def branches(
    model: ChatModel,
    prompts: Sequence[Ids],
    replies: Sequence[Ids],
    owners: Sequence[int],
    weights: Float[Tensor, "reply span seq"],
    layers: Sequence[int],
) -> Float[Tensor, "reply span layer d_model"]:
    """Weighted sums of the residual stream over each reply, every prompt read once for all replies to it.

    The same as `capture` of prompt + reply, one row each; blocks above the deepest layer and the head do not run.

    Args:
        model: What to read.
        prompts: Token ids of each prompt, none empty.
        replies: Token ids of each reply.
        owners: Which prompt each reply answers.
        weights: Per reply and span, the weight of the last prompt token (first column) and of every reply token.
        layers: Which block outputs to read.
    """
    ids, mask = model.tensor([prompt[:-1] for prompt in prompts], left=True)
    cache = empty(model)
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    inputs = {"attention_mask": mask, "position_ids": positions, **using(model, cache)}
    read(model, [max(layers)], lambda *_: None, input_ids=ids, **inputs)
    rows = torch.tensor(owners, device=model.device)
    cache.batch_select_indices(rows)

    # the last prompt token goes with the reply, so that its own activation can be read as well
    tails = [[*prompts[owner][-1:], *reply] for owner, reply in zip(owners, replies, strict=True)]
    ids, tail_mask = model.tensor(tails, left=False)
    start = torch.tensor([len(prompts[owner]) - 1 for owner in owners], device=model.device)[:, None]
    spread = torch.zeros((len(tails), weights.shape[1], ids.shape[1]), device=ids.device)
    spread[:, :, : weights.shape[2]] = weights.to(ids.device)
    sums: dict[int, Tensor] = {}

    def add(layer: int, stream: Tensor) -> None:
        sums[layer] = torch.bmm(spread, stream.float())

    read(
        model,
        layers,
        add,
        input_ids=ids,
        attention_mask=torch.cat([mask[rows], tail_mask], dim=1),
        position_ids=start + torch.arange(ids.shape[1], device=ids.device),
        **using(model, cache),
    )
    return torch.stack([sums[layer] for layer in layers], dim=2).cpu()
