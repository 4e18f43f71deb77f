"""How the next token is drawn."""

from dataclasses import dataclass, fields

from personavec.runs.rules import Count, Share, Temperature, check


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
