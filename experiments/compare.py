"""Compares finished runs: prints a table, and writes a page with their learning curves and images.

    python -m experiments.compare runs/default-sigma0.5 runs/classic-sigma0.5
    python -m experiments.compare runs/sweep/* --out sweep.html

All runs must have the same test images. The page is a single file that loads nothing else.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jaxdae.errors import InputError
from jaxdae.files import write_whole

from . import program
from .common import cli

PROGRAM = program("compare")
MARK = b'<meta name="generator" content="jaxdae compare">'
FIXED = 6  # columns of the table before those of the noise levels


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    folders: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]
    ]
    """Folders of finished runs."""
    out: Path = Path("compare.html")
    """The page to write. An older page of this command is replaced, no other file is."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: the command line is wrong, or names fewer than two runs.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    folders = {folder.resolve(): folder for folder in arguments.folders}
    if len(folders) < 2:
        raise InputError(f"{PROGRAM} needs the folders of at least two runs: give another")
    if len(folders) < len(arguments.folders):
        raise InputError(f"a run is given twice among {len(arguments.folders)}: give it once")
    return arguments


def run(arguments: Arguments) -> None:
    """Prints the table, and writes the page.

    Raises:
      InputError: a folder holds no finished run, the runs have different test images, or --out is
        another file.
    """
    check_out(arguments.out)
    from .reports import comparison

    runs = comparison.read_runs(arguments.folders)
    table = comparison.results(runs)
    show(table)
    write_whole(arguments.out, comparison.page(runs, table))
    print(f"{arguments.out}: written")


def check_out(out: Path) -> None:
    """Raises an `InputError` if the page would replace another file."""
    if out.is_dir():
        raise InputError(f"--out {out} is a folder, and must be a file: give {out}/compare.html")
    if out.exists() and MARK not in out.read_bytes()[:2000]:
        raise InputError(f"--out {out} exists, and is not a page of {PROGRAM}: choose another name")


def show(table: dict[str, Any]) -> None:
    """Prints the table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    console = cli.make_console()
    # The noise levels get their own table: both fit a terminal of 80 columns.
    for columns in (range(FIXED), range(FIXED, len(table["heads"]) - 1)):
        if not columns:
            continue
        drawn = Table("run", box=SIMPLE_HEAD)
        for i in columns:
            drawn.add_column(table["heads"][i + 1], justify="right", no_wrap=True)
        for name, cells in table["rows"]:
            drawn.add_row(name, *(cells[i] for i in columns))
        console.print(drawn)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 wrong input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported until the command line is known to be good.
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "choose another --out")


if __name__ == "__main__":
    sys.exit(main())
