"""Several processes on loopback: the same run as one process, also when one of them is lost."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import pytest

from experiments.run import main
from tests.caches import own_cache

# Differentiated in four parts, any devices that share those agree to the bit.
# Each process compiles: a small network, the same program whatever the epochs, and digits held
# out to test on, which no classifier is asked to read.
WORDS = ["--epochs", "2", "--train-images", "512", "--validation-images", "64", "--features", "4"]
WORDS += ["--microbatches", "4", "--schedule", "constant", "--no-figures"]


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("heeded")]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("cluster")


def start(place, words, processes, devices):
    """Starts all processes of a run."""
    environment = {**os.environ, "XDG_CACHE_HOME": own_cache(place)}
    environment["XLA_FLAGS"] = os.environ["TESTS_XLA_FLAGS"]
    command = [sys.executable, "-m", "experiments.run", *map(str, words), "--devices", str(devices)]
    if processes == 1:
        commands = [command]
    else:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        shared = ["--coordinator", address, "--num-processes", str(processes)]
        commands = [[*command, *shared, "--process-id", str(i)] for i in range(processes)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return [subprocess.Popen(words, env=environment, **pipes) for words in commands]


def finish(processes, seconds=120):
    return [(process.wait(seconds), *process.communicate()) for process in processes]


def result(folder):
    """The losses of training, the parameters' SHA-256, and the metrics of the tests."""
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    trained = [(row["epoch"], row["step"], row["train_loss"]) for row in rows]
    tested = [float(row[name]) for row in rows for name in row if name.startswith("test_")]
    return trained, json.loads((folder / "summary.json").read_text())["params_sha256"], tested


@pytest.fixture(scope="module")
def one(place):
    """Four devices in one process."""
    ((code, _, err),) = finish(start(place, [*WORDS, "--out", place / "one"], 1, 4))
    assert (code, err) == (0, "")
    return result(place / "one")


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_are_as_one(processes, place, one):
    out = place / f"of-{processes}"
    ends = finish(start(place, [*WORDS, "--out", out], processes, 4))
    assert [code for code, _, _ in ends] == [0] * processes, ends
    # Only the first speaks, but for the library that connects them, whose lines come torn.
    for i, (_, said, _) in enumerate(ends):
        assert [line in said for line in ("epoch 1/2", "sigma", "images/s")] == [i == 0] * 3, said
    trained, params, tested = result(out)
    assert (trained, params) == one[:2]
    assert tested == pytest.approx(one[2], rel=1e-6)  # on the devices of one process


@pytest.mark.parametrize(
    ("number", "victim"), [(signal.SIGTERM, 1), (signal.SIGKILL, 1), (signal.SIGKILL, 0)]
)
def test_stopped_or_lost_it_goes_on_with_another_number(number, victim, place):
    """A process is told to stop, or killed: all end in time and say so, and one process goes on."""
    out = place / f"ended-{int(number)}-{victim}"
    processes = start(place, [*WORDS, "--epochs", 400, "--out", out], 2, 4)
    until = time.monotonic() + 100
    while not list(out.glob("checkpoints/32/commit_success.txt")):
        assert all(process.poll() is None for process in processes), finish(processes)
        assert time.monotonic() < until
        time.sleep(0.01)
    processes[victim].send_signal(number)
    begun = time.monotonic()
    ends = finish(processes, 30)
    assert time.monotonic() - begun < 30
    code, _, err = ends[1 - victim if number == signal.SIGKILL else 0]
    last = err.splitlines()[-1]
    if number == signal.SIGTERM:
        assert (code, ends[1][0]) == (143, 143)
        assert last.startswith("terminated; the checkpoint of step ")
    else:
        assert (code, ends[victim][0]) == (3, -9), err
        assert last.startswith(f"stopped: process {victim} of 2 is lost (")
    assert last.endswith(f"python -m experiments.run --resume {out}")
    (again,) = start(place, ["--resume", out], 1, 4)
    step = int(found[1]) if (found := re.search(r"of step (\d+)", last)) else 32
    while not (line := again.stdout.readline()).startswith("resumed after epoch"):
        assert again.poll() is None
    again.kill()
    epoch, _, steps = line.removeprefix("resumed after epoch ").partition(" and ")
    assert step <= 16 * int(epoch) + int((steps or "0").split()[0])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--coordinator 127.0.0.1:1", "--num-processes, --process-id: give all three"),
        ("--coordinator here --num-processes 2 --process-id 0", "must be HOST:PORT"),
        ("--coordinator h:1 --num-processes 2 --process-id 2", "less than 2"),
        ("--distributed --process-id 1", "leave out --coordinator"),
        ("--coordinator h:1 --num-processes 2 --process-id 1 --devices 3", "choose 4"),
    ],
)
def test_what_does_not_fit_is_refused(words, said, capsys):
    assert main(words.split()) == 2
    err = capsys.readouterr().err
    assert said in err and err.count("\n") == 1
