"""The progress bar of all commands."""

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console


@contextlib.contextmanager
def progress_bar(
    total: float, wanted: bool, console: "Console", **fields: Any
) -> Iterator[Callable[..., None]]:
    """Shows a progress bar, and gives the function that changes it.

    The function takes `advance` or `completed`, `total`, `description` (left of the bar) and
    `status` (right of it). It does nothing unless the bar is wanted and the console is a terminal.

    Args:
      total: the amount of work.
      console: where the command prints its lines, so that they do not overwrite the bar.
      fields: description and status at the start.
    """
    if not (wanted and console.is_terminal):
        yield lambda **_: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:3.0f}%  {task.fields[status]}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(**{"description": "", "status": "", **fields}, total=total)
        yield lambda **changes: bar.update(task, **changes)
