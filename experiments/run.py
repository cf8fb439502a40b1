"""Trains a denoising autoencoder, and writes the results.

    python -m experiments.run --sigma 0.5
    python -m experiments.run --recipe classic
    python -m experiments.run --resume runs/default-sigma0.5

After a run OUT holds config.json (the configuration), metrics.csv (a row for each epoch),
summary.json (the result), report.html (the report, with figures and images), model.npz and
model.json (the network), checkpoints/ and figures/.
"""

import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from jaxdae.config import Config

from .common import cli
from .common.cluster import exit_at_once
from .common.flags import check_meant, parse

if TYPE_CHECKING:
    from jaxdae import data


@contextmanager
def _reading(config: Config) -> Iterator["Future[data.Dataset] | None"]:
    """Reads the package's own images in a thread, while JAX is being imported.

    Other data sets are read later: that may take long, and Ctrl-C must be able to stop it.
    """
    from jaxdae import data

    def load() -> data.Dataset:
        return data.load(config.dataset, crop=config.crop, gray=config.gray)

    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(load) if config.dataset == "mnist" else None


def show(*results: Any) -> None:
    """Draws the figures and writes the report; see `reports.report.finish`."""
    from .reports.report import finish  # imports matplotlib: after the training

    finish(*results)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 diverged, 2 wrong input, 3 a process is lost, 130 or 143 stopped."""

    def work() -> None:
        words = sys.argv[1:] if argv is None else argv
        arguments = parse(words, strict=False, description=__doc__ or "")
        # Nothing heavy is imported until the command line is known to be good.
        devices, cache = arguments.config.devices, arguments.cache
        with _reading(arguments.config) as dataset:
            if arguments.resume is None:
                check_meant([arguments.config], words)
            cli.prepare_jax(devices, cache, arguments.cluster)
            from .runs.experiment import run

            run(arguments, dataset, show)

    code = 1
    try:
        code = cli.status(work, "fix this, and continue with --resume")
    except Exception:
        traceback.print_exc()
    if code not in (0, 130, 143):  # after 0, 130 and 143 all processes end together
        exit_at_once(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
