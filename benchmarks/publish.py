"""Puts the network of a finished run among the pretrained ones that come with the package.

    python -m benchmarks.publish runs/blind-sigma0.15-1.05 digits-blind

Writes jaxdae/weights/NAME.npz and NAME.json, its model card; `jaxdae.pretrained.load(NAME)` gives
the network back.
"""

import argparse
import datetime
import json
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from experiments.common import cli
from experiments.common.flags import to_command
from jaxdae.config import Config
from jaxdae.errors import InputError

# What the card says elsewhere, or that does not change the result.
NOT_RECIPE = {
    *("recipe", "dataset", "seed", "architecture", "features", "latent_dim", "upsampling"),
    *("corruption", "strength", "devices", "eval_sigmas"),
    *("train_images", "validation_images", "test_images"),
}


def describe(config: Config, summary: dict[str, Any]) -> dict[str, Any]:
    """The model card of a run."""
    from .classifier import machine

    level = " to ".join(map(str, config.sigma))
    return {
        "about": f"Removes noise N({config.mean}, sigma^2), sigma {level}, added to images in "
        "[0, 1] and clipped, from handwritten digits, 28x28, light on dark.",
        "data": "MNIST (Yann LeCun and Corinna Cortes, CC BY-SA 3.0): all 60,000 training images.",
        "recipe": {
            field.name: getattr(config, field.name)
            for field in fields(Config)
            if field.name not in NOT_RECIPE and getattr(config, field.name) is not None
        },
        "seed": config.seed,
        "command": to_command(config),
        "results": {"tested_on": "the 10,000 test images, by sigma", **summary["test"]},
        "machine": machine(),
        "versions": summary["versions"],
        "date": str(datetime.date.today()),
        "limits": "It has seen digits only, and draws a digit whatever it is shown; noise of "
        "another mean or another kind it was not trained to remove.",
    }


def publish(folder: Path, name: str, to: Path | None = None) -> None:
    """Writes the two files of a pretrained network from a run.

    Raises:
      InputError: the run is not finished, or not of the whole of MNIST under gaussian noise, or
        the name cannot be that of a denoiser.
    """
    from experiments.runs.finished import load_run
    from jaxdae import pretrained
    from jaxdae.recognition import SHIPPED

    if name == SHIPPED or Path(name).name != name:
        raise InputError(
            f"the name {name!r} must be a word without slashes, and not {SHIPPED}, which reads "
            "digits: choose another"
        )
    run = load_run(folder)
    config = run.config
    if config.dataset != "mnist" or config.corruption != "gaussian":
        raise InputError(
            f"the run in {folder} is of {config.dataset} under {config.corruption}: the model card "
            "is written for MNIST under gaussian noise only"
        )
    if config.train_images or config.test_images or config.validation_images:
        raise InputError(f"the run in {folder} left images out: publish one of all images")
    summary = json.loads((folder / "summary.json").read_text())
    about = describe(config, summary)
    pretrained.save(name, run.model, run.params, about, to or pretrained.FOLDER)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.publish", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("run", type=Path, help="folder of a finished run")
    parser.add_argument("name", help="what to call the network")
    parser.add_argument("--to", type=Path, help="folder to write to, instead of the package's")
    flags = parser.parse_args(argv)

    def work() -> None:
        cli.prepare_jax(1)
        publish(flags.run, flags.name, flags.to)
        print(f"{flags.name}: written")

    return cli.status(work, "choose another --to")


if __name__ == "__main__":
    sys.exit(main())
