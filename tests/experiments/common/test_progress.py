"""The progress bar, on a terminal and elsewhere."""

import io

import pytest
from rich.console import Console

from experiments.common.progress import progress_bar


def terminal():
    return Console(file=io.StringIO(), force_terminal=True, width=90)


def test_shows_how_far_it_is():
    console = terminal()
    with progress_bar(200, True, console, description="epoch 1/2", status="compiling") as change:
        change(advance=50, status="loss 0.1")
        change(completed=150, total=300, description="epoch 2/2", status="loss 0.05")
    shown = console.file.getvalue()
    for text in ("epoch 2/2", " 50%", "loss 0.05"):
        assert text in shown


@pytest.mark.parametrize(
    ("wanted", "console"), [(False, terminal()), (True, Console(file=io.StringIO()))]
)
def test_is_silent_if_unwanted_or_not_on_a_terminal(wanted, console):
    with progress_bar(200, wanted, console) as change:
        change(advance=50, status="loss 0.1")
    assert console.file.getvalue() == ""
