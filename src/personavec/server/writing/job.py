"""One reply that somebody waits for, from its prompt to its end, and what is said where there is none."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

from personavec.errors import PersonavecError
from personavec.model.sampling import Sampling
from personavec.server.api.forms import JsonForm
from personavec.server.limits import LOG
from personavec.server.reply import Finish, Logprobs, News, RunningReply
from personavec.server.writing.prefixes import Reading
from personavec.steering.generate import Watch, uniforms
from personavec.steering.steer import Steering


class Full(PersonavecError):
    """There is no room for one more reply now."""


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
    alone: bool = False
    """Whether it is read when nothing else is under way: next to others, memory ran out."""

    def __post_init__(self) -> None:
        self.numbers = uniforms(self.seed, self.sampling.max_new_tokens).tolist()

    @property
    def scored_now(self) -> bool:
        """Whether its prompt is to be scored when it is read; it has been, once a token was written."""
        return self.scores_prompt and not self.reply.ids

    @property
    def tokens(self) -> tuple[int, ...]:
        """What it is read from: the prompt, and what was written before it had to wait again."""
        return (*self.prompt, *self.reply.ids)

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


def reason(error: BaseException) -> str:
    """What the asker is told; who runs the server is told what else went wrong."""
    if isinstance(error, PersonavecError):
        return str(error)
    LOG.error("a reply failed", exc_info=error)
    return "expected to write the reply, got an error of this server; its log says which"
