"""A run that is killed between two parts of a table."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from personavec.verbs.screen.table import Table


@contextmanager
def killed_after(parts: int) -> Iterator[None]:
    """The run ends, as by Ctrl-C, where it would write one part more than these."""
    write, written = Table.write, []

    def dying(folder: Path, part: str, table: Any) -> None:
        if len(written) == parts:
            raise KeyboardInterrupt
        write(folder, part, table)
        written.append(part)

    with mock.patch.object(Table, "write", staticmethod(dying)):
        yield
