"""Wall time and core time from the start of a process to a test error, beside Keras's script.

    python -m benchmarks.time_to_quality --keras .peers/tensorflow/bin/python

For each seed Keras trains the tutorial's network for ten epochs (`benchmarks/keras_network.py`,
which tests nothing). Then jaxdae trains it for 1, 2 and 3 epochs, in float32 and in bfloat16
(`experiments.run --sigma 0.5 --epochs N --dtype TYPE --eval-sigmas 0.5 --no-figures`, with its
tests, checkpoints and final table; `--words` adds flags). Each length runs twice: first with an
empty cache of compiled programs, then with a full one. The processes run one after the other, from
start to end, on a machine that does nothing else. All networks are tested on the same noisy test
images.
"""

import argparse
import csv
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.common import cli
from jaxdae.files import write_whole

ROOT = Path(__file__).parents[1]
KIND = ("system", "dtype", "epochs", "images", "cached")
COLUMNS = ("wall_seconds", "core_seconds", "peak_megabytes")


def whole_process(command: list[str], cache: Path, log: Path) -> dict[str, float]:
    """Runs a command: its wall seconds, its seconds of all processors, its peak memory.

    Raises:
      RuntimeError: it fails.
    """
    environment = {**os.environ, "XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}
    # Python keeps what it has compiled of the packages, unless it is told not to.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    actions = [(os.POSIX_SPAWN_DUP2, output, 1), (os.POSIX_SPAWN_DUP2, output, 2)]
    start = time.perf_counter()
    process = os.posix_spawn(command[0], command, environment, file_actions=actions)
    _, status, used = os.wait4(process, 0)
    wall = time.perf_counter() - start
    os.close(output)
    if status:
        last = (log.read_text().strip().splitlines() or ["nothing"])[-1]
        raise RuntimeError(f"{' '.join(command)} failed, and said: {last}")
    figures = (wall, used.ru_utime + used.ru_stime, used.ru_maxrss / 1024)
    return dict(zip(COLUMNS, figures, strict=True))


def keras_curve(weights: Path, epochs: int) -> list[dict[str, float]]:
    """The test error of Keras's network after each epoch, with the seconds since it began."""
    import numpy as np
    from flax.traverse_util import unflatten_dict

    from jaxdae.corruption import gaussian
    from jaxdae.data import load
    from jaxdae.evaluation import Evaluator
    from jaxdae.model import DenoisingAutoencoder

    evaluate = Evaluator(DenoisingAutoencoder(), gaussian, load("mnist").test.images)
    rows = []
    for epoch in range(1, epochs + 1):
        with np.load(weights.with_name(f"{weights.stem}-epoch{epoch}.npz")) as file:
            flat = {name: file[name] for name in file.files}
        seconds = float(flat.pop("seconds"))
        error = evaluate(unflatten_dict(flat, sep="/"), 0.5)["mse"]
        rows.append({"epoch": epoch, "seconds": seconds, "mse": error})
    return rows


def one_seed(
    keras: str,
    seed: int,
    lengths: Sequence[int],
    more: str,
    dtypes: Sequence[str],
    folder: Path,
) -> list[dict[str, Any]]:
    """A row for each process: Keras's, and the main job at each length, twice."""
    weights = folder / f"keras-{seed}.npz"
    script = str(ROOT / "benchmarks/keras_network.py")
    command = [keras, script, "--seed", str(seed), "--out", str(weights), "--each-epoch"]
    used = whole_process(command, folder, folder / "log")
    curve = keras_curve(weights, 10)
    rows: list[dict[str, Any]] = [
        {"system": "keras", "seed": seed, "epochs": 10, "images": 60_000, **used}
    ]
    rows[0] |= {"mse": curve[-1]["mse"], "curve": curve}
    for dtype, epochs in itertools.product(dtypes, lengths):
        name = f"{seed}-{dtype}-{epochs}"
        for cached in (False, True):
            out = folder / f"run-{name}-{cached}"
            words = f"--sigma 0.5 --epochs {epochs} --seed {seed} --dtype {dtype} "
            words += f"--eval-sigmas 0.5 --no-figures --out {out} {more}"
            command = [sys.executable, "-m", "experiments.run", *words.split()]
            used = whole_process(command, folder / f"cache-{name}", folder / "log")
            with open(out / "metrics.csv", newline="") as file:
                error = float(list(csv.DictReader(file))[-1]["test_mse"])
            start = json.loads((out / "summary.json").read_text())["start_seconds"]
            images = json.loads((out / "config.json").read_text())["train_images"] or 60_000
            row = {"system": "jaxdae", "dtype": dtype, "seed": seed, "epochs": epochs}
            row |= {"images": images, "cached": cached, **used}
            rows.append({**row, "start_seconds": start, "mse": error})
    return rows


def summarize(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Means over the seeds, with Keras's figures divided by them."""

    def kind(row: dict[str, Any]) -> tuple:
        return tuple(row.get(name) for name in KIND)

    means: list[dict[str, Any]] = []
    for about in dict.fromkeys(map(kind, rows)):
        group = [row for row in rows if kind(row) == about]
        names = [name for name in (*COLUMNS, "start_seconds", "mse") if name in group[0]]
        mean = {name: statistics.fmean(row[name] for row in group) for name in names}
        means.append({**dict(zip(KIND, about, strict=True)), **mean})
    reference = means[0]
    for mean in means:
        mean["ratio"] = reference["wall_seconds"] / mean["wall_seconds"]
    return means


def markdown(means: Sequence[dict[str, Any]]) -> str:
    """The table."""
    lines = [
        "| system | epochs of images | test MSE | wall time, s | start to first step, s "
        "| core time, s | peak memory, MB | speedup over Keras |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for mean in means:
        name = {None: "", True: ", later run", False: ", first run"}
        dtype = f", {mean['dtype']}" if mean["dtype"] else ""
        start = f"{mean['start_seconds']:.1f}" if "start_seconds" in mean else ""
        lines.append(
            f"| {mean['system']}{dtype}{name[mean['cached']]} | "
            f"{mean['epochs']} of {mean['images']:,} | "
            f"{mean['mse']:.4f} | {mean['wall_seconds']:.1f} | {start} | "
            f"{mean['core_seconds']:.1f} | {mean['peak_megabytes']:,.0f} | {mean['ratio']:.1f} |"
        )
    return "\n".join(lines)


def draw(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Test error against wall time: Keras epoch by epoch, the main job by its length."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.add_subplot()
    for i, row in enumerate(row for row in rows if row["system"] == "keras"):
        seconds, errors = zip(*((p["seconds"], p["mse"]) for p in row["curve"]), strict=True)
        axes.plot(seconds, errors, "o-", color="C1", markersize=3, label=None if i else "Keras")
    ours = [row for row in rows if row["system"] == "jaxdae"]
    kinds = dict.fromkeys((row["dtype"], row["cached"]) for row in ours)
    for dtype, cached in kinds:
        points = [r for r in ours if (r["dtype"], r["cached"]) == (dtype, cached)]
        label = f"jaxdae, {dtype}{', later run' if cached else ', first run'}"
        walls, tested = [p["wall_seconds"] for p in points], [p["mse"] for p in points]
        colour = {"float32": "C0", "bfloat16": "C2"}[dtype]
        style = "x" if cached else "o"
        axes.plot(walls, tested, style, color=colour, markersize=4, label=label)
    axes.set_xscale("log")
    axes.set_xticks([], [], minor=True)
    axes.set_xticks([10, 20, 30, 60, 100, 200], ["10", "20", "30", "60", "100", "200"])
    axes.set(
        xlabel="seconds from the start of the process",
        ylabel="test mean squared error at sigma 0.5",
        ylim=(0.013, 0.03),
    )
    axes.legend()
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a process failed, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.time_to_quality", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--keras", required=True, metavar="PYTHON", help="a Python that has Keras and TensorFlow")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    add("--epochs", type=int, nargs="+", default=[1, 2, 3], metavar="N", help="the main job's")
    add("--words", default="", metavar="FLAGS", help="more of the main job's flags, as one word")
    types = ["float32", "bfloat16"]
    add("--dtypes", nargs="+", default=types, choices=types, help="the main job's")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    add("--plot", type=Path, metavar="FILE", help="draw test error against time into FILE")
    flags = parser.parse_args(argv)

    def work() -> int:
        rows: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as folder:
            for seed in flags.seeds:
                lengths, more = flags.epochs, flags.words
                try:
                    rows += one_seed(flags.keras, seed, lengths, more, flags.dtypes, Path(folder))
                except RuntimeError as error:
                    print(f"stopped: {error}", file=sys.stderr)
                    return 1
                print(markdown(summarize(rows)), flush=True)
                if flags.json:
                    write_whole(flags.json, json.dumps(rows, indent=1) + "\n")
        if flags.plot:
            draw(rows, flags.plot)
        return 0

    return cli.status(work, "mend that")


if __name__ == "__main__":
    sys.exit(main())
