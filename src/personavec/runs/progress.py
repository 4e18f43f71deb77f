"""Progress of long stages, on stderr: a bar in a terminal and in a notebook, a line now and then in a plain file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from html import escape
from importlib import import_module
from typing import Any

EVERY_SECONDS = 30.0
"""Between two lines in a plain file."""
REFRESH_SECONDS = 0.3
"""Between two pictures of a notebook's bar."""

Advance = Callable[[int], None]
"""Say how many more are done."""


@contextmanager
def stage(title: str, total: int) -> Iterator[Advance]:
    """Show one stage; yields a function that is given how many more are done."""
    from rich.console import Console

    console = Console(stderr=True)
    terminal = _bar(title, total, console) if console.is_terminal else _lines(title, total)
    with _in_notebook(title, total) if _notebook() else terminal as advance:
        yield advance


@contextmanager
def _bar(title: str, total: int, console: Any) -> Iterator[Advance]:
    from rich import progress as bar

    times = (bar.TimeElapsedColumn(), bar.TimeRemainingColumn())
    columns = (bar.TextColumn("{task.description:<34}"), bar.BarColumn(), bar.MofNCompleteColumn(), *times)
    with bar.Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda n: progress.advance(task, n)


@contextmanager
def _lines(title: str, total: int) -> Iterator[Advance]:
    began = shown = time.monotonic()
    done = 0

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        if time.monotonic() - shown >= EVERY_SECONDS:
            shown = time.monotonic()
            left = (shown - began) * (total - done) / max(done, 1)
            tell(f"{title}: {done:,} of {total:,}, about {left / 60:.1f} min to go")

    yield advance
    tell(f"{title}: {done:,} of {total:,} in {time.monotonic() - began:.0f} s")


@contextmanager
def _in_notebook(title: str, total: int) -> Iterator[Advance]:
    notebook: Any = import_module("IPython.display")

    began = shown = time.monotonic()
    done = 0

    def picture() -> Any:
        bar = f'<progress value="{done}" max="{max(total, 1)}"></progress>'
        return notebook.HTML(
            f"<div>{escape(title)} {bar} {done:,} of {total:,}, {time.monotonic() - began:.0f} s</div>"
        )

    handle = notebook.display(picture(), display_id=True)

    def advance(n: int) -> None:
        nonlocal done, shown
        done += n
        if time.monotonic() - shown >= REFRESH_SECONDS:
            shown = time.monotonic()
            handle.update(picture())

    try:
        yield advance
    finally:
        handle.update(picture())


def _notebook() -> bool:
    """Whether this process is the kernel of a notebook; nothing is imported to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython else None
    return type(shell).__name__ == "ZMQInteractiveShell"


def tell(text: str) -> None:
    """A line on stderr, beside the bars."""
    from rich.console import Console

    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)
