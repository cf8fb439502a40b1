"""How the cost of training grows with the image, the network, the data set and the devices.

    python -m benchmarks.growth
    python -m benchmarks.growth --axes size data --json FILE --plot FILE

One thing grows at a time. The rest is the default job: batches of 32 images of 28x28, the `strided`
network with 32 and 64 channels, one device. (`benchmarks.throughput` varies the batch size.)

    size     the image's side
    width    the network's channels, from 16 and 32 to 128 and 256
    data     the number of images in a file: kept on the device, or streamed to it one chunk ahead.
             Each point runs in its own process and reports its memory: its own pages, without the
             pages of the file, which the system may drop at any time
    devices  on a CPU virtual ones, which share its cores; each has 32 images of every batch

The points of an axis take turns, and the table gives the median with the lowest and the highest.
Operations per second show if a larger image or network is computed as efficiently as a small one.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.throughput import Case, measure
from benchmarks.timing import machine, markdown, not_a_file, spread
from jaxdae.corruption import gaussian
from jaxdae.files import write_whole
from jaxdae.model import DenoisingAutoencoder
from jaxdae.objectives import Supervised
from jaxdae.optimizers import make_optimizer
from jaxdae.train_step import create_state, make_train_step
from jaxdae.training import AXIS, train

AXES = ("size", "width", "data", "devices")
MAIN = Case("train", "jaxdae", "float32", 32)


def networks(cases: Sequence[Case], labels: Sequence[str], **options: Any) -> list[dict[str, Any]]:
    """The points of an axis on which each is another case."""
    rows, _ = measure(cases, **options)
    return [{"at": label, **row} for label, row in zip(labels, rows, strict=True)]


def data(sizes: Sequence[int], images: int, repeats: int) -> list[dict[str, Any]]:
    """The points of the data axis: each size on the device and streamed, in turn."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for size in sizes:
            file = Path(folder) / f"{size}.npy"
            mapped = np.lib.format.open_memmap(file, "w+", np.uint8, (size, 28, 28, 1))
            for start in range(0, size, 10_000):
                part = mapped[start : start + 10_000]
                part[:] = np.random.default_rng(start).integers(0, 256, part.shape, np.uint8)
            mapped.flush()
            del mapped
            measured: dict[bool, list[dict[str, float]]] = {True: [], False: []}
            for _ in range(repeats):
                for resident, points in measured.items():
                    words = ["--one", str(file), str(int(resident)), str(images)]
                    command = [sys.executable, "-m", "benchmarks.growth", *words]
                    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
                    points.append(json.loads(done.stdout))
            file.unlink()
            for resident, points in measured.items():
                how = "on the device" if resident else "streamed"
                row = {"at": f"{size:,} images, {how}", "size": size, "resident": resident}
                rows.append(row | {name: [p[name] for p in points] for name in points[0]})
    return rows


def one(file: str, resident: bool, images: int) -> dict[str, float]:
    """Trains on so many images of a file: images/s after the first chunk, and the peak memory."""
    model = DenoisingAutoencoder()
    optimizer = make_optimizer("adam", optax.constant_schedule(1e-3))
    step = make_train_step(model, Supervised(gaussian(0.5)), optimizer, axis_name=AXIS)
    progress = train(
        step,
        create_state(model, optimizer, 0),
        np.load(file, mmap_mode="r"),
        seed=0,
        epochs=range(1_000_000),
        batch_size=MAIN.batch_size,
        devices=jax.devices()[:1],
        chunk_seconds=float("inf"),
        resident=resident,
    )
    next(progress)
    seen, memory, start = 0, 0.0, time.perf_counter()
    while seen < images:
        seen += next(progress).images
        memory = max(memory, own_megabytes())
    return {
        "images_per_second": seen / (time.perf_counter() - start),
        "megabytes": memory,
    }


def own_megabytes() -> float:
    """The memory that this process holds, but for files; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("RssAnon:"):
                return int(line.split()[1]) / 1024
    return 0.0


def devices(counts: Sequence[int], images: int, repeats: int) -> list[dict[str, Any]]:
    """The points of the devices axis: the devices are counted as a process starts."""
    turns: dict[int, list[float]] = {count: [] for count in counts}
    for _ in range(repeats):
        for count, speeds in turns.items():
            with tempfile.NamedTemporaryFile() as file:
                words = f"--tasks train --batch-sizes {32 * count} --devices {count} --repeats 1"
                words += f" --images {images} --json {file.name}"
                command = [sys.executable, "-m", "benchmarks.throughput", *words.split()]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
                (row,) = json.loads(Path(file.name).read_text())["rows"]
                speeds += row["images_per_second"]
    return [
        {"at": f"{count}", "devices": count, "images_per_second": speeds}
        for count, speeds in turns.items()
    ]


def grow(axis: str, images: int, repeats: int, largest: int) -> list[dict[str, Any]]:
    """The points of an axis, from the smallest on.

    Args:
      largest: the largest image's side, number of images in a file (in thousands), and of devices.
    """
    options = {"images": images, "repeats": repeats}
    if axis == "size":
        sides = [side for side in (28, 56, 112, 224, 256) if side <= largest]
        labels = [f"{side}x{side}" for side in sides]
        return networks([MAIN._replace(image_size=side) for side in sides], labels, **options)
    if axis == "width":
        widths = [(16, 32), (32, 64), (64, 128), (128, 256)]
        labels = [f"{a} and {b}" for a, b in widths]
        return networks([MAIN._replace(features=pair) for pair in widths], labels, **options)
    if axis == "data":
        return data([n * 1000 for n in (10, 60, 250, 1000) if n <= largest], images, repeats)
    cpu = jax.devices()[0].platform == "cpu"
    most = 8 if cpu else jax.device_count()
    return devices([n for n in (1, 2, 4, 8) if n <= min(most, largest)], images, repeats)


def table(axis: str, rows: Sequence[dict[str, Any]]) -> str:
    """An axis as Markdown."""
    columns = [axis, "images/s", "relative to the first row"]
    first = statistics.median(rows[0]["images_per_second"])
    cells = []
    for row in rows:
        speed = statistics.median(row["images_per_second"])
        line = [row["at"], spread(row["images_per_second"]), f"{speed / first:.2f}"]
        if row.get("operations"):
            line.append(f"{row['operations'] * speed / 1e9:,.0f}")
        if row.get("megabytes"):
            line.append(f"{max(row['megabytes']):,.0f}")
        cells.append(line)
    columns += ["GFLOP/s"] if rows[0].get("operations") else []
    columns += ["memory, MB"] if rows[0].get("megabytes") else []
    return markdown(columns, cells)


def draw(report: dict[str, list[dict[str, Any]]], path: Path, title: str) -> None:
    """Images/s along each axis."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(report), 3.4), layout="constrained")
    panels = figure.subplots(1, len(report), squeeze=False)[0]
    for axes, (axis, rows) in zip(panels, report.items(), strict=True):
        names = [row["at"].replace(" images, ", "\n").replace(" and ", ",\n") for row in rows]
        speeds = [row["images_per_second"] for row in rows]
        middle = [statistics.median(values) for values in speeds]
        low = [m - min(values) for m, values in zip(middle, speeds, strict=True)]
        high = [max(values) - m for m, values in zip(middle, speeds, strict=True)]
        axes.bar(names, middle, yerr=[low, high], color="C0", ecolor="0.35", width=0.6)
        if max(middle) > 20 * min(middle):
            axes.set_yscale("log")
        axes.set_title(axis, fontsize=10)
        axes.tick_params("x", labelsize=7, rotation=90 if axis == "data" else 0)
        axes.set_ylabel("training, images/s", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.growth", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--axes", nargs="+", default=list(AXES), choices=AXES, help="which (default: all)")
    add("--images", type=int, default=6400, metavar="N", help="in a timed call (default: 6400)")
    add("--repeats", type=int, default=3, metavar="N", help="timed turns (default: 3)")
    add("--largest", type=int, default=1000, metavar="N", help="leave out larger points")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    add("--plot", type=Path, metavar="FILE", help="draw images/s along each axis into FILE")
    add("--one", nargs=3, help=argparse.SUPPRESS)  # a point of the data axis, in its process
    flags = parser.parse_args(argv)
    if flags.one:
        file, resident, images = flags.one
        print(json.dumps(one(file, resident == "1", int(images))))
        return 0
    wrong = not_a_file("--json", flags.json) or not_a_file("--plot", flags.plot)
    if min(flags.repeats, flags.images) < 1 or flags.largest < 28:
        wrong = "error: repeats and images must be at least 1, and --largest at least 28"
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    here = machine()
    where = f"{here['device']}, {here['cores']} cores" if here["cores"] else here["device"]
    print(f"{where}; jax {here['jax']}, flax {here['flax']}, {here['date']}")
    report: dict[str, list[dict[str, Any]]] = {}
    for axis in flags.axes:
        report[axis] = grow(axis, flags.images, flags.repeats, flags.largest)
        print(f"\n{table(axis, report[axis])}", flush=True)
    if flags.json:
        write_whole(flags.json, json.dumps({"machine": here, "axes": report}, indent=1) + "\n")
    if flags.plot:
        draw(report, flags.plot, where)
    return 0


if __name__ == "__main__":
    sys.exit(main())
