"""The next token of every reply: drawn as each asks for, held to its form, with its log-probabilities."""

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from personavec.server.writing.job import Job, reason
from personavec.server.writing.scores import NOT_FINITE, logprobs_at
from personavec.steering.generate import check_finite, draw


def draw_tokens(jobs: Sequence[Job], logits: Float[Tensor, "rows vocab"]) -> None:
    """Draw a token for every row and tell it; rows that are drawn alike are drawn together."""
    alike: dict[tuple[float, float], list[int]] = {}
    for row, (job, finite) in enumerate(zip(jobs, logits.isfinite().all(dim=-1).tolist(), strict=True)):
        if finite:
            alike.setdefault((job.sampling.temperature, job.sampling.top_p), []).append(row)
        else:
            job.end("error", NOT_FINITE)
    logits, free = _held(jobs, logits), logits
    for rows in alike.values():
        numbers = torch.tensor([jobs[row].numbers[len(jobs[row].reply.ids)] for row in rows], device=logits.device)
        drawn_from = logits if len(rows) == len(jobs) else logits[rows]
        try:
            drawn = draw(drawn_from, numbers, jobs[rows[0]].sampling).cpu()
            check_finite(drawn)
            tokens = drawn.tolist()
        except torch.OutOfMemoryError:  # these wait with the others
            raise
        except Exception as error:  # nobody else is drawn like these
            for row in rows:
                jobs[row].end("error", reason(error))
            continue
        for row, token in zip(rows, tokens, strict=True):
            job = jobs[row]
            top = job.top_logprobs
            logprobs = None if top is None else logprobs_at(free[row][None], [token], top)[0]
            if job.form is not None and not job.form.take(token):
                job.end("error", "expected a token of the form that was asked for, got another one; ask again")
            if job.reply.finish:
                continue
            job.reply.add(token, logprobs)
            job.tell(job.reply.news())


def _held(jobs: Sequence[Job], logits: Float[Tensor, "rows vocab"]) -> Float[Tensor, "rows vocab"]:
    """Logits of the tokens that each reply may go on with, by the form that was asked of it."""
    forms = [(row, job.form) for row, job in enumerate(jobs) if job.form is not None and not job.reply.finish]
    held = logits.clone() if forms else logits
    for row, form in forms:
        allowed = form.allowed(logits.shape[-1]).to(logits.device)
        held[row, ~allowed] = float("-inf")
        if not allowed.any():
            jobs[row].end("error", "expected a form that can be gone on with, got none; change the schema")
            held[row] = logits[row]
    return held
