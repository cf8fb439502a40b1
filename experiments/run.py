"""Trains a denoising autoencoder, and writes what came of it.

    python -m experiments.run --sigma 0.5
    python -m experiments.run --recipe classic
    python -m experiments.run --resume runs/default-sigma0.5

OUT holds, after a run: config.json (what was run), metrics.csv (a row for each epoch),
summary.json (the result), report.html (all there is to see of it), model.npz and model.json (the
network), checkpoints/ and figures/.
"""

import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

from jaxdae.recipes import Config

from .common import cli
from .common.cluster import leave
from .common.flags import parse

if TYPE_CHECKING:
    from jaxdae import data


@contextmanager
def _reading(config: Config) -> Iterator["Future[data.Dataset] | None"]:
    """The package's own images, read while JAX is being imported.

    Others are read in their turn: that may take long, and is to be stopped by Ctrl-C.
    """
    from jaxdae import data

    name, crop = config.dataset, config.crop
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(data.load, name, crop=crop) if name == "mnist" else None


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 diverged, 2 bad input, 3 a process is lost, 130 or 143 stopped."""

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv, description=__doc__ or "")
        # Nothing heavy is imported before the command line is known to be good.
        devices, cache = arguments.config.devices, arguments.cache
        with _reading(arguments.config) as dataset:
            cli.prepare_jax(devices, cache, arguments.cluster)
            from .reports.report import finish
            from .runs.experiment import run

            run(arguments, dataset, finish)

    code = 1
    try:
        code = cli.status(work, "mend that, and go on with --resume")
    except Exception:
        traceback.print_exc()
    if code not in (0, 130, 143):  # ended or stopped, all processes come to their end together
        leave(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
