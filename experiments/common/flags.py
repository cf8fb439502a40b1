"""The command line of a run, and a run's command: `run` and `sweep` read it, pages print it."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import tyro

from jaxdae.errors import InputError
from jaxdae.recipes import RECIPES, Config, read_config

from .. import program
from . import cli
from .cluster import Cluster

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


def parse(argv: Sequence[str], *, strict: bool = True, description: str = "") -> Arguments:
    """Parses the command line; the recipe decides the defaults of the rest.

    Args:
      strict: refuse flags that the rest leaves without effect.
      description: what `--help` says first.

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
        description=f"{description.strip()}\n\nRecipes:\n{listing}",
    )
    if arguments.resume is None:
        config = arguments.config
        if config.dataset.startswith("pairs:") and "--objective" not in _flags(argv):
            arguments = replace(arguments, config=replace(config, objective="paired"))
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
