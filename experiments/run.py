"""Trains a denoising autoencoder, and writes what came of it.

    python -m experiments.run --sigma 0.5
    python -m experiments.run --recipe classic
    python -m experiments.run --resume runs/default-sigma0.5

OUT holds, after a run: config.json (what was run), metrics.csv (a row for each epoch),
summary.json (the result), checkpoints/ and figures/.
"""

import contextlib
import io
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import tyro

from experiments.recipes import RECIPES, Config
from jaxdae.errors import DivergenceError, InputError

PROGRAM = "python -m experiments.run"


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    config: tyro.conf.OmitArgPrefixes[Config]
    """What decides the result."""
    out: Path | None = None
    """Folder to write to; a new one under runs/ if not given."""
    resume: Path | None = None
    """Continue the run in this folder, with its own configuration."""
    devices: int | None = None
    """Use so many devices (on a CPU: virtual ones); all if not given."""
    keep: int = 3
    """Newest checkpoints to keep, beside the best."""
    progress: bool = True
    """Show a progress bar, if the terminal can."""
    figures: bool = True
    """Draw the figures."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next run starts sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line; the recipe decides the defaults of the rest.

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
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            arguments = tyro.cli(
                Arguments,
                args=list(argv),
                default=Arguments(config),
                prog=PROGRAM,
                description=f"{(__doc__ or '').strip()}\n\nRecipes:\n{listing}",
            )
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise InputError(_one_line(complaint.getvalue())) from None
    changed = [
        "--" + field.name.replace("_", "-")
        for field in fields(Config)
        if getattr(arguments.config, field.name) != getattr(config, field.name)
    ]
    changed += ["--recipe"] if recipe != "default" else []
    changed += ["--out"] if arguments.out is not None else []
    if arguments.resume is not None and changed:
        raise InputError(
            f"{', '.join(changed)} cannot go with --resume, which continues the run in "
            f"{arguments.resume} with its own configuration: leave it out, or start a new run"
        )
    return arguments


def _one_line(box: str) -> str:
    """The complaint in tyro's box, as one line."""
    lines = [line.strip("│╭╮╰╯─ \n") for line in box.splitlines()]
    paragraphs = re.split(r"\n\n+", "\n".join(lines[1:]).strip())
    text = " ".join(paragraphs[0].split()).removeprefix("Error parsing ")
    if meant := re.search(r"^(--[\w-]+)", "\n".join(paragraphs[1:]), re.MULTILINE):
        text += f": see {meant[1]} in --help"
    return text


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 diverged, 2 bad input, 130 interrupted."""
    sys.unraisablehook = _unraisable
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        # Nothing heavy is imported before the command line is known to be good.
        _prepare_jax(arguments)
        from experiments.experiment import run

        run(arguments)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as interrupt:
        print(f"interrupted{interrupt}", file=sys.stderr)
        return 130
    return 0


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Keeps one thing to itself: reads of a damaged checkpoint that Orbax gave up, ending late."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def _prepare_jax(arguments: Arguments) -> None:
    """What JAX must be told before it first looks for its devices."""
    import jax

    if arguments.devices is not None:
        if arguments.devices < 1:
            raise InputError(f"--devices {arguments.devices} must be at least 1")
        with contextlib.suppress(RuntimeError):  # the devices are there already
            jax.config.update("jax_num_cpu_devices", arguments.devices)
    if arguments.cache:
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
        jax.config.update("jax_compilation_cache_dir", str(home / "jaxdae" / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)


if __name__ == "__main__":
    sys.exit(main())
