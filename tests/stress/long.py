"""Runs the main job for thousands of short epochs, and looks at what grows.

    python -m tests.stress.long --epochs 2000

Memory, open files, threads and the time of an epoch are read from outside every second. The second
half of the run must hold no more than the first (5% for memory, and for the time of an epoch 30%,
for other work shares the machine), and as many checkpoints as are to be kept.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from tests.stress.kill import WORDS, check_rows, start

KEEP = 3


def held(pid: int) -> dict[str, int]:
    """What a process holds: memory in kB, open files, threads."""
    status = Path(f"/proc/{pid}/status").read_text()
    fields = dict(line.split(":", 1) for line in status.splitlines() if ":" in line)
    return {
        "memory": int(fields["VmRSS"].split()[0]),
        "files": len(os.listdir(f"/proc/{pid}/fd")),
        "threads": int(fields["Threads"]),
    }


def trial(epochs: int, place: Path, say=print) -> dict[str, tuple[float, float]]:
    """The median of each measure in the second and in the last quarter of the run.

    Raises:
      AssertionError: something has grown.
    """
    out = place / "long"
    words = [*WORDS, "--epochs", str(epochs), "--keep", str(KEEP), "--no-figures"]
    process = start(place, *words, "--out", str(out))
    samples: list[dict[str, float]] = []
    while process.poll() is None:
        time.sleep(1 if epochs > 200 else 0.05)
        try:
            sample: dict[str, float] = dict(held(process.pid))
            done = len((out / "metrics.csv").read_text().splitlines()) - 1
            checkpoints = len([p for p in out.glob("checkpoints/*") if p.name.isdigit()])
        except (OSError, KeyError):  # not begun, or gone in between
            continue
        assert checkpoints <= KEEP + 2, f"{checkpoints} checkpoints"  # the best, and one under way
        samples.append({**sample, "epochs": done, "at": time.monotonic()})
        if len(samples) % 60 == 0:
            say(samples[-1])
    assert process.returncode == 0, (place / "log").read_text()[-2000:]
    assert len(check_rows(out)) == epochs

    def part(low: float, high: float) -> list[dict[str, float]]:
        return [s for s in samples if low * epochs <= s["epochs"] <= high * epochs]

    measures: dict[str, tuple[float, float]] = {}
    early, late = part(0.25, 0.5), part(0.75, 1.0)
    for name, allowed in (("memory", 1.05), ("files", 1.1), ("threads", 1.1)):
        before, after = (statistics.median(s[name] for s in some) for some in (early, late))
        measures[name] = before, after
        assert after <= allowed * before + 1, (
            f"{name}: {before} in the second quarter, then {after}"
        )
    if epochs > 200:
        pace = [
            (some[-1]["at"] - some[0]["at"]) / (some[-1]["epochs"] - some[0]["epochs"])
            for some in (early, late)
        ]
        measures["seconds an epoch"] = pace[0], pace[1]
        assert pace[1] <= 1.3 * pace[0], f"an epoch took {pace[0]:.3f} s, then {pace[1]:.3f} s"
    return measures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    flags = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="jaxdae-long-"))
    for name, (before, after) in trial(flags.epochs, place).items():
        print(f"{name}: {before:g} in the second quarter, {after:g} in the last")
    shutil.rmtree(place)


if __name__ == "__main__":
    main()
