"""Finished runs beside each other: a table, and a page with their curves and what they restore.

    python -m experiments.compare runs/default-sigma0.5 runs/classic-sigma0.5
    python -m experiments.compare runs/sweep/* --out sweep.html

The runs must have been tested on the same images. The page is one file, with nothing to fetch.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import tyro

from jaxdae.errors import InputError
from jaxdae.recipes import Config

from . import program
from .common import cli
from .reports import material as materials
from .reports import page as pages
from .reports import report
from .reports.material import Material
from .reports.page import Picture

PROGRAM = program("compare")
MARK = '<meta name="generator" content="jaxdae compare">'
FIXED = 6  # columns of the table before those of the noise levels
CONTENTS = {
    "results": "Results",
    "differences": "What differs",
    "curves": "Learning curves",
    "sigma": "Error against sigma",
    "images": "The same images",
}


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    folders: tyro.conf.Positional[tuple[Path, ...]]
    """Folders of finished runs."""
    out: Path = Path("compare.html")
    """The page to write; one that this command wrote is replaced."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed, in one line, or fewer than two runs.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    folders = {folder.resolve(): folder for folder in arguments.folders}
    if len(folders) < 2:
        raise InputError(f"{PROGRAM} takes the folders of two runs at least: give another")
    if len(folders) < len(arguments.folders):
        raise InputError(f"a run is given twice among {len(arguments.folders)}: leave it out once")
    return arguments


def run(arguments: Arguments) -> None:
    """Prints the table, and writes the page.

    Raises:
      InputError: a folder holds no finished run, the runs were tested on different images, or
        `--out` is something else.
    """
    from .runs.experiment import write_text

    check_out(arguments.out)
    runs = gather(arguments.folders)
    table = results(runs)
    show(table)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, page(runs, table))
    print(f"{arguments.out}: written")


def check_out(out: Path) -> None:
    """Raises if the page would replace something else."""
    if out.is_dir():
        raise InputError(f"--out {out} is a folder, and must be a file: give {out}/compare.html")
    if out.exists() and MARK.encode() not in out.read_bytes()[:2000]:
        raise InputError(
            f"--out {out} is there already, and no page of {PROGRAM}: choose another name"
        )


def gather(folders: Sequence[Path]) -> dict[str, Material]:
    """The runs by name: their folders' names, or paths where names are the same.

    Raises:
      InputError: a folder holds no finished run, or the runs were tested on different images.
    """
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        names = [os.path.normpath(folder) for folder in folders]
    runs: dict[str, Material] = {}
    for name, folder in zip(names, folders, strict=True):
        runs[name] = material = materials.read(folder)
        first = next(iter(runs.values()))
        if not np.array_equal(first.run.dataset.test.images, material.run.dataset.test.images):
            raise InputError(
                f"the runs in {folders[0]} ({tested_on(first)}) and {folder} "
                f"({tested_on(material)}) were tested on different images: compare runs that were "
                "tested on the same"
            )
        # The images are held once, however many the runs.
        runs[name] = material._replace(run=material.run._replace(dataset=first.run.dataset))
    return runs


def tested_on(material: Material) -> str:
    config = material.run.config
    return f"{len(material.run.dataset.test):,} {material.tested} images of {config.dataset}"


def alike(runs: dict[str, Material]) -> bool:
    """Whether one sigma means the same to all runs."""
    kinds = {(m.by_sigma, m.run.config.corruption, m.run.config.mean) for m in runs.values()}
    return len(kinds) == 1 and next(iter(kinds))[0]


def sigmas(runs: dict[str, Material]) -> list[float]:
    """The noise levels that all runs were tested at; of any, if there is none of all."""
    tested = [{float(sigma) for sigma in material.summary["test"]} for material in runs.values()]
    return sorted(set.intersection(*tested) or set.union(*tested))


def results(runs: dict[str, Material]) -> dict[str, Any]:
    """The table: its heads and its rows."""
    levels = sigmas(runs) if alike(runs) else []
    heads = ["run", "parameters", "epochs", "training", "mse", "psnr, dB", "ssim"]
    rows = []
    for name, material in runs.items():
        summary, last = material.summary, material.history[-1]
        cells = [
            f"{summary['parameters']:,}",
            str(summary["epochs"]),
            pages.duration(summary["train_seconds"]),
            *(pages.shown(key, last[f"test_{key}"]) for key in ("mse", "psnr", "ssim")),
        ]
        for sigma in levels:
            row = summary["test"].get(str(sigma))
            cells.append(pages.shown("mse", row["mse"]) if row else "–")
        rows.append((name, cells))
    heads += [f"mse at {sigma:g}" for sigma in levels]
    return {"heads": heads, "rows": rows, "own": None, "colored": True}


def show(table: dict[str, Any]) -> None:
    """Prints the table."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, soft_wrap=True, markup=False)
    # The noise levels have a table of their own: both fit a terminal of 80 columns.
    for columns in (range(FIXED), range(FIXED, len(table["heads"]) - 1)):
        if not columns:
            continue
        drawn = Table("run", box=SIMPLE_HEAD)
        for i in columns:
            drawn.add_column(table["heads"][i + 1], justify="right", no_wrap=True)
        for name, cells in table["rows"]:
            drawn.add_row(name, *(cells[i] for i in columns))
        console.print(drawn)


def differences(runs: dict[str, Material]) -> list[tuple[str, list[str]]]:
    """What the configurations do not agree in: the name of each value, and the values."""
    rows = [pages.settings(material.run.config) for material in runs.values()]
    return [
        (column[0][0], [text for _, text, _ in column])
        for field, *column in zip(fields(Config), *rows, strict=True)
        if field.name != "devices" and len({text for _, text, _ in column}) > 1
    ]


def curves(runs: dict[str, Material]) -> list[tuple[str, str]]:
    """The learning curves over each other: what each is of, and its SVG."""
    from jaxdae import figures

    drawn: list[tuple[str, str]] = []
    if all(len(material.history) == 1 for material in runs.values()):
        return drawn
    for title, x, y, xlabel, ylabel in (
        ("Error", "epoch", "test_mse", "epoch", "mean squared error"),
        ("Error against time", "train_seconds", "test_mse", "training, s", "mean squared error"),
        ("Signal to noise", "epoch", "test_psnr", "epoch", "psnr, dB"),
        ("Structural similarity", "epoch", "test_ssim", "epoch", "ssim"),
    ):
        lines = {
            name: ([row[x] for row in material.history], [row[y] for row in material.history])
            for name, material in runs.items()
        }
        if not all(np.isfinite(values).all() for _, values in lines.values()):
            continue
        label = f"{title} of {len(runs)} runs: {ylabel} against {xlabel}"
        log = y == "test_mse"
        drawn.append(
            (title, figures.inline(label, figures.overlaid, lines, xlabel, ylabel, log=log))
        )
    return drawn


def sigma_curve(runs: dict[str, Material]) -> str | None:
    """The errors against the noise level, SVG, where it means the same to all runs."""
    from jaxdae import figures

    if not alike(runs):
        return None
    points = {
        name: {float(sigma): row["mse"] for sigma, row in material.summary["test"].items()}
        for name, material in runs.items()
    }
    label = f"Mean squared error against sigma of {len(runs)} runs"
    return figures.inline(label, figures.error_against_sigma, points)


def images(runs: dict[str, Material]) -> list[list[Picture]]:
    """Rows of the same test images: clean, and as each run restores them."""
    from jaxdae import figures

    first = next(iter(runs.values()))
    chosen = pages.spread(np.arange(len(first.run.dataset.test)), report.SAMPLES)
    levels: list[float | None] = [None]
    if alike(runs):
        levels = pages.spread(sigmas(runs), report.LEVELS).tolist()
    restorers = {name: materials.restorer(material) for name, material in runs.items()}
    groups: list[list[Picture]] = []
    for level in levels:
        group: list[Picture] = []
        for name, material in runs.items():
            clean, given, restored = restorers[name](chosen, level)
            where = material.run.corruption if level is None else f"sigma {level:g}"
            if not groups:
                about = f"{len(chosen)} {material.tested} images"
                groups.append([Picture(figures.strip([clean]), about, "clean")])
            if level is None or not group:  # the same for all at one level
                group.append(
                    Picture(
                        figures.strip([given]),
                        f"The same images as the network is given them: {where}",
                        material.given,
                        name if level is None else f"σ {level:g}",
                    )
                )
            row = material.summary["test"].get(str(where if level is None else level))
            error = pages.shown("mse", row["mse"]) if row else ""
            group.append(
                Picture(
                    figures.strip([restored]),
                    f"What {name} makes of them: mean squared error {error or 'unknown'} over all",
                    name,
                    f"mse {error}" * bool(error),
                )
            )
        groups.append(group)
    return groups


def page(runs: dict[str, Material], table: dict[str, Any]) -> str:
    """The page, HTML."""
    first = next(iter(runs.values()))
    values: dict[str, Any] = {
        "kind": "compare",
        "title": f"{len(runs)} runs",
        "tested": tested_on(first),
        "names": list(runs),
        "table": table,
        "differences": differences(runs),
        "curves": curves(runs),
        "sigma": sigma_curve(runs),
        "images": images(runs),
    }
    values["contents"] = [(name, title) for name, title in CONTENTS.items() if values.get(name, 1)]
    return pages.render("compare.html", values)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input, 130 interrupted."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported before the command line is known to be good.
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "choose another --out")


if __name__ == "__main__":
    sys.exit(main())
