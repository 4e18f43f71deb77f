"""On what terms a server answers: who may ask, how much, and what is kept of it."""

from dataclasses import dataclass
from typing import Literal, TypedDict

from personavec.errors import ConfigError
from personavec.runs.rules import Count, Free, Natural, Positive, check

LOOPBACK = ("127.0.0.1", "localhost", "::1")
KEY = "PERSONAVEC_API_KEY"
"""Where the server's key comes from, unless it is an option: other users of the machine see options."""

Guard = Literal["reject", "clamp", "warn"]


class TermOptions(TypedDict, total=False):
    """Fields of `Terms`."""

    system: str
    max_dose: float
    guard: Guard
    rows_at_once: int
    queue: int
    prefix_mib: int
    deadline: float
    max_tokens: int
    max_request_bytes: int
    host: str
    key: str | None
    keep_text: bool


@dataclass(frozen=True)
class Offer:
    """How much a server does for a request, and where it listens."""

    system: str = "template"
    """System prompt of conversations without one: template (what the chat template does by itself), none, or a text."""
    max_dose: Positive = 0.7
    """Largest dose that a request may add in all."""
    guard: Guard = "reject"
    """What happens beyond the largest dose: an error, less of it, or only a warning."""
    rows_at_once: Free[Count] = 16
    """Replies that are written at once, in one batch."""
    queue: Count = 64
    """Replies that may wait; one more gets status 429."""
    prefix_mib: Free[Natural] = 512
    """Mebibytes for what was read of conversations, so that their next turn reads only what is new; 0 keeps nothing."""
    deadline: Positive = 120.0
    """Seconds that a reply may take, waiting included; then status 504."""
    max_tokens: Count = 4096
    """Most tokens that a request may have written, n replies together."""
    max_request_bytes: Count = 1048576
    """Longest body of a request."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's own needs a key."""


@dataclass(frozen=True)
class Terms(Offer):
    """What requests may ask of a server."""

    key: str | None = None
    """Key that requests must name."""
    keep_text: bool = False
    """Keep conversations in the log too."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))
        check_host(self.host, self.key)


def check_host(host: str, key: str | None) -> None:
    """Check that nobody but this machine asks without a key.

    Raises:
        ConfigError: Others could.
    """
    if host not in LOOPBACK and not key:
        raise ConfigError(f"expected a key with --host {host}, got none; set {KEY}")
