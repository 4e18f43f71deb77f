"""Log-probabilities as OpenAI's APIs tell them: by entry of each token, and in the old form of completions."""

import math
from collections.abc import Sequence
from typing import Any

from personavec.model.spelling import Spelling
from personavec.server.reply import Logprobs

Json = dict[str, Any]


def entries(spelling: Spelling, tokens: Sequence[Logprobs], begin: int) -> list[Json]:
    """An entry of each token, with the most probable ones in it.

    Args:
        spelling: Of the model's tokens.
        tokens: Consecutive ones of a reply.
        begin: Tokens of the reply before them.
    """
    out = []
    for place, token in enumerate(tokens, begin):
        chosen, *others = [_entry(spelling, *one, place == 0) for one in _all(token)]
        out.append(chosen | {"top_logprobs": others})
    return out


def old_form(
    spelling: Spelling, tokens: Sequence[Logprobs], begin: int, offsets: Sequence[int]
) -> dict[str, list[Any]]:
    """Lists by token; that of a prompt's first one, before which nothing stands, is NaN, told as null.

    Args:
        spelling: Of the model's tokens.
        tokens: Consecutive ones of an answer.
        begin: Tokens of the answer before them.
        offsets: Characters of the answer before each.
    """
    tops = [_tops(spelling, token, place == 0) for place, token in enumerate(tokens, begin)]
    told = [not math.isnan(token.logprob) for token in tokens]
    return {
        "tokens": [next(iter(top)) for top in tops],
        "token_logprobs": [token.logprob if there else None for token, there in zip(tokens, told, strict=True)],
        "top_logprobs": [top if there else None for top, there in zip(tops, told, strict=True)],
        "text_offset": list(offsets),
    }


def _all(token: Logprobs) -> list[tuple[int, float]]:
    """The chosen token, then the most probable ones."""
    return [(token.token, token.logprob), *token.top]


def _entry(spelling: Spelling, token: int, logprob: float, first: bool) -> Json:
    spelled = spelling.spell(token, first)
    written = None if spelled.bytes is None else list(spelled.bytes)
    return {"token": spelled.text, "logprob": logprob, "bytes": written}


def _tops(spelling: Spelling, token: Logprobs, first: bool) -> dict[str, float]:
    """By text, the chosen token always among them; of two that are spelled alike the later one is its number."""
    tops: dict[str, float] = {}
    for number, value in dict(_all(token)).items():
        text = spelling.spell(number, first).text
        tops[f"token_id:{number}" if text in tops or not text else text] = value
    return tops
