"""How likely a model finds replies without any instruction: one reading, for coherence and for the panel."""

from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from personavec.model.chat_model import ChatModel
from personavec.model.logits import reply_logprobs

WORST = 0.25
"""Share of least likely tokens that are averaged: a garbled stretch must show in a fluent reply."""
NONE = "none"
"""Name of the mean log-probability as evidence."""
REMEMBERED = 4096
"""Readings that are kept for the judge that asks next."""


class PlainReader:
    """Reads replies after their questions alone. Two judges ask for the same readings: the last ones are remembered."""

    def __init__(self, model: ChatModel, system: str) -> None:
        self.model, self.system = model, system
        self._remembered: dict[tuple[str, str], tuple[float, float]] = {}

    def read(
        self, questions: Sequence[str], answers: Sequence[str], progress: Callable[[int], None] = lambda _: None
    ) -> Float[ndarray, "reply 2"]:
        """Mean log-probability of each reply's tokens, and that of its least likely ones; nan for empty replies."""
        keys = list(zip(questions, answers, strict=True))
        fresh = [key for key in dict.fromkeys(keys) if key not in self._remembered]
        progress(len(keys) - len(fresh))
        prompts = [self.model.render([{"role": "user", "content": question}], self.system) for question, _ in fresh]
        replies = [self.model.reply_ids(answer) for _, answer in fresh]
        known = {key: self._remembered[key] for key in dict.fromkeys(keys) if key in self._remembered}
        for key, logprob in zip(fresh, reply_logprobs(self.model, prompts, replies, progress), strict=True):
            ordered = logprob.sort().values
            worst = ordered[: max(1, round(WORST * len(ordered)))]
            known[key] = (float(ordered.mean()), float(worst.mean())) if len(ordered) else (np.nan, np.nan)
        self._remembered = {**(self._remembered if len(self._remembered) < REMEMBERED else {}), **known}
        return np.array([known[key] for key in keys]).reshape(len(keys), 2)
