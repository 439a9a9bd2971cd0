"""A line on stderr that shows how many prompts are done."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .calls import Done

_WORTH = 2
"""With fewer prompts, nothing is shown."""


@contextmanager
def progress_line(what: str, count: int, is_wanted: bool) -> Iterator[Done]:
    """A line for `count` prompts, on a terminal or in a notebook. Yields what is to be called for each of them."""
    console = Console(stderr=True)
    is_seen = console.is_terminal or console.is_jupyter
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
    )
    shown = Progress(*columns, console=console, disable=not (is_wanted and is_seen and count >= _WORTH))
    with shown:
        task, tokens = shown.add_task(what, total=count, rate=""), 0

        def done(num_tokens: int) -> None:
            nonlocal tokens
            tokens += num_tokens
            seconds = shown.tasks[task].elapsed or 0.0
            shown.update(task, advance=1, rate=f"{tokens / seconds:,.0f} tokens/s" if seconds else "")

        yield done
