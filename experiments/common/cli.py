"""What the commands share: a parser that complains in one line, JAX made ready, exit statuses."""

import contextlib
import gc
import io
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import tyro

from jaxdae.errors import DivergenceError, InputError
from jaxdae.files import cache_folder

from .. import program
from .cluster import Cluster, connect
from .guard import Stopped

T = TypeVar("T")
IMPORTED = time.perf_counter()


def parse(arguments: type[T], words: Sequence[str], **options: Any) -> T:
    """The command line as a dataclass; `options` are those of `tyro.cli`.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    if "description" in options:
        options["description"] = as_typed(options["description"])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(arguments, args=list(words), **options)
    except SystemExit as leaving:
        if leaving.code in (0, None):
            raise
        raise InputError(one_line(complaint.getvalue())) from None


def as_typed(text: str) -> str:
    """A text with its commands as they are typed here."""
    return re.sub(r"python -m experiments\.(\w+)", lambda found: program(found[1]), text)


def one_line(box: str) -> str:
    """The complaint in tyro's box, as one line."""
    box = re.sub(r"\x1b\[[\d;]*m", "", box)  # colours, if this is a terminal
    lines = [line.strip("│╭╮╰╯─ \n") for line in box.splitlines()]
    paragraphs = re.split(r"\n\n+", "\n".join(lines[1:]).strip())
    text = " ".join(paragraphs[0].split()).removeprefix("Error parsing ")
    if meant := re.search(r"^(--[\w-]+)", "\n".join(paragraphs[1:]), re.MULTILINE):
        text += f": see {meant[1]} in --help"
    return text


def running_seconds() -> float:
    """The seconds since this process began; where the system does not say, since it came here."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - IMPORTED


def status(work: Callable[[], int | None], mend: str, interrupted: str | None = None) -> int:
    """Does the work, and returns the exit status, with one line on stderr unless it is 0.

    0 done (or what `work` returns), 1 diverged, 2 bad input or a file system that refuses, 130
    interrupted, 143 terminated.

    Args:
      mend: what to do when the file system refuses.
      interrupted: what to say after Ctrl-C, if not what was raised.
    """
    sys.unraisablehook = _unraisable
    try:
        return work() or 0
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}: {mend}", file=sys.stderr)
        return 2
    except DivergenceError as error:
        print(f"stopped: {error}", file=sys.stderr)
        return 1
    except Stopped as stopped:
        print(interrupted or stopped, file=sys.stderr)
        return 128 + stopped.number
    except KeyboardInterrupt:
        print(interrupted or "interrupted", file=sys.stderr)
        return 130


def _unraisable(unraisable: "sys.UnraisableHookArgs") -> None:
    """Keeps one thing to itself: reads of a damaged checkpoint that Orbax gave up, ending late."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def prepare_jax(
    devices: int | None = None,
    cache: bool = True,
    cluster: Cluster | None = None,
) -> None:
    """Tells JAX what it must know before it first looks for its devices.

    Args:
      devices: how many the CPU is to show itself as, over all processes; as many as it does if not
        given.
      cache: keep compiled programs in the user's cache folder.
      cluster: the processes to join.

    Raises:
      InputError: fewer than one device, or than one for each process; the others are not found.
    """
    # Importing and tracing make objects by the hundred thousand, hardly any of which is garbage.
    gc.set_threshold(50_000, 20, 50)
    import absl.logging  # Orbax's; what it has to say, the checkpoints raise
    import jax

    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    if cluster is not None:
        cluster.check()
    if devices is not None:
        if devices < 1:
            raise InputError(f"--devices {devices} must be at least 1")
        processes = cluster.num_processes or 1 if cluster else 1
        if devices % processes:
            raise InputError(
                f"--devices {devices} must be shared evenly by {processes} processes: choose "
                f"{-(-devices // processes) * processes}"
            )
        with contextlib.suppress(RuntimeError):  # the devices are there already
            jax.config.update("jax_num_cpu_devices", devices // processes)
    if cluster is not None and cluster.several:
        connect(cluster)
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
