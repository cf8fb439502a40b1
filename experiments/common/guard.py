"""What keeps a run's folder safe: one process at a time, and an end in good order when stopped."""

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
except ImportError:  # no such locks on Windows
    fcntl = None  # type: ignore[assignment]

GRACE_SECONDS = 4.0
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Stopped(KeyboardInterrupt):
    """The end that a signal asked for."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(words)
        self.number = number

    def __str__(self) -> str:
        return WORDS[signal.Signals(self.number)] + "".join(self.args)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the lock is the folder's own, and ends with the process.

    Raises:
      InputError: another process holds it.
    """
    if fcntl is None:
        yield
        return
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{folder} is in use by a run that has not ended: wait for its end, or choose "
                "another folder"
            ) from None
        except OSError:  # a file system that has no locks
            pass
        yield
    finally:
        os.close(place)


class Guard:
    """Ends the process in good order at Ctrl-C and SIGTERM; a context manager.

    Outside `holding` a signal raises `Stopped` at once. Inside it is only noted in `asked`: whoever
    holds looks there between two pieces of work, makes everything safe and calls `stop`. Python
    can do neither while it waits for a compilation or for a device, so a thread watches too: what
    has not ended after some seconds, or is told a second time, it ends with the `last_words`.

    Args:
      last_words: what is kept and how to go on from it, to follow "interrupted".
      grace: seconds from the signal to the end.
    """

    def __init__(self, last_words: Callable[[], str], grace: float = GRACE_SECONDS) -> None:
        self.last_words, self.grace = last_words, grace
        self.asked: int | None = None
        self._held = False
        self._ended = threading.Event()

    def __enter__(self) -> "Guard":
        self._active = threading.current_thread() is threading.main_thread()
        if not self._active:
            return self
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        # Whoever starts a process in the background may have told it to ignore Ctrl-C.
        self._numbers = [n for n in WORDS if signal.getsignal(n) is not signal.SIG_IGN]
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
            os.close(self._write)  # the watch reads the end of the file, and ends

    @contextmanager
    def holding(self) -> Iterator[None]:
        """While inside, signals are noted and no more."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        self.stop()

    def stop(self) -> None:
        """Raises `Stopped` if a signal has come."""
        if self.asked is not None:
            raise Stopped(self.asked, self.last_words())

    def _handle(self, number: int, _: object) -> None:
        first, self.asked = self.asked is None, number
        if first and not self._held:
            self.stop()

    def _watch(self) -> None:
        """Runs beside the main thread: Python writes every signal to the pipe as it comes."""
        told = 0
        with open(self._read, "rb", buffering=0) as pipe:
            while number := pipe.read(1):
                if number[0] not in self._numbers:
                    continue
                told += 1
                wait = self.grace if told == 1 else 0.0
                threading.Timer(wait, self._end, [number[0]]).start()

    def _end(self, number: int) -> None:
        if self._ended.is_set():
            return
        with contextlib.suppress(Exception):
            if sys.stdout.isatty():
                print("\x1b[?25h", end="", flush=True)  # the cursor, hidden by a progress bar
            print(Stopped(number, self.last_words()), file=sys.stderr, flush=True)
        os._exit(128 + number)
