"""Kills the main job at random moments, again and again, and looks at what it ends in.

    python -m tests.stress.kill --kills 200

A run is started, stopped (SIGSTOP) after a random time, its folder looked at to say what it was
doing, killed (SIGKILL) and resumed, until one comes to its end. That end must be the end of a run
that nobody disturbed: the same SHA-256 of the parameters, the same metrics.csv and summary but for
what the clock says. Between the kills metrics.csv must be whole at every moment.
"""

import argparse
import collections
import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from tests.caches import own_cache

TIMES = ("train_seconds", "images_per_second", "compile_seconds", "start_seconds")
# Many short epochs, a checkpoint after each, and all but two deleted: much to interrupt.
WORDS = ["--epochs", "12", "--train-images", "1024", "--validation-images", "64"]
WORDS += ["--features", "4", "8", "--keep", "1", "--batch-size", "16"]


def start(place: Path, *words: str) -> subprocess.Popen:
    """Starts the main job, with a cache of its own and one device."""
    environment = {**os.environ, "XDG_CACHE_HOME": own_cache(place)}
    environment.pop("XLA_FLAGS", None)
    command = [sys.executable, "-m", "experiments.run", *words]
    log = (place / "log").open("a")
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log)


def phase(out: Path) -> str:
    """What a run that stands still was doing, as its folder tells."""
    if not (out / "config.json").exists():
        return "start-up"
    steps = list(out.glob("checkpoints/*"))
    if any("orbax-checkpoint-tmp" in path.name for path in steps):
        return "saving"
    whole = [path for path in steps if (path / "commit_success.txt").exists()]
    if len(whole) < len(steps):
        return "deleting"
    if (out / "figures").exists():
        return "in the closing test and the figures"
    if not steps:
        return "compiling or in the first epoch"
    return "training or starting again"


def check_rows(out: Path) -> list[dict[str, str]]:
    """metrics.csv without times: no row torn, missing or double.

    Raises:
      AssertionError: one is.
    """
    path = out / "metrics.csv"
    if not path.exists():
        return []
    text = path.read_text()
    rows = list(csv.DictReader(text.splitlines()))
    assert text.endswith("\n"), "the last row is torn"
    assert [row["epoch"] for row in rows] == [str(i + 1) for i in range(len(rows))], text
    assert all(None not in row and None not in row.values() for row in rows), text
    return [{k: v for k, v in row.items() if k not in TIMES} for row in rows]


def ending(out: Path) -> tuple[list[dict[str, str]], dict]:
    """What a finished run came to, without times."""
    summary = json.loads((out / "summary.json").read_text())
    return check_rows(out), {k: v for k, v in summary.items() if k not in TIMES}


def trial(
    kills: int, seed: int, place: Path, run: Sequence[str] = WORDS, say=print
) -> collections.Counter:
    """Kills a run so many times; how often in which phase.

    Raises:
      AssertionError: a run did not resume, or came to another end.
    """
    draw = random.Random(seed)
    for name in ("first", "whole"):  # the first fills the cache of compiled programs
        begun = time.monotonic()
        assert start(place, *run, "--out", str(place / name)).wait() == 0, place / "log"
        seconds = time.monotonic() - begun
    expected = ending(place / "whole")
    phases: collections.Counter = collections.Counter()
    chains = 0
    while sum(phases.values()) < kills:
        out = place / f"chain{chains}"
        words = [*run, "--out", str(out)]
        while True:
            process = start(place, *words)
            until = time.monotonic() + draw.uniform(0, 1.1 * seconds)
            while time.monotonic() < until and process.poll() is None:
                time.sleep(0.002)
            if sum(phases.values()) >= kills:
                process.wait()
            if process.poll() is not None:
                break
            process.send_signal(signal.SIGSTOP)
            phases[phase(out)] += 1
            process.kill()
            process.wait()
            check_rows(out)
            if (out / "config.json").exists():
                words = ["--resume", str(out)]
        assert process.returncode == 0, (out, (place / "log").read_text()[-2000:])
        assert ending(out) == expected, f"{out} has come to another end"
        chains += 1
        say(f"{sum(phases.values())} kills, {chains} runs to the same end")
        shutil.rmtree(out)
    return phases


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    flags = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="jaxdae-kill-"))
    phases = trial(flags.kills, flags.seed, place)
    for name, count in phases.most_common():
        print(f"{count:5} killed while {name}")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
