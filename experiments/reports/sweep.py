"""The results of a sweep: read from its runs, averaged over seeds, and written as tables.

Nothing heavy is imported here: results can be read without JAX.
"""

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jaxdae.config import read_config
from jaxdae.files import replacing, write_whole

from ..runs.folder import read_summary

Row = dict[str, Any]

GROUP_BY = ("recipe", "train_sigma", "test_sigma", "epochs", "parameters")  # equal in each mean
METRICS = ("mse", "psnr", "ssim", "bce", "accuracy")
AVERAGED = (*METRICS, "train_seconds")
COLUMNS = (
    *("recipe", "train_sigma", "seed", "test_sigma"),
    *METRICS,
    *("epochs", "parameters", "train_seconds", "params_sha256"),
)
# Columns of the tables: heading, format and factor.
SHOWN = {
    "mse": ("MSE", "{:.5f}", 1),
    "psnr": ("PSNR (dB)", "{:.2f}", 1),
    "ssim": ("SSIM", "{:.4f}", 1),
    "bce": ("BCE", "{:.4f}", 1),
    "accuracy": ("accuracy (%)", "{:.2f}", 100),
}


def read_runs(folders: Iterable[Path]) -> list[Row]:
    """Reads finished runs: one row, of `COLUMNS`, for each run and noise level of the test images.

    Noise levels are text: "0.5", or "0.1-1.05" for a range. For a corruption without a sigma,
    "train_sigma" is empty and "test_sigma" is the corruption. A missing value is None.

    Raises:
      InputError: a folder holds no finished run, or its files are damaged.
    """
    rows = []
    for folder in map(Path, folders):
        config, summary = read_config(folder), read_summary(folder)
        for level, metrics in summary["test"].items():
            train = level_name(config.sigma) if to_number(level) is not None else ""
            row = {**summary, **metrics, "train_sigma": train, "test_sigma": level}
            rows.append({name: row.get(name) for name in COLUMNS})
    return rows


def summarize(rows: Iterable[Row]) -> list[Row]:
    """Mean and standard deviation over the seeds, in the order of the rows.

    Returns:
      A row for each group of `GROUP_BY`: "seeds" is their number; "NAME_mean" and "NAME_sd" are
      there for each name of `AVERAGED`. The deviation is that of a sample (n - 1), and None for a
      single seed. Both are None if a run does not have the value.
    """
    groups: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in GROUP_BY), []).append(row)
    summaries = []
    for key, group in groups.items():
        summary: Row = {**dict(zip(GROUP_BY, key, strict=True)), "seeds": len(group)}
        for name in AVERAGED:
            values = [row[name] for row in group]
            known = None not in values
            summary[f"{name}_mean"] = statistics.fmean(values) if known else None
            summary[f"{name}_sd"] = statistics.stdev(values) if known and len(values) > 1 else None
        summaries.append(summary)
    return summaries


def table(summaries: Sequence[Row]) -> list[list[str]]:
    """The rows of `summarize` as text; the headings are the first line."""
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
            if sd is not None:  # a line may break before the sign, but not after it
                text += f" ±\N{NO-BREAK SPACE}{style.format(factor * sd)}"
            line.append(text)
        lines.append(line)
    return lines


def fit_width(lines: list[list[str]], width: int) -> list[list[str]]:
    """Makes a table narrow enough for a terminal: breaks lines, then leaves out some columns."""

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
    """A noise level, or a range, as one word."""
    return "-".join(str(float(value)) for value in sigma)


def to_number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def write_results(out: Path, rows: Sequence[Row], command: str) -> list[str]:
    """Writes results.csv, results.md and error_against_sigma.png, and returns their names.

    There is no figure if no run has noise levels.
    """
    from jaxdae.figures import error_against_sigma

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(out / "results.csv", text.getvalue())
    names = ["results.csv", "results.md"]

    means: dict[str, dict[float, float]] = {}
    spread: dict[str, dict[float, float]] = {}
    summaries = summarize(rows)
    for row in summaries:
        model, level = f"{row['recipe']}, sigma {row['train_sigma']}", to_number(row["test_sigma"])
        if level is not None:
            means.setdefault(model, {})[level] = row["mse_mean"]
            if row["mse_sd"] is not None:
                spread.setdefault(model, {})[level] = row["mse_sd"]
    if means:
        names.append("error_against_sigma.png")
        with replacing(out / names[-1]) as temporary:
            error_against_sigma(temporary, means, spread=spread)

    titles, *lines = table(summaries)
    rule = ["---", "---", "---", *["---:"] * (len(titles) - 3)]
    grid = "\n".join(f"| {' | '.join(line)} |" for line in [titles, rule, *lines])
    picture = f"\n![Error against sigma]({names[-1]})\n" if means else ""
    write_whole(
        out / "results.md",
        f"# Sweep\n\n    {command}\n\nErrors of restored images: mean ± sample standard deviation "
        "over the seeds. `trained at` and\n`tested at` are the sigma of the noise.\n\n"
        f"{grid}\n{picture}",
    )
    return names
