"""One reply that somebody waits for, from its prompt to its end."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from personavec.model.sampling import Sampling
from personavec.server.api.forms import JsonForm
from personavec.server.reply import Finish, Logprobs, News, RunningReply
from personavec.server.writing.prefixes import Reading
from personavec.steering.generate import Watch, uniforms
from personavec.steering.steer import Steering


@dataclass(eq=False)
class Job:
    """One reply that somebody waits for."""

    prompt: tuple[int, ...]
    sampling: Sampling
    reply: RunningReply
    tell: Callable[[News], None]
    """Called by the engine's thread when the reply has grown or ended; must not block."""
    seed: tuple[int, ...] = (0,)
    steering: tuple[Steering, ...] = ()
    watch: tuple[Watch, ...] = ()
    top_logprobs: int | None = None
    """How many of the most probable tokens are given next to each token; None gives no log-probabilities."""
    deadline: float = float("inf")
    """By the clock of `time.monotonic`."""
    cancelled: bool = False
    """Set if nobody waits any more; the row leaves before the next step."""
    form: JsonForm | None = None
    """What the reply is held to."""
    scores_prompt: bool = False
    """Whether `prompt_logprobs` are wanted."""
    prompt_logprobs: list[Logprobs] = field(default_factory=list)
    """Of each token of the prompt; NaN at the first one, before which nothing stands."""
    reused: int = 0
    """Tokens of the prompt that were not read, because an earlier conversation began with them."""

    def __post_init__(self) -> None:
        self.numbers = uniforms(self.seed, self.sampling.max_new_tokens).tolist()

    @property
    def over(self) -> bool:
        """Whether nothing more is to be written."""
        return self.reply.finish is not None or self.cancelled or time.monotonic() > self.deadline

    @cached_property
    def reading(self) -> Reading:
        """What changes every token of the prompt but the last one."""
        return tuple(added for added in self.steering if added.active and added.positions != "response")

    @property
    def lasting(self) -> int:
        """Tokens of prompt and reply that a later prompt of the same `reading` would read in the same way."""
        alike = all(added.positions == "all" for added in self.steering if added.active)
        return len(self.prompt) + (len(self.reply.ids) if alike else -1)

    def end(self, finish: Finish, error: str | None = None) -> None:
        """Write no more, and say why; nothing if that is over already."""
        if self.reply.finish is None:
            self.reply.finish, self.reply.error = finish, error
            self.tell(self.reply.news())
