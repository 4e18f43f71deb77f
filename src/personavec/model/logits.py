"""Log-probabilities of given replies; a batch reads every prompt once for all replies to it."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from personavec.model.chat_model import ChatModel
from personavec.model.conversation import Ids as Ids
from personavec.model.kv_cache import behind, shared
from personavec.model.machine.limits import in_parts


@torch.inference_mode()
def reply_logprobs(
    model: ChatModel,
    prompts: Sequence[Ids],
    replies: Sequence[Ids],
    progress: Callable[[int], None] = lambda _: None,
) -> list[Float[Tensor, " seq"]]:
    """Log-probability of each reply's tokens after its prompt, in nats.

    Args:
        model: The model whose probabilities are asked for.
        prompts: Prompt ids, one per reply; equal prompts are read once per batch.
        replies: Reply ids; an empty reply gives an empty tensor.
        progress: Told the number of replies done after every batch.
    """
    if model.engine is not None:
        return model.engine.logprobs(prompts, replies, progress)
    share = shared(model)
    vocabulary, limits = model.hf.config.get_text_config().vocab_size, model.limits
    order = sorted(range(len(replies)), key=lambda i: (len(prompts[i]), prompts[i], len(replies[i])))
    out: list[Tensor] = [torch.empty(0)] * len(replies)
    batch: list[int] = []

    def of_batch(part: Sequence[int]) -> list[Tensor]:
        return _batch(model, [prompts[i] for i in part], [replies[i] for i in part], share)

    for place, index in enumerate(order):
        batch.append(index)
        next_batch = [*batch, *order[place + 1 : place + 2]]
        rows, reply = len(next_batch), max(len(replies[i]) for i in next_batch)
        prompt = max(len(prompts[i]) for i in next_batch)
        tail = reply + 1 if share else reply + prompt
        if (
            rows == len(batch)
            or rows * tail > limits.logits.most // vocabulary
            or rows * (prompt + reply) > limits.cached.most
        ):
            for part, logprobs in in_parts(batch, of_batch, limits.logits, limits.cached):
                for i, logprob in zip(part, logprobs, strict=True):
                    out[i] = logprob
            progress(len(batch))
            batch = []
    return out


def _batch(model: ChatModel, prompts: Sequence[Ids], replies: Sequence[Ids], share: bool) -> list[Tensor]:
    read = [len(prompt) - 1 if share else 0 for prompt in prompts]  # tokens that are read for several replies at once
    # the last prompt token goes with the reply: its output predicts the reply's first token
    tails = [prompt[cut:] + reply[:-1] for prompt, reply, cut in zip(prompts, replies, read, strict=True)]
    inputs = behind(model, prompts, tails) if any(read) else model.inputs(tails)
    logits = model.hf(**inputs).logits
    out = []
    for row, prompt, reply, cut in zip(logits, prompts, replies, read, strict=True):
        first = len(prompt) - 1 - cut
        scores = row[first : first + len(reply)].float()
        target = torch.tensor(reply, dtype=torch.long, device=scores.device)[:, None]
        out.append((scores.gather(1, target)[:, 0] - scores.logsumexp(-1)).cpu())
    return out


TOLERANCE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 1e-1}
"""Largest `distance` between computations that differ only in their order."""


def distance(a: Float[Tensor, "*axes vocab"], b: Float[Tensor, "*axes vocab"]) -> float:
    """Largest ‖a − b‖ / ‖b‖ over tokens, of logits centred: a shift of all of them means nothing."""
    a, b = a - a.mean(dim=-1, keepdim=True), b - b.mean(dim=-1, keepdim=True)
    return float(((a - b).norm(dim=-1) / b.norm(dim=-1)).max())
