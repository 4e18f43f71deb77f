"""Log-probabilities of the model's distribution, before temperature and top-p."""

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from personavec.errors import ModelError
from personavec.server.reply import Logprobs
from personavec.server.writing.job import Job

NOT_FINITE = "expected finite logits, got inf or nan; lower the steering (a dose under 1 is usual)"
SCORED = 256
"""Tokens of prompts whose logits are held at once."""


def logprobs_at(logits: Float[Tensor, "seq vocab"], tokens: Sequence[int], top: int) -> list[Logprobs]:
    """What logits say of the token at each place, and of the most probable ones."""
    logs = torch.log_softmax(logits.float(), dim=-1)
    chosen = logs.gather(1, torch.tensor(tokens, device=logs.device)[:, None])[:, 0].tolist()
    values, ids = (found.tolist() for found in logs.topk(top))
    rows = zip(tokens, chosen, ids, values, strict=True)
    return [Logprobs(token, value, tuple(zip(*tops, strict=True))) for token, value, *tops in rows]


def score_prompts(jobs: Sequence[Job], logits: Float[Tensor, "rows part vocab"], part: slice, width: int) -> None:
    """Add to the log-probabilities of prompts what the logits of some columns say of the tokens behind them.

    Args:
        jobs: One a row; its prompt ends in the last column.
        logits: Of a part of the columns; parts come in order.
        part: Which columns.
        width: How many columns there are.

    Raises:
        ModelError: Logits are not finite.
    """
    for row, job in enumerate(jobs):
        if not job.scored_now:
            continue
        begin = width - len(job.prompt)
        if part.start == 0:
            job.prompt_logprobs = [Logprobs(job.prompt[0], math.nan, ())]
        here = range(max(part.start, begin), min(part.stop, width - 1))
        if not here:
            continue
        followed = logits[row, here.start - part.start : here.stop - part.start]
        if not followed.isfinite().all():
            raise ModelError(NOT_FINITE)
        tokens = job.prompt[here.start - begin + 1 : here.stop - begin + 1]
        job.prompt_logprobs += logprobs_at(followed, tokens, job.top_logprobs or 0)
