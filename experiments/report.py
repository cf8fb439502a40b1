"""Writes the report of a finished run again: report.html, a single file that loads nothing else.

    python -m experiments.report runs/default-sigma0.5
    python -m experiments.report runs/* --embedding tsne

A run writes its report at its end, unless --no-figures is given. Write it again after an update of
jaxdae, or for another view of the latent space.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from jaxdae.errors import InputError

from . import program
from .common import cli

PROGRAM = program("report")


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    folders: tyro.conf.Positional[
        Annotated[tuple[Path, ...], tyro.conf.arg(metavar="RUN [RUN ...]")]
    ]
    """Folders of finished runs."""
    embedding: Literal["pca", "tsne", "umap"] = "pca"
    """Also show the latent space by t-SNE or UMAP, besides its principal components."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: the command line is wrong.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    if not arguments.folders:
        raise InputError(f"{PROGRAM} needs the folder of a finished run: give one or several")
    return arguments


def run(arguments: Arguments) -> None:
    """Writes the report of each run.

    Raises:
      InputError: a folder holds no finished run, or a package is missing.
    """
    from .reports import latent, material, report

    latent.check_embedding(arguments.embedding)
    for folder in arguments.folders:
        read = material.with_errors(material.read(folder))
        vectors, restore = material.latent_vectors(read), material.restorer(read)
        report.write(read, vectors, restore, folder, arguments.embedding)
        print(f"{folder / report.FILE}: written")


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 wrong input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported until the command line is known to be good.
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "fix this, and try again")


if __name__ == "__main__":
    sys.exit(main())
