"""The flags of a run: `run` and `sweep` parse them, and pages print them as a command."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

import tyro

from jaxdae.config import Config, read_config
from jaxdae.errors import InputError
from jaxdae.recipes import RECIPES

from .. import program
from . import cli
from .cluster import Cluster

# Flags that may go with --resume. The run's own configuration decides all others.
ALLOWED_WITH_RESUME = {
    *("--resume", "--devices", "--keep", "--progress", "--figures", "--cache", "--debug"),
    *("--tensorboard", "--wandb"),
    *("--coordinator", "--num-processes", "--process-id", "--distributed"),
}


@dataclass(frozen=True)
class Arguments:
    """The flags of `run`."""

    config: tyro.conf.OmitArgPrefixes[Config]
    """The flags that decide the result."""
    out: Path | None = None
    """Folder to write to. By default a new one under runs/."""
    resume: Path | None = None
    """Continue the run in this folder, with its own configuration."""
    keep: int = 3
    """Number of newest checkpoints to keep, besides the best one."""
    progress: bool = True
    """Show a progress bar, if the output is a terminal."""
    figures: bool = True
    """Draw the figures, and write the report of the run, report.html."""
    tensorboard: bool = False
    """Also log each epoch for TensorBoard, to OUT/tensorboard/."""
    wandb: str | None = None
    """Also log each epoch to this project of Weights & Biases."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder: the next run starts sooner."""
    debug: bool = False
    """If a loss is not finite, run its step again and name the operation that caused it. Needs a
    little more memory."""
    cluster: tyro.conf.OmitArgPrefixes[Cluster] = field(default_factory=Cluster)
    """Several processes that train together."""


def recipe_list() -> str:
    """The recipes for `--help`, one a line."""
    return "\n".join(f"  {name}: {text}" for name, (_, text) in RECIPES.items())


def parse(argv: Sequence[str], *, strict: bool = True, description: str = "") -> Arguments:
    """Parses the flags of a run. The recipe gives the defaults.

    Args:
      strict: refuse flags that have no effect with the other ones.
      description: the first text of `--help`.

    Raises:
      InputError: the command line is wrong.
    """
    recipe = "default"
    for i, word in enumerate(argv):
        if word == "--recipe" and i + 1 < len(argv):
            recipe = argv[i + 1]
        elif word.startswith("--recipe="):
            recipe = word.removeprefix("--recipe=")
    if recipe not in RECIPES:
        raise InputError(f"unknown recipe {recipe!r}: choose one of {', '.join(RECIPES)}")
    config, _ = RECIPES[recipe]
    arguments = cli.parse(
        Arguments,
        argv,
        default=Arguments(config),
        prog=program("run"),
        description=f"{description.strip()}\n\nRecipes:\n{recipe_list()}",
    )
    if arguments.resume is None:
        config = arguments.config
        if config.dataset.startswith("pairs:") and "--objective" not in flags_in(argv):
            arguments = replace(arguments, config=replace(config, objective="paired"))
        if strict:
            check_meant([arguments.config], argv)
        return arguments
    given = {flag.replace("--no-", "--"): flag for flag in sorted(flags_in(argv))}
    fixed = [flag for name, flag in given.items() if name not in ALLOWED_WITH_RESUME]
    if fixed:
        raise InputError(
            f"{', '.join(fixed)} cannot go with --resume, which continues the run in "
            f"{arguments.resume} with its own configuration: leave it out, or start a new run"
        )
    # The number of devices changes the result by rounding: it stays the same unless it is given.
    saved = read_config(arguments.resume)
    devices = arguments.config.devices or saved.devices
    return replace(arguments, config=replace(saved, devices=devices))


def to_command(config: Config) -> str:
    """The command that starts a run of this configuration."""
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


def meant_for() -> dict[str, list[tuple[str, tuple[str, ...]]]]:
    """The flags that only some choices use.

    Returns:
      For each such flag the conditions, all of which must hold: a field of the configuration, and
      its values that use the flag. They follow from what the registries' entries read.
    """
    from jaxdae.corruption import CORRUPTIONS
    from jaxdae.model import ARCHITECTURES, fields_of
    from jaxdae.optimizers import OPTIMIZERS

    reads = {
        "corruption": {name: entry.reads for name, entry in CORRUPTIONS.items()},
        "architecture": {name: fields_of(name) for name in ARCHITECTURES},
        "optimizer": {name: entry.reads for name, entry in OPTIMIZERS.items()},
    }
    found: dict[str, list[tuple[str, tuple[str, ...]]]] = {}
    for part in fields(Config):
        for choice, entries in reads.items():
            users = tuple(name for name, values in entries.items() if part.name in values)
            if 0 < len(users) < len(entries):
                found.setdefault(part.name, []).append((choice, users))
    found["eval_sigmas"] = found["sigma"]
    told = tuple(name for name, kind in ARCHITECTURES.items() if kind.takes_noise_level)
    found["noise_level"] = [("architecture", told)]
    supervised = [("objective", ("supervised",))]
    for name in ("sigma", "eval_sigmas", "mean", "strength", "corruption", "noise", "teacher"):
        found[name] = supervised + found.get(name, [])
    return {f"--{name.replace('_', '-')}": conditions for name, conditions in found.items()}


def check_meant(configs: Sequence[Config], argv: Sequence[str]) -> None:
    """Raises an `InputError` if a given flag has no effect in any of the configurations."""
    conditions = meant_for()
    for flag in sorted(flags_in(argv)):
        for name, choices in conditions.get(flag.replace("--no-", "--"), []):
            chosen = [getattr(config, name) for config in configs]
            if not set(chosen) & set(choices):
                raise InputError(
                    f"{flag} has no effect with --{name} {chosen[0]}: leave it out, or choose "
                    f"--{name} {' or '.join(choices)}"
                )


def flags_in(argv: Sequence[str]) -> set[str]:
    """The flags among the words of a command line, with hyphens for underscores."""
    return {word.split("=")[0].replace("_", "-") for word in argv if word.startswith("--")}
