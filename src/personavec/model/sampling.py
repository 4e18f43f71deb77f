"""How the next token is drawn, and how replies are written."""

from dataclasses import dataclass, fields
from typing import Literal

from personavec.runs.rules import Count, Free, Share, Temperature, check

COLDEST = 1e-4
"""Temperature below which the most probable token is taken; another one would have to lie within 0.01 nats of it."""


@dataclass(frozen=True)
class Sampling:
    """How the next token is drawn; the same for steered and unsteered replies."""

    max_new_tokens: Count
    temperature: Temperature = 1.0
    """0 is greedy."""
    top_p: Share = 1.0
    """Keep the smallest set of tokens that holds this probability."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))

    @property
    def sampling(self) -> dict[str, float]:
        """These three alone, for cards and results."""
        return {field.name: getattr(self, field.name) for field in fields(Sampling)}


@dataclass(frozen=True, kw_only=True)
class Writing:
    """How replies are written."""

    max_new_tokens: Count = 32
    """Longest reply, in tokens. Large models deserve 200 or more."""
    temperature: Temperature = 0.7
    """Of sampling; 0 is greedy. The paper uses 1, where a 135M model writes word salad."""
    top_p: Share = 1.0
    """Sample from the smallest set of tokens that holds this probability."""
    batch_tokens: Free[Count] = 12288
    """Tokens in one batch of replies being written, prompts included; lower it when memory runs out there."""
    reasoning: Literal["out", "in"] = "out"
    """Whether a <think> block counts as part of the reply; end-of-turn tokens never do."""
    system: str = "template"
    """System prompt where no trait instruction stands: template (the chat template's own default), none, or a text."""
