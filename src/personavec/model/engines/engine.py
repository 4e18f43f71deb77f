"""What verbs ask of a model that runs elsewhere; one that runs in this process does the same by our own loop.

`generate`, `activations`, `activation_norms`, `reply_logprobs` and `idle_layers` are the seam: each of them asks the
engine of its model, if that has one, so that nobody above them knows which it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from personavec.model.sampling import Sampling

Row = Mapping[str, Any]


class Order(NamedTuple):
    """One reply to write, as it is sent."""

    prompt: Sequence[int]
    """Token ids up to where the reply begins."""
    steering: Sequence[Mapping[str, Any]] = ()
    """Each in plain data: vector (its content hash), layer, coef, op, positions, and bounds."""
    seed: int = 0
    """Of the random numbers."""
    vectors: Mapping[str, Callable[[], bytes]] = {}
    """Makes the file of each vector that is named, by content hash."""


class WrittenReply(NamedTuple):
    """One reply."""

    place: int
    """Of its order among all."""
    ids: tuple[int, ...]
    """Token ids, without the end-of-turn token."""
    finish: Literal["stop", "length"]


@runtime_checkable
class ModelEngine(Protocol):
    """A model elsewhere. What is asked of it comes in token ids, and so does what it answers."""

    name: str
    """Who computes."""
    dtype: str
    """Number format there; a run stays on one of each."""
    context: int
    """Tokens that prompt and reply may have together."""

    def write(self, orders: Sequence[Order], sampling: Sampling) -> Iterator[list[WrittenReply]]:
        """Write replies; yields those that have come, in any order.

        Raises:
            ModelError: It cannot go on; what was yielded is good.
        """
        ...

    def means(
        self, rows: Sequence[Row], positions: Sequence[str], layers: Sequence[int] | None
    ) -> Iterator[tuple[list[int], Float[Tensor, "batch span layer d_model"]]]:
        """Mean activations of conversations, see `activations`.

        Raises:
            ModelError: As `write`.
        """
        ...

    def gradients(
        self, rows: Sequence[Row], layers: Sequence[int]
    ) -> Iterator[tuple[list[int], Float[Tensor, "batch 1 layer d_model"]]]:
        """Gradients of the likelihood of each conversation's reply, see `likelihood_gradients`.

        Raises:
            ModelError: As `write`; or it does not run backwards.
        """
        ...

    def norms(self, rows: Sequence[Row]) -> Iterator[tuple[list[int], Float[Tensor, "batch layer"]]]:
        """Mean length of the activations of each conversation's reply.

        Raises:
            ModelError: As `write`.
        """
        ...

    def logprobs(
        self, prompts: Sequence[Sequence[int]], replies: Sequence[Sequence[int]], progress: Callable[[int], None]
    ) -> list[Float[Tensor, " seq"]]:
        """Log-probability of each reply's tokens after its prompt, in nats, see `reply_logprobs`.

        Raises:
            ModelError: As `write`.
        """
        ...

    def idle_layers(self) -> tuple[int, ...]:
        """Blocks that do not run on text alone.

        Raises:
            ModelError: As `write`.
        """
        ...
