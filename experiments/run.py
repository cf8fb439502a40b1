"""Trains a denoising autoencoder, and writes what came of it.

    python -m experiments.run --sigma 0.5
    python -m experiments.run --recipe classic
    python -m experiments.run --resume runs/default-sigma0.5

OUT holds, after a run: config.json (what was run), metrics.csv (a row for each epoch),
summary.json (the result), report.html (all there is to see of it), model.npz and model.json (the
network), checkpoints/ and figures/.
"""

import shlex
import sys
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from jaxdae.errors import InputError
from jaxdae.recipes import RECIPES, Config, read_config

from . import cli, program
from .cluster import Cluster, leave

if TYPE_CHECKING:
    from jaxdae import data

# What may go with --resume: nothing that the run's own configuration decides.
FREE = {"--resume", "--devices", "--keep", "--progress", "--figures", "--cache", "--debug"}
FREE |= {"--tensorboard", "--wandb"}
FREE |= {"--coordinator", "--num-processes", "--process-id", "--distributed"}
# Flags that mean something to some choices only: what is chosen, and which choices those are.
MEANT_FOR = {
    "--sigma": ("corruption", ("gaussian", "speckle")),
    "--eval-sigmas": ("corruption", ("gaussian", "speckle")),
    "--mean": ("corruption", ("gaussian",)),
    "--strength": ("corruption", ("masking", "salt_and_pepper", "poisson")),
    "--latent-dim": ("architecture", ("strided", "dense")),
    "--upsampling": ("architecture", ("maxpool",)),
    "--b1": ("optimizer", ("adam", "nadam", "adamw")),
    "--b2": ("optimizer", ("adam", "nadam", "adamw")),
    "--weight-decay": ("optimizer", ("adamw",)),
}


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    config: tyro.conf.OmitArgPrefixes[Config]
    """What decides the result."""
    out: Path | None = None
    """Folder to write to; a new one under runs/ if not given."""
    resume: Path | None = None
    """Continue the run in this folder, with its own configuration."""
    keep: int = 3
    """Newest checkpoints to keep, beside the best."""
    progress: bool = True
    """Show a progress bar, if the terminal can."""
    figures: bool = True
    """Draw the figures, and write the page of the run, report.html."""
    tensorboard: bool = False
    """Write each epoch for TensorBoard too, to OUT/tensorboard/."""
    wandb: str | None = None
    """Log each epoch to this project of Weights & Biases too."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""
    debug: bool = False
    """Where a loss is not a number, go through its step again and name the operation that began
    it; needs a little more memory."""
    cluster: tyro.conf.OmitArgPrefixes[Cluster] = field(default_factory=Cluster)
    """Several processes that train together."""


def parse(argv: Sequence[str], *, strict: bool = True) -> Arguments:
    """Parses the command line; the recipe decides the defaults of the rest.

    Args:
      strict: refuse flags that the rest leaves without effect.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    recipe = "default"
    for i, word in enumerate(argv):
        if word == "--recipe" and i + 1 < len(argv):
            recipe = argv[i + 1]
        elif word.startswith("--recipe="):
            recipe = word.removeprefix("--recipe=")
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}: it is one of {', '.join(RECIPES)}")
    config, _ = RECIPES[recipe]
    listing = "\n".join(f"  {name}: {text}" for name, (_, text) in RECIPES.items())
    arguments = cli.parse(
        Arguments,
        argv,
        default=Arguments(config),
        prog=program("run"),
        description=f"{(__doc__ or '').strip()}\n\nRecipes:\n{listing}",
    )
    if arguments.resume is None:
        config = arguments.config
        if config.dataset.startswith("pairs:") and "--corruption" not in _flags(argv):
            arguments = replace(arguments, config=replace(config, corruption="paired"))
        if strict:
            check_meant([arguments.config], argv)
        return arguments
    fixed = sorted(flag for flag in _flags(argv) if flag.replace("--no-", "--") not in FREE)
    if fixed:
        raise InputError(
            f"{', '.join(fixed)} cannot go with --resume, which continues the run in "
            f"{arguments.resume} with its own configuration: leave it out, or start a new run"
        )
    # The devices are part of the result, to rounding: as many as before, unless told otherwise.
    saved = read_config(arguments.resume)
    devices = arguments.config.devices or saved.devices
    return replace(arguments, config=replace(saved, devices=devices))


def typed(config: Config) -> str:
    """The command that a run of this configuration is started with."""
    default, _ = RECIPES.get(config.recipe, RECIPES["default"])
    words = ["--recipe", config.recipe]
    for part in fields(Config):
        value = getattr(config, part.name)
        if part.name in ("recipe", "devices") or value == getattr(default, part.name):
            continue
        flag = part.name.replace("_", "-")
        if isinstance(value, bool):
            words.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [f"--{flag}", *map(str, values)]
    return f"{program('run')} {shlex.join(words)}"


def check_meant(configs: Sequence[Config], argv: Sequence[str]) -> None:
    """Raises if a flag was typed that all of the configurations leave without effect."""
    for flag in sorted(_flags(argv) & MEANT_FOR.keys()):
        name, choices = MEANT_FOR[flag]
        chosen = [getattr(config, name) for config in configs]
        if not set(chosen) & set(choices):
            raise InputError(
                f"{flag} means nothing to --{name} {chosen[0]}: leave it out, or choose --{name} "
                f"{' or '.join(choices)}"
            )


def _flags(argv: Sequence[str]) -> set[str]:
    return {word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")}


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
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported before the command line is known to be good.
        devices, cache = arguments.config.devices, arguments.cache
        with _reading(arguments.config) as dataset:
            cli.prepare_jax(devices, cache, arguments.cluster)
            from .experiment import run

            run(arguments, dataset)

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
