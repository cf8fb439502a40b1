"""Keeps a run's folder safe: one process at a time, and a clean end at Ctrl-C and SIGTERM."""

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jaxdae.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

GRACE_SECONDS = 4.0
NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end.

    Args:
      number: of the signal.
      note: follows "interrupted" or "terminated" in the message.
    """

    def __init__(self, number: int, note: str = "") -> None:
        super().__init__(note)
        self.number = number

    def __str__(self) -> str:
        return NAMES[signal.Signals(self.number)] + "".join(self.args)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Locks a folder for this process. The lock is on the folder itself, and ends with the process.

    Raises:
      InputError: another process holds the lock.
    """
    if fcntl is None:
        yield
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by a run that has not ended: wait until it ends, or choose "
                "another folder"
            ) from None
        except OSError:  # the file system has no locks
            pass
        yield
    finally:
        os.close(descriptor)


class Guard:
    """Ends the process cleanly at Ctrl-C and SIGTERM; a context manager.

    Outside `deferred` a signal raises `Stopped` at once. Inside, it only sets `signalled`: the code
    in the block looks at it between two steps, saves its work and calls `stop`. Python handles no
    signal while it waits for a compilation or for a device. So a thread watches too: it ends the
    process after some seconds, or at the second signal, and prints the `note`.

    Args:
      note: gives the text that follows "interrupted": what is saved, and how to continue.
      grace: seconds from the signal to the end.
    """

    def __init__(self, note: Callable[[], str], grace: float = GRACE_SECONDS) -> None:
        self.note, self.grace = note, grace
        self.signalled: int | None = None
        self._deferred = False
        self._ended = threading.Event()

    def __enter__(self) -> "Guard":
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # A process that was started in the background may have been told to ignore Ctrl-C.
        self._numbers = [n for n in NAMES if signal.getsignal(n) is not signal.SIG_IGN]
        self._before = {n: signal.signal(n, self._handle) for n in self._numbers}
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._active:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._before.items():
                signal.signal(number, handler)
            os.close(self._write)  # `_watch` reads the end of the file, and returns

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `signalled`. At the end, `stop` is called."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False
        self.stop()

    def stop(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.signalled is not None:
            raise Stopped(self.signalled, self.note())

    def _handle(self, number: int, _: object) -> None:
        first, self.signalled = self.signalled is None, number
        if first and not self._deferred:
            self.stop()

    def _watch(self) -> None:
        """Runs in a thread: Python writes the number of each signal to the pipe as it comes."""
        count = 0
        with open(self._read, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] not in self._numbers:
                    continue
                count += 1
                wait = self.grace if count == 1 else 0.0
                threading.Timer(wait, self._end, [number[0]]).start()

    def _end(self, number: int) -> None:
        if self._ended.is_set():
            return
        with contextlib.suppress(Exception):
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # the cursor, which a progress bar hides
            print(Stopped(number, self.note()), file=sys.stderr, flush=True)
        os._exit(128 + number)
