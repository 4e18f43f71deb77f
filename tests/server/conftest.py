"""An engine of the tiny model."""

from collections.abc import Iterator

import pytest
from support import tiny
from support.tiny import hooks

from personavec.server.writing.engine import Engine


@pytest.fixture
def engine() -> Iterator[Engine]:
    """Its thread owns its model: another one, of the same weights."""
    made = Engine(tiny.build("llama"), rows=4, queue=64)
    yield made
    made.close(5)
    assert hooks(made.model) == 0
