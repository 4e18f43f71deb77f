"""On which terms a server serves: its bounds, its key, and what it keeps."""

import os
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Annotated, Literal

from personavec.errors import ConfigError
from personavec.runs.rules import Count, Positive, above, check

LOOPBACK = ("127.0.0.1", "localhost", "::1")
LOG = Path("runs/serve/turns.db")
"""Where turns are logged, unless it is said."""
KEY = "PERSONAVEC_API_KEY"
"""Where the server's key comes from, unless it is given: other users of the machine see options."""


def check_watch(watch: Sequence[str]) -> None:
    """Raise ConfigError unless it is all, none, or traits."""
    if len({"all", "none"} & {*watch}) and len(watch) > 1:
        raise ConfigError(f"expected all, none, or traits, got {' '.join(watch)}; correct --watch")


@dataclass(frozen=True)
class Terms:
    """Bounds of requests, the address and its key, and what is kept of conversations.

    Raises:
        ConfigError: A value breaks its rule, or an address that others reach has no key.
    """

    _: KW_ONLY
    system: str = "template"
    """System prompt of conversations without one: template, none, or a text."""
    max_dose: Positive = 0.7
    """Largest dose that a request may add in all."""
    guard: Literal["reject", "clamp", "warn"] = "reject"
    """What happens beyond the largest dose: an error, less of it, or only a warning."""
    rows_at_once: Count = 16
    """Replies that are written at once, in one batch."""
    queue: Count = 64
    """Replies that may wait; one more gets status 429."""
    deadline: Positive = 120.0
    """Seconds that a reply may take, waiting included; then status 504."""
    max_tokens: Count = 4096
    """Most tokens that a request may have written, n replies together."""
    max_request_bytes: Count = 1048576
    """Longest body of a request."""
    host: str = "127.0.0.1"
    """Address to listen at; any but this machine's needs a key."""
    port: int = 8000
    """0 takes a free one."""
    api_key: str = ""
    """Key that requests must name; default that of the environment."""
    keep_text: bool = False
    """Keep conversations in the log too."""
    retention_days: Annotated[float | None, above(0)] = 30.0
    """Days after which a turn is removed from the log."""

    def __post_init__(self) -> None:
        check(type(self), vars(self))
        if self.host not in LOOPBACK and not self.key:
            raise ConfigError(f"expected a key with --host {self.host}, got none; set {KEY}")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"expected a port from 0 to 65535, got {self.port}; correct it")

    @property
    def local(self) -> bool:
        """Whether only this machine reaches it."""
        return self.host in LOOPBACK

    @property
    def key(self) -> str | None:
        """The key that requests must name."""
        return self.api_key or os.environ.get(KEY) or None
