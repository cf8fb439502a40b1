"""Parts of every command: the parser, the exit status, the console, and JAX's set-up."""

import contextlib
import dataclasses
import gc
import io
import logging
import os
import re
import shutil
import signal
import sys
import textwrap
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from jaxdae.errors import DivergenceError, InputError
from jaxdae.files import cache_folder

from .. import program
from .cluster import Cluster, connect
from .guard import Stopped

if TYPE_CHECKING:
    from rich.console import Console

T = TypeVar("T")
IMPORTED = time.perf_counter()
PLACE = "DESCRIPTION"  # where tyro prints the description


def parse(arguments: type[T], words: Sequence[str], **options: Any) -> T:
    """Parses the command line into a dataclass. `~` at the start of a path becomes the home folder.

    Args:
      options: passed to `tyro.cli`.

    Raises:
      InputError: the command line is wrong.
    """
    return expand_paths(_tyro(arguments, words, **options))


def parse_known(arguments: type[T], words: Sequence[str], **options: Any) -> tuple[T, list[str]]:
    """As `parse`; also returns the words that belong to no flag of the dataclass, in order.

    Raises:
      InputError: a known flag has a wrong value.
    """
    parsed, unknown = _tyro(arguments, words, return_unknown_args=True, **options)
    return expand_paths(parsed), list(unknown)


def _tyro(arguments: type[Any], words: Sequence[str], **options: Any) -> Any:
    description = with_program_names(options.pop("description", ""))
    stdout, stderr = _Capture(), io.StringIO()
    try:
        with contextlib.redirect_stdout(stdout), contextlib.redirect_stderr(stderr):
            return tyro.cli(arguments, args=list(words), description=PLACE, **options)
    except SystemExit as error:
        if error.code not in (0, None):
            raise InputError(one_line(stderr.getvalue())) from None
        # tyro would join the lines of the description, and shows that a value may be missing.
        text = re.sub(r"\{None\}\|([A-Z]+)", rf"\1{' ' * len('{None}|')}", stdout.getvalue())
        print(text.replace(PLACE, wrapped(description), 1), end="")
        raise


class _Capture(io.StringIO):
    """Takes the text of `--help`, with boxes and colours if the output can show them."""

    encoding = property(lambda self: sys.__stdout__ and sys.__stdout__.encoding)  # type: ignore

    def isatty(self) -> bool:
        return sys.__stdout__ is not None and sys.__stdout__.isatty()


def wrapped(text: str) -> str:
    """A text for the terminal: its paragraphs as wide as fits, but indented ones as they are."""
    fill = textwrap.TextWrapper(
        min(100, shutil.get_terminal_size().columns), break_on_hyphens=False
    ).fill
    paragraphs = text.strip("\n").split("\n\n")
    return "\n\n".join(
        paragraph if re.search(r"^( |.*:\n )", paragraph) else fill(paragraph)
        for paragraph in paragraphs
    )


def expand_paths(value: Any) -> Any:
    """A copy of a dataclass in which `~` at the start of each path is the user's home folder."""
    if isinstance(value, Path):
        return Path(os.path.expanduser(value))  # keeps "~name" if there is no such user
    if isinstance(value, tuple):
        return tuple(map(expand_paths, value))
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {part.name: getattr(value, part.name) for part in dataclasses.fields(value)}
        return dataclasses.replace(value, **{k: expand_paths(part) for k, part in parts.items()})
    return value


def with_program_names(text: str) -> str:
    """Replaces `python -m experiments.NAME` by `jaxdae NAME` where the package is installed."""
    return re.sub(r"python -m experiments\.(\w+)", lambda found: program(found[1]), text)


def one_line(box: str) -> str:
    """The error message in tyro's box, as one line."""
    box = re.sub(r"\x1b\[[\d;]*m", "", box)  # colours
    lines = [line.strip("│╭╮╰╯─ \n") for line in box.splitlines()]
    paragraphs = re.split(r"\n\n+", "\n".join(lines[1:]).strip())
    text = " ".join(paragraphs[0].split()).removeprefix("Error parsing ")
    if flag := re.search(r"^(--[\w-]+)", "\n".join(paragraphs[1:]), re.MULTILINE):
        text += f": see {flag[1]} in --help"
    return text


def status(work: Callable[[], int | None], advice: str, interrupted: str | None = None) -> int:
    """Calls `work` and returns the exit status. On an error it prints one line to stderr.

    0 done (or what `work` returns), 1 training diverged, 2 wrong input or an error of the file
    system, 130 interrupted (Ctrl-C), 141 the reader of the output is gone (a closed pipe, which is
    no error: nothing is printed), 143 terminated.

    Args:
      advice: what to do after an error of the file system.
      interrupted: the message after Ctrl-C; the exception's own if not given.
    """
    sys.unraisablehook = _unraisable
    try:
        try:
            return _status(work, advice, interrupted)
        finally:
            sys.stdout.flush()  # here, and not at Python's exit, which would print the error
    except BrokenPipeError:
        # Python flushes again at its exit: into nothing.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + getattr(signal, "SIGPIPE", 13)


def _status(work: Callable[[], int | None], advice: str, interrupted: str | None) -> int:
    try:
        return work() or 0
    except BrokenPipeError:
        raise
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {error}: {advice}", file=sys.stderr)
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
    """Hides one message: Orbax ends its reads of a damaged checkpoint too late."""
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


def make_console(**options: Any) -> "Console":
    """A console for plain lines. A closed pipe raises `BrokenPipeError`, as `print` does."""
    from rich.console import Console

    class PlainConsole(Console):
        def on_broken_pipe(self) -> None:
            raise BrokenPipeError

    return PlainConsole(highlight=False, soft_wrap=True, markup=False, **options)


def running_seconds() -> float:
    """Seconds since this process began; since this module was imported if the system hides it."""
    try:
        ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError, ValueError, IndexError):
        return time.perf_counter() - IMPORTED


def prepare_jax(
    devices: int | None = None,
    cache: bool = True,
    cluster: Cluster | None = None,
) -> None:
    """Configures JAX. Call it before JAX first looks for its devices.

    Args:
      devices: number of devices that a CPU shows, over all processes; JAX's default if None.
      cache: keep compiled programs in the user's cache folder.
      cluster: the processes that train together.

    Raises:
      InputError: `devices` is less than 1 or cannot be shared evenly; the processes do not connect.
    """
    # Importing and tracing make hundreds of thousands of objects, hardly any of which is garbage.
    gc.set_threshold(50_000, 20, 50)
    import absl.logging  # Orbax logs through it; the checkpoints raise what matters
    import jax

    absl.logging.set_verbosity(absl.logging.FATAL)
    for name in ("asyncio", "PIL"):
        logging.getLogger(name).setLevel(logging.CRITICAL)

    if cluster is not None:
        cluster.check()
    if devices is not None:
        if devices < 1:
            raise InputError(f"--devices {devices} must be at least 1: choose 1 or more")
        processes = cluster.num_processes or 1 if cluster else 1
        if devices % processes:
            raise InputError(
                f"--devices {devices} must be a multiple of the {processes} processes: choose "
                f"{-(-devices // processes) * processes}"
            )
        with contextlib.suppress(RuntimeError):  # JAX has looked for its devices already
            jax.config.update("jax_num_cpu_devices", devices // processes)
    if cluster is not None and cluster.is_multiprocess:
        connect(cluster)
    if cache:
        jax.config.update("jax_compilation_cache_dir", str(cache_folder() / "xla"))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
