"""Trains recipes at noise levels and seeds, and compares them at noise levels of the test images.

    python -m experiments.sweep --recipes default classic --sigmas 0.5 1.0 --seeds 0 1 2
    python -m experiments.sweep --recipes default --epochs 1 --eval-sigmas 0.5 --out runs/short

Every run is one of experiments.run, in a folder of its own, OUT/RECIPE-sigmaSIGMA-seedSEED. The
same command again goes on where it was stopped: finished runs are read, a begun one is resumed.
More seeds, noise levels or recipes may be asked for later.

OUT holds, beside the runs and as soon as one is finished: results.csv (a row for each run and noise
level of the test images), results.md (mean and standard deviation over the seeds) and
error_against_sigma.png.
"""

import argparse
import csv
import io
import json
import os
import shlex
import statistics
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from jaxdae.errors import DivergenceError, InputError
from jaxdae.recipes import RECIPES, Config, read_config

from . import program
from .common import cli
from .common.flags import FREE, Arguments, check_meant, parse

# This module imports nothing heavy, so that `--help` answers at once and others can read results.
PROGRAM = program("sweep")
Row = dict[str, Any]

MODEL = ("recipe", "train_sigma", "test_sigma", "epochs", "parameters")  # what a mean is taken in
MEASURED = ("mse", "psnr", "ssim", "bce", "digit_recovery", "train_seconds")
COLUMNS = (
    *("recipe", "train_sigma", "seed", "test_sigma"),
    *("mse", "psnr", "ssim", "bce", "digit_recovery"),
    *("epochs", "parameters", "train_seconds", "params_sha256"),
)
# Of the tables: what each is called, how it is written, and what it is multiplied by.
SHOWN = {
    "mse": ("MSE", "{:.5f}", 1),
    "psnr": ("PSNR (dB)", "{:.2f}", 1),
    "ssim": ("SSIM", "{:.4f}", 1),
    "bce": ("BCE", "{:.4f}", 1),
    "digit_recovery": ("digits read (%)", "{:.2f}", 100),
}
OWN = {"recipe": "--recipes", "sigma": "--sigmas", "seed": "--seeds"}  # instead of a run's own


class Options(NamedTuple):
    """What the command line takes.

    Fields:
      sigmas: to train at; the recipe's own if there are none.
      rest: the words for `experiments.run`, the same for every run.
    """

    recipes: list[str]
    sigmas: list[float]
    seeds: list[int]
    out: Path
    rest: list[str]


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see --help")


def parse_options(argv: Sequence[str]) -> Options:
    """Parses the command line; what is not a flag of the sweep's is left for the runs.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    listing = "\n".join(f"  {name}: {text}" for name, (_, text) in RECIPES.items())
    shared = [f"--{field.name.replace('_', '-')}" for field in fields(Config)]
    shared = [flag for flag in shared if flag.removeprefix("--") not in OWN]
    shared += sorted(FREE - {"--resume", *shared})
    parser = _Parser(
        prog=PROGRAM,
        description=cli.as_typed(f"{__doc__}\nRecipes:\n{listing}"),
        epilog="These flags of one run go to every run, instead of the recipe's own "
        f"values:\n{textwrap.fill(' '.join(shared), 78, break_on_hyphens=False)}\n"
        f"What they mean, and a recipe's own values: {program('run')} --recipe NAME --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--recipes",
        nargs="+",
        default=["default"],
        metavar="NAME",
        help="of the list above (default: default)",
    )
    parser.add_argument(
        "--sigmas",
        nargs="+",
        type=float,
        default=[],
        metavar="SIGMA",
        help="noise levels to train at, each in a run of its own (default: the recipe's; a recipe "
        "with a range keeps it)",
    )
    parser.add_argument(
        "--seeds",
        nargs="+",
        type=int,
        default=[0, 1, 2],
        metavar="N",
        help="each decides the initial weights, the order of the images and the noise of a run "
        "(default: 0 1 2)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/sweep"),
        metavar="DIR",
        help="folder to write to (default: runs/sweep)",
    )
    known, rest = parser.parse_known_args(argv)
    typed = [word.split("=")[0].replace("_", "-") for word in rest if word.startswith("--")]
    for name, flag in OWN.items():
        if f"--{name}" in typed:
            raise InputError(f"--{name} is for a single run: give {flag} here")
    if "--resume" in typed:
        raise InputError(
            "--resume is for a single run: a sweep goes on when its command is given again"
        )
    recipes, sigmas, seeds = map(dict.fromkeys, (known.recipes, known.sigmas, known.seeds))
    return Options([*recipes], [*sigmas], [*seeds], known.out, rest)


def read_runs(folders: Iterable[Path]) -> list[Row]:
    """The results of finished runs: a row, of `COLUMNS`, for each noise level of the test images.

    Sigmas are text: "0.5", "0.1-1.05" for a range. A corruption without a sigma has an empty
    "train_sigma", and is itself the "test_sigma". A value that a run does not have is None.

    Raises:
      InputError: a folder holds no finished run, or its files are damaged.
    """
    rows = []
    for folder in map(Path, folders):
        config, path = read_config(folder), folder / "summary.json"
        try:
            summary = json.loads(path.read_text())
            same = {k: summary[k] for k in COLUMNS if k in summary}
            for level, metrics in summary["test"].items():
                train = level_name(config.sigma) if _number(level) is not None else ""
                row = {"train_sigma": train, "test_sigma": level, **same, **metrics}
                row["digit_recovery"] = metrics.get("recovery")
                rows.append({name: row[name] for name in COLUMNS})
        except (AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
            raise InputError(
                f"{path} {what}: delete it if it is there, and make it with "
                f"{program('run')} --resume {folder}"
            ) from None
    return rows


def summarize(rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds, in the order of the rows.

    A row for each of what `MODEL` names together, with "seeds", their number, and "NAME_mean" and
    "NAME_sd" for each name in `MEASURED`. The deviation is that of a sample (n - 1), and None of a
    single seed; both are None if a run does not have the value.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in MODEL), []).append(row)
    summaries = []
    for key, group in groups.items():
        summary: Row = {**dict(zip(MODEL, key, strict=True)), "seeds": len(group)}
        for name in MEASURED:
            values = [row[name] for row in group]
            known = None not in values
            summary[f"{name}_mean"] = statistics.fmean(values) if known else None
            summary[f"{name}_sd"] = statistics.stdev(values) if known and len(values) > 1 else None
        summaries.append(summary)
    return summaries


def table(summaries: Sequence[Row]) -> list[list[str]]:
    """What `summarize` gives as text for readers, the headings first."""
    measured = {
        name: how
        for name, how in SHOWN.items()
        if any(row[f"{name}_mean"] is not None for row in summaries)
    }
    titles = ["recipe", "trained at", "tested at", "epochs", "seeds"]
    lines = [[*titles, *(title for title, _, _ in measured.values())]]
    for row in summaries:
        line = [row["recipe"], row["train_sigma"], row["test_sigma"]]
        line += [str(row["epochs"]), str(row["seeds"])]
        for name, (_, style, factor) in measured.items():
            mean, sd = row[f"{name}_mean"], row[f"{name}_sd"]
            text = "" if mean is None else style.format(factor * mean)
            if sd is not None:  # a line may break before the sign, and not after it
                text += f" ±\N{NO-BREAK SPACE}{style.format(factor * sd)}"
            line.append(text)
        lines.append(line)
    return lines


def fit(lines: list[list[str]], width: int) -> list[list[str]]:
    """A table for a terminal: with broken cells, and then without some columns, if it must be."""

    def too_wide(lines: list[list[str]]) -> bool:
        columns = ("\n".join(column).split("\n") for column in zip(*lines, strict=True))
        return 1 + sum(3 + max(map(len, column)) for column in columns) > width

    if too_wide(lines):
        lines = [[cell.replace(" ", "\n") for cell in line] for line in lines]
    if too_wide(lines):
        kept = [i for i, title in enumerate(lines[0]) if title not in ("epochs", "seeds", "BCE")]
        lines = [[line[i] for i in kept] for line in lines]
    return lines


def level_name(sigma: Sequence[float]) -> str:
    """The sigma, or the range, that a run is trained at, in a word."""
    return "-".join(str(float(value)) for value in sigma)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def plan(options: Options, recipes: Sequence[Arguments]) -> tuple[dict[Path, Arguments], list[str]]:
    """The runs by folder, and what to say of recipes that --sigmas is not for."""
    from jaxdae.trainer import NOISE_LEVELS

    runs: dict[Path, Arguments] = {}
    notes = []
    for arguments in recipes:
        config = arguments.config
        has_level = config.corruption in NOISE_LEVELS
        sigmas, name = [config.sigma], str(config.corruption)
        if has_level and len(config.sigma) == 1:
            sigmas = [(sigma,) for sigma in options.sigmas] or sigmas
        elif options.sigmas:
            low, high = config.sigma[0], config.sigma[-1]
            why = f"draws sigma from {low:g} to {high:g}" if has_level else f"has no sigma ({name})"
            notes.append(f"{config.recipe} {why}: trained once for each seed, not at --sigmas")
        for sigma, seed in product(sigmas, options.seeds):
            if has_level:
                name = f"sigma{level_name(sigma)}"
            folder = options.out / f"{config.recipe}-{name}-seed{seed}"
            single = replace(config, sigma=sigma, seed=seed)
            runs[folder] = replace(arguments, config=single, out=folder)
    return runs, notes


def take_up(folder: Path, arguments: Arguments) -> Arguments:
    """The arguments that go on with the run in the folder, if there is one.

    Raises:
      InputError: something else is there than the run that is asked for.
    """
    if not (folder / "config.json").exists():
        if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
            raise InputError(
                f"{folder} is in the way and holds no run (no config.json): rename it, or choose "
                "another --out"
            )
        return arguments
    asked, saved = arguments.config, read_config(folder)
    # As for --resume: the devices may be others, and are as many as before if not given.
    asked = replace(asked, devices=asked.devices or saved.devices)
    changed = [
        f"--{name.replace('_', '-')} {_words(was)} (now {_words(now)})"
        for name in (field.name for field in fields(Config) if field.name != "devices")
        if (was := getattr(saved, name)) != (now := getattr(asked, name))
    ]
    if changed:
        raise InputError(
            f"{folder} holds a run with {', '.join(changed)}: give the same values again, or "
            "choose another --out"
        )
    return replace(arguments, config=asked, resume=folder)


def _words(value: Any) -> str:
    """A value as it is typed after its flag."""
    if value is None:
        return "not given"
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def finished(folders: Iterable[Path]) -> list[Path]:
    """Those of the folders that hold a run's result."""
    return [folder for folder in folders if (folder / "summary.json").exists()]


def write_results(out: Path, rows: Sequence[Row], command: str) -> list[str]:
    """Writes the files of results, and gives their names."""
    from jaxdae.figures import error_against_sigma

    from .runs.experiment import write_text

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(out / "results.csv", text.getvalue())
    names = ["results.csv", "results.md"]

    means: dict[str, dict[float, float]] = {}
    spread: dict[str, dict[float, float]] = {}
    summaries = summarize(rows)
    for row in summaries:
        model, level = f"{row['recipe']}, sigma {row['train_sigma']}", _number(row["test_sigma"])
        if level is not None:
            means.setdefault(model, {})[level] = row["mse_mean"]
            if row["mse_sd"] is not None:
                spread.setdefault(model, {})[level] = row["mse_sd"]
    if means:
        names.append("error_against_sigma.png")
        temporary = out / f".{os.getpid()}.png"
        error_against_sigma(temporary, means, spread=spread)
        os.replace(temporary, out / names[-1])

    titles, *lines = table(summaries)
    rule = ["---", "---", "---", *["---:"] * (len(titles) - 3)]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in [titles, rule, *lines])
    picture = f"\n![Error against sigma]({names[-1]})\n" if means else ""
    write_text(
        out / "results.md",
        f"# Sweep\n\n    {command}\n\nRestored images: mean ± sample standard deviation "
        f"over the seeds. Trained and tested at: sigma\nof the noise.\n\n{grid}\n{picture}",
    )
    return names


def sweep(options: Options, command: str) -> int:
    """Checks everything, trains what is not trained, writes the results; 0, or 1 if any diverged.

    Raises:
      InputError: a value that cannot be, said in one line, before anything is trained.
    """
    recipes = [parse(["--recipe", name, *options.rest], strict=False) for name in options.recipes]
    check_meant([arguments.config for arguments in recipes], options.rest)
    cli.prepare_jax(recipes[0].config.devices, recipes[0].cache)
    import jax
    from rich.console import Console
    from rich.table import Table

    from .reports.report import finish
    from .runs.experiment import Experiment, run

    # A file or a pipe has room for the whole width of the table.
    width = None if sys.stdout.isatty() else 200
    console = Console(highlight=False, soft_wrap=True, markup=False, width=width)
    out = options.out
    runs, notes = plan(options, recipes)
    with _writing(out):
        if (out / "config.json").exists():
            raise InputError(f"--out {out} is the folder of a single run: choose another name")
        runs = {folder: take_up(folder, arguments) for folder, arguments in runs.items()}
        rows = read_runs(done := finished(runs))
    todo = [folder for folder in runs if folder not in done]
    for folder in todo:
        Experiment(runs[folder], console)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        names = write_results(out, rows, command) if rows else []
    for note in notes:
        console.print(note)
    if done:
        console.print(f"{len(done)} of {len(runs)} runs were finished before")
    diverged = False
    for number, folder in enumerate(todo, len(done) + 1):
        console.print(f"\nrun {number} of {len(runs)}: {folder.name}")
        try:
            run(runs[folder], None, finish)
        except DivergenceError as error:  # the others can still be compared
            print(f"stopped: {folder.name}: {error}", file=sys.stderr)
            diverged = True
        else:
            rows = read_runs(finished(runs))
            names = write_results(out, rows, command)
        jax.clear_caches()  # no other run has use for this one's programs
    if rows:
        titles, *lines = fit(table(summarize(rows)), console.width)
        grid = Table(*titles[:3], title="Restored images: mean ± sd over the seeds")
        for title in titles[3:]:
            grid.add_column(title, justify="right")
        for line, following in zip(lines, [*lines[1:], []], strict=True):
            grid.add_row(*line, end_section=line[:2] != following[:2])
        console.print(grid, soft_wrap=False)
        console.print(f"in {out}/: {', '.join(names)}")
    return int(diverged)


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"--out {out} cannot be written ({error.strerror}): choose another folder"
        ) from None


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a run diverged, 2 bad input, 130 interrupted."""
    words = sys.argv[1:] if argv is None else list(argv)
    return cli.status(
        lambda: sweep(parse_options(words), shlex.join([*PROGRAM.split(), *words])),
        "mend that, and give the same command again",
        "interrupted; the same command goes on from here",
    )


if __name__ == "__main__":
    sys.exit(main())
