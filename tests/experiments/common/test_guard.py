"""Signals: raised at once, held back, or answered for a main thread that cannot."""

import os
import signal
import subprocess
import sys
import time

import pytest

from experiments.common.guard import Guard, Stopped, locked
from jaxdae.errors import InputError

pytestmark = pytest.mark.usefixtures("heeded")


def signalled(number, seconds=1.0):
    """Sends this process a signal and waits for its effect, if that is to interrupt."""
    os.kill(os.getpid(), number)
    time.sleep(seconds)


def test_a_signal_is_raised_at_once():
    guard = Guard(lambda: "; all is kept")
    with pytest.raises(Stopped, match=r"^terminated; all is kept$"), guard:
        signalled(signal.SIGTERM)
    assert guard.signalled == signal.SIGTERM


def test_a_signal_is_held_back_until_the_work_is_done():
    done = []

    def work():
        with Guard(lambda: "") as guard:
            with guard.deferred():
                signalled(signal.SIGINT, 0.05)
                done.append(guard.signalled)
            done.append("never")

    with pytest.raises(Stopped) as stopped:
        work()
    assert done == [signal.SIGINT]
    assert stopped.value.number == signal.SIGINT


def test_handlers_are_as_before_afterwards():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    with Guard(lambda: ""):
        assert signal.getsignal(signal.SIGTERM) != before[1]
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    assert signal.set_wakeup_fd(-1) == -1


BUSY = """
import sys, time
from experiments.common.guard import Guard
with Guard(lambda: "; go on", grace=float(sys.argv[1])) as guard, guard.deferred():
    print("ready", flush=True)
    while True:
        time.sleep(1)  # asks for nothing
"""


@pytest.mark.parametrize(("grace", "signals"), [(0.5, 1), (60, 2)])
def test_what_does_not_end_is_ended(grace, signals):
    """After the time of grace, or at the second signal."""
    process = subprocess.Popen(
        [sys.executable, "-c", BUSY, str(grace)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout.readline() == "ready\n"
    for _ in range(signals):
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
    _, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (143, "terminated; go on\n")


def test_a_folder_is_held_by_one(tmp_path):
    with locked(tmp_path), pytest.raises(InputError, match="is in use"), locked(tmp_path):
        pass
    with locked(tmp_path):
        assert list(tmp_path.iterdir()) == []
