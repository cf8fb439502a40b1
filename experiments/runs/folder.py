"""The folder of a run: made and locked for a new run, and its text files read and written.

Nothing heavy is imported here: `--help` and the reading of results stay quick.
"""

import csv
import io
import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import Any

from jaxdae.config import Config
from jaxdae.errors import InputError
from jaxdae.files import write_whole

from .. import program
from ..common.guard import locked

SUMMARY_KEYS = {
    *("recipe", "seed", "parameters", "epochs"),
    *("train_seconds", "params_sha256", "test"),
}
METRICS = {"mse", "psnr", "ssim"}  # of each noise level in "test", at least


def new_folder(config: Config) -> Path:
    """A folder under runs/ that does not exist, named after the recipe and the noise."""
    from jaxdae.from_config import has_sigma

    kind = config.corruption if config.objective == "supervised" else config.objective
    level = "-".join(f"{sigma:g}" for sigma in config.sigma)
    noise = f"sigma{level}" if has_sigma(config) else kind
    base = f"runs/{config.recipe}-{noise}"
    names = (base if i == 1 else f"{base}-{i}" for i in count(1))
    return next(Path(name) for name in names if not Path(name).exists())


@contextmanager
def opened(folder: Path) -> Iterator[None]:
    """Makes the folder if it does not exist, and locks it for this process.

    Raises:
      InputError: it is a file, cannot be made, or is in use by another run.
    """
    with ExitStack() as stack:
        try:
            if folder.exists() and not folder.is_dir():
                raise InputError(
                    f"--out {folder} is a file, and must be a folder: choose another name"
                )
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked(folder))
        except OSError as error:
            raise InputError(
                f"{folder} cannot be written ({error.strerror}): choose another folder"
            ) from None
        yield


def is_empty(folder: Path) -> bool:
    """True if a folder holds no files. Hidden ones do not count: a killed process may leave one."""
    return all(path.name.startswith(".") for path in folder.iterdir())


def write_config(folder: Path, config: Config) -> None:
    """Writes the configuration of a new run to its folder.

    Raises:
      InputError: the folder is not empty, or cannot be written.
    """
    try:
        if not is_empty(folder):
            is_run = (folder / "config.json").exists()
            advice = f"continue it with --resume {folder}, or " if is_run else ""
            raise InputError(
                f"--out {folder} holds {'another run' if is_run else 'other files'}, and must be "
                f"new or empty: {advice}choose another name"
            )
        write_whole(folder / "config.json", json.dumps(asdict(config), indent=2) + "\n")
    except OSError as error:
        raise InputError(
            f"--out {folder} cannot be written ({error.strerror}): choose another folder"
        ) from None


def read_summary(folder: Path) -> dict[str, Any]:
    """Reads summary.json of a finished run.

    Raises:
      InputError: it is missing or damaged.
    """
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text())
        if missing := SUMMARY_KEYS - summary.keys():
            raise ValueError(f"it has no {', '.join(sorted(missing))}")
        summary["test"] = {level: rename_accuracy(row) for level, row in summary["test"].items()}
        if not all(row.keys() >= METRICS for row in summary["test"].values()):
            raise ValueError("a metric is missing")
    except (AttributeError, OSError, RecursionError, TypeError, ValueError) as error:
        what = "is missing" if isinstance(error, FileNotFoundError) else f"is damaged ({error})"
        raise InputError(
            f"{path} {what}: restore it from a copy, or delete it and write it again with "
            f"{program('run')} --resume {folder}"
        ) from None
    return summary


def rename_accuracy(row: Mapping[str, Any]) -> dict[str, Any]:
    """The metrics of a noise level, with "accuracy" for what older runs call "recovery"."""
    return {{"recovery": "accuracy"}.get(name, name): value for name, value in row.items()}


def read_history(folder: Path) -> list[dict[str, float]]:
    """Reads metrics.csv of a run: one row for each epoch.

    Raises:
      InputError: it is missing, damaged or empty.
    """
    path = folder / "metrics.csv"
    try:
        history = parse_history(path.read_text())
        if not history or not {"epoch", "train_loss", "test_loss"} <= set(history[0]):
            raise ValueError
    except (ValueError, TypeError, OSError):
        raise InputError(f"{path} is missing or damaged: restore it from a copy") from None
    return history


def parse_history(text: str) -> list[dict[str, float]]:
    """The rows of metrics.csv, from its text."""
    return [
        {name: int(x) if name in ("epoch", "step") else float(x) for name, x in row.items()}
        for row in csv.DictReader(text.splitlines())
    ]


def format_row(row: Mapping[str, float], header: bool) -> str:
    """A row of metrics.csv as text, after the header if that is wanted."""
    text = io.StringIO()
    writer = csv.DictWriter(text, list(row), lineterminator="\n")
    if header:
        writer.writeheader()
    writer.writerow(row)
    return text.getvalue()
