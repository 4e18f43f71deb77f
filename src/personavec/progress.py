"""Progress of long stages, on stderr."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn


@contextmanager
def stage(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar for one stage; yields a function that is told how many more are done."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console) as progress:
        task = progress.add_task(title, total=total)
        yield lambda n: progress.advance(task, n)


def tell(text: str) -> None:
    """A line on stderr, beside the bars."""
    Console(stderr=True, highlight=False).print(text, soft_wrap=True, markup=False)
