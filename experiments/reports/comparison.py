"""The page of `compare`: a table of several runs, their learning curves and the same images."""

import os
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from jaxdae import figures
from jaxdae.config import Config
from jaxdae.errors import InputError

from . import material as materials
from . import page as pages
from . import samples
from .material import Material
from .page import Picture

CONTENTS = {
    "results": "Results",
    "differences": "Differences",
    "curves": "Learning curves",
    "sigma": "Error against sigma",
    "images": "The same images",
}


def read_runs(folders: Sequence[Path]) -> dict[str, Material]:
    """The runs by name: the names of their folders, or their paths if names are equal.

    Raises:
      InputError: a folder holds no finished run, or the runs have different test images.
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
                f"({tested_on(material)}) have different test images: compare runs that have the "
                "same"
            )
        # All runs share one copy of the images.
        runs[name] = material._replace(run=material.run._replace(dataset=first.run.dataset))
    return runs


def tested_on(material: Material) -> str:
    config = material.run.config
    return f"{len(material.run.dataset.test):,} {material.tested} images of {config.dataset}"


def comparable(runs: dict[str, Material]) -> bool:
    """True if all runs have the same kind of noise, so that their sigmas compare."""
    kinds = {(m.by_sigma, m.run.config.corruption, m.run.config.mean) for m in runs.values()}
    return len(kinds) == 1 and next(iter(kinds))[0]


def sigmas(runs: dict[str, Material]) -> list[float]:
    """The noise levels that all runs were tested at; if there are none, those of any run."""
    tested = [{float(sigma) for sigma in material.summary["test"]} for material in runs.values()]
    return sorted(set.intersection(*tested) or set.union(*tested))


def results(runs: dict[str, Material]) -> dict[str, Any]:
    """The table: "heads", and "rows" of a name and its cells."""
    levels = sigmas(runs) if comparable(runs) else []
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


def differences(runs: dict[str, Material]) -> list[tuple[str, list[str]]]:
    """The values of the configurations that are not equal: name, and the value of each run."""
    rows = [pages.settings(material.run.config) for material in runs.values()]
    return [
        (column[0][0], [text for _, text, _ in column])
        for field, *column in zip(fields(Config), *rows, strict=True)
        if field.name != "devices" and len({text for _, text, _ in column}) > 1
    ]


def curves(runs: dict[str, Material]) -> list[tuple[str, str]]:
    """The learning curves of all runs: title and SVG."""
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
        svg = figures.inline(label, figures.overlaid, lines, xlabel, ylabel, log=log)
        drawn.append((title, svg))
    return drawn


def sigma_curve(runs: dict[str, Material]) -> str | None:
    """The error of each run against the noise level, SVG; None if the levels do not compare."""
    if not comparable(runs):
        return None
    points = {name: material.error_curve for name, material in runs.items()}
    label = f"Mean squared error against sigma of {len(runs)} runs"
    return figures.inline(label, figures.error_against_sigma, points)


def images(runs: dict[str, Material]) -> list[list[Picture]]:
    """Rows of test images: clean, then for each noise level the input and each run's output."""
    first = next(iter(runs.values()))
    chosen = samples.chosen(first)
    levels: list[float | None] = [None]
    if comparable(runs):
        levels = pages.spread(sigmas(runs), samples.LEVELS).tolist()
    restorers = {name: materials.restorer(material) for name, material in runs.items()}
    groups: list[list[Picture]] = []
    for level in levels:
        group: list[Picture] = []
        for name, material in runs.items():
            clean, noisy, restored = restorers[name](chosen, level)
            if not groups:
                groups.append([samples.clean_row(material, clean)])
            if level is None or not group:  # at one noise level the input is the same for all
                label = name if level is None else f"σ {level:g}"
                group.append(samples.input_row(material, noisy, level, label))
            group.append(samples.output_row(material, restored, level, name))
        groups.append(group)
    return groups


def page(runs: dict[str, Material], table: dict[str, Any]) -> str:
    """The page, HTML."""
    first = next(iter(runs.values()))
    return pages.render(
        "compare.html",
        CONTENTS,
        {
            "kind": "compare",
            "title": f"{len(runs)} runs",
            "tested": tested_on(first),
            "names": list(runs),
            "table": table,
            "differences": differences(runs),
            "curves": curves(runs),
            "sigma": sigma_curve(runs),
            "images": images(runs),
        },
    )
