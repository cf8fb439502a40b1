"""Trains recipes at several noise levels and seeds, and compares them.

    python -m experiments.sweep --recipes default classic --sigmas 0.5 1.0 --seeds 0 1 2
    python -m experiments.sweep --recipes default --epochs 1 --eval-sigmas 0.5 --out runs/short

Each run is that of `python -m experiments.run`, in its own folder OUT/RECIPE-sigmaSIGMA-seedSEED.
If the sweep is stopped, the same command continues it: finished runs are kept, an unfinished one is
resumed. You can add seeds, noise levels or recipes later.

OUT also holds the results, from the first finished run on: results.csv (a row for each run and
noise level of the test images), results.md (mean and standard deviation over the seeds) and
error_against_sigma.png.
"""

import shlex
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any

import tyro

from jaxdae.config import Config, read_config
from jaxdae.errors import DivergenceError, InputError

from . import program
from .common import cli, flags
from .common.flags import ALLOWED_WITH_RESUME
from .reports.sweep import fit_width, level_name, read_runs, summarize, table, write_results
from .runs.folder import is_empty

# Nothing heavy is imported here: `--help` answers at once.
PROGRAM = program("sweep")
LAYOUT: Any = {"initial_indent": "  ", "subsequent_indent": "  ", "break_on_hyphens": False}
SINGLE = {"--recipe": "--recipes", "--sigma": "--sigmas", "--seed": "--seeds"}  # for one run only


@dataclass(frozen=True)
class Arguments:
    """The flags of the sweep, and the words that are passed to each run."""

    recipes: tuple[str, ...] = ("default",)
    """Recipes of the list above."""
    sigmas: tuple[float, ...] = ()
    """Noise levels to train at, each in its own run. By default the recipe's own. A recipe with a
    range of noise levels keeps its range."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds. Each decides the initial weights, the order of the images and the noise of a run."""
    out: Path = Path("runs/sweep")
    """Folder to write to."""
    rest: tyro.conf.Suppress[tuple[str, ...]] = field(default=())


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line. Words that are no flags of the sweep are passed to the runs.

    Raises:
      InputError: the command line is wrong.
    """
    names = [f"--{part.name.replace('_', '-')}" for part in fields(Config)]
    names = [name for name in names if name not in SINGLE]
    names += sorted(ALLOWED_WITH_RESUME - {"--resume", *names})
    arguments, rest = cli.parse_known(
        Arguments,
        argv,
        prog=PROGRAM,
        description=f"{(__doc__ or '').strip()}\n\nRecipes:\n{flags.recipe_list()}\n\n"
        f"These flags of {program('run')} are passed to every run, instead of the recipe's "
        "values:\n\n"
        f"{textwrap.fill(' '.join(names), 78, **LAYOUT)}\n\n"
        f"{program('run')} --recipe NAME --help explains them, and shows the recipe's values.",
    )
    for name in ("recipes", "sigmas", "seeds"):
        if f"--{name}" in argv and not getattr(arguments, name):
            raise InputError(
                f"--{name} is empty, and needs at least one value: give one or several"
            )
    given = flags.flags_in(rest)
    for flag, instead in SINGLE.items():
        if flag in given:
            raise InputError(f"{flag} is for a single run: give {instead} here")
    if "--resume" in given:
        raise InputError(
            "--resume is for a single run: give the sweep's command again, which continues it"
        )
    return Arguments(
        recipes=tuple(dict.fromkeys(arguments.recipes)),
        sigmas=tuple(dict.fromkeys(arguments.sigmas)),
        seeds=tuple(dict.fromkeys(arguments.seeds)),
        out=arguments.out,
        rest=tuple(rest),
    )


def plan(
    arguments: Arguments, recipes: Sequence[flags.Arguments]
) -> tuple[dict[Path, flags.Arguments], list[str]]:
    """The runs by folder, and notes on recipes that ignore --sigmas."""
    from jaxdae.from_config import has_sigma

    runs: dict[Path, flags.Arguments] = {}
    notes = []
    for recipe in recipes:
        config = recipe.config
        has_level = has_sigma(config)
        sigmas, name = [config.sigma], str(config.corruption)
        if has_level and len(config.sigma) == 1:
            sigmas = [(sigma,) for sigma in arguments.sigmas] or sigmas
        elif arguments.sigmas:
            low, high = config.sigma[0], config.sigma[-1]
            why = f"draws sigma from {low:g} to {high:g}" if has_level else f"has no sigma ({name})"
            notes.append(
                f"{config.recipe} {why}: it is trained once for each seed, not at --sigmas"
            )
        for sigma, seed in product(sigmas, arguments.seeds):
            if has_level:
                name = f"sigma{level_name(sigma)}"
            folder = arguments.out / f"{config.recipe}-{name}-seed{seed}"
            single = replace(config, sigma=sigma, seed=seed)
            runs[folder] = replace(recipe, config=single, out=folder)
    return runs, notes


def resume(folder: Path, arguments: flags.Arguments) -> flags.Arguments:
    """The arguments that resume the run in a folder, or start it if there is none.

    Raises:
      InputError: the folder holds another run, or other files.
    """
    if not (folder / "config.json").exists():
        if folder.exists() and not (folder.is_dir() and is_empty(folder)):
            raise InputError(
                f"{folder} exists and holds no run (no config.json): rename it, or choose another "
                "--out"
            )
        return arguments
    wanted, saved = arguments.config, read_config(folder)
    # As with --resume: the number of devices may change, and stays the same if it is not given.
    wanted = replace(wanted, devices=wanted.devices or saved.devices)
    changed = [
        f"--{name.replace('_', '-')} {_words(old)} (now {_words(new)})"
        for name in (part.name for part in fields(Config) if part.name != "devices")
        if (old := getattr(saved, name)) != (new := getattr(wanted, name))
    ]
    if changed:
        raise InputError(
            f"{folder} holds a run with {', '.join(changed)}: give the same values again, or "
            "choose another --out"
        )
    return replace(arguments, config=wanted, resume=folder)


def _words(value: Any) -> str:
    """A value as it is typed after its flag."""
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def finished(folders: Iterable[Path]) -> list[Path]:
    """The folders that hold a finished run."""
    return [folder for folder in folders if (folder / "summary.json").exists()]


def run(arguments: Arguments, command: str) -> int:
    """Checks everything, trains what is not trained, and writes the results.

    Args:
      command: for results.md.

    Returns:
      0, or 1 if a run diverged.

    Raises:
      InputError: a value is not possible; nothing is trained then.
    """
    rest, out = arguments.rest, arguments.out
    recipes = [flags.parse(["--recipe", r, *rest], strict=False) for r in arguments.recipes]
    flags.check_meant([recipe.config for recipe in recipes], rest)
    cli.prepare_jax(recipes[0].config.devices, recipes[0].cache)
    import jax

    from .reports.report import finish
    from .runs import experiment

    # A file or a pipe has room for the whole table.
    console = cli.make_console(width=None if sys.stdout.isatty() else 200)
    runs, notes = plan(arguments, recipes)
    with _writing(out):
        if (out / "config.json").exists():
            raise InputError(f"--out {out} is the folder of a single run: choose another name")
        runs = {folder: resume(folder, single) for folder, single in runs.items()}
        done = finished(runs)
    rows = read_runs(done)
    todo = [folder for folder in runs if folder not in done]
    for folder in todo:
        experiment.Experiment(runs[folder], console)  # checks its values
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        names = write_results(out, rows, command) if rows else []
    for note in notes:
        console.print(note)
    if done:
        console.print(f"{len(done)} of {len(runs)} runs are finished already")
    diverged = False
    for number, folder in enumerate(todo, len(done) + 1):
        console.print(f"\nrun {number} of {len(runs)}: {folder.name}")
        try:
            experiment.run(runs[folder], None, finish)
        except DivergenceError as error:  # the other runs can still be compared
            print(f"stopped: {folder.name}: {error}", file=sys.stderr)
            diverged = True
        else:
            rows = read_runs(finished(runs))
            names = write_results(out, rows, command)
        jax.clear_caches()  # no other run uses this one's programs
    if rows:
        show(table(summarize(rows)), console)
        console.print(f"in {out}/: {', '.join(names)}")
    return int(diverged)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns an error of the file system into one that names --out."""
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}): choose another folder"
        ) from None


def show(lines: list[list[str]], console: Any) -> None:
    """Prints the table of results."""
    from rich.table import Table

    titles, *lines = fit_width(lines, console.width)
    grid = Table(*titles[:3], title="Restored images: mean ± sd over the seeds")
    for title in titles[3:]:
        grid.add_column(title, justify="right")
    for line, following in zip(lines, [*lines[1:], []], strict=True):
        grid.add_row(*line, end_section=line[:2] != following[:2])
    console.print(grid, soft_wrap=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a run diverged, 2 wrong input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    return cli.status(
        lambda: run(parse(words), shlex.join([*PROGRAM.split(), *words])),
        "fix this, and give the same command again",
        "interrupted; the same command continues the sweep",
    )


if __name__ == "__main__":
    sys.exit(main())
