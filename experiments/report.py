"""The page of a run: report.html, one file with all there is to see of it, and nothing to fetch.

    python -m experiments.report runs/default-sigma0.5
    python -m experiments.report runs/* --embedding tsne

A run writes its page when it ends, with its figures. This writes it again: after an update, or with
another view of the latent space.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from jaxdae.errors import InputError

from . import program
from .common import cli
from .reports.latent import Embedding, check_embedding
from .reports.material import latent_vectors, measured, read, restorer
from .reports.report import FILE, write

PROGRAM = program("report")


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    embedding: Embedding = "pca"
    """Show the latent space by t-SNE or UMAP too, beside its principal components."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    if not arguments.folders:
        raise InputError(f"{PROGRAM} takes the folder of a finished run, or several: give one")
    return arguments


def run(arguments: Arguments) -> None:
    """Writes the page of each run again.

    Raises:
      InputError: there is no finished run in a folder, or a package is missing.
    """
    if arguments.embedding != "pca":
        check_embedding(arguments.embedding)
    for folder in arguments.folders:
        material = measured(read(folder))
        write(
            material,
            latent_vectors(material),
            restorer(material),
            folder,
            arguments.embedding,
        )
        print(f"{folder / FILE}: written")


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported before the command line is known to be good.
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "mend that, and try again")


if __name__ == "__main__":
    sys.exit(main())
