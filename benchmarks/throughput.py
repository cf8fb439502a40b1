"""Training and inference speed of the `strided` network, and the share of the machine's limits.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --batch-sizes 32 64 --tasks train --plain
    python -m benchmarks.throughput --dtypes float32 bfloat16 --json FILE --plot FILE

Training does what `experiments.run` does: the images lie on the device as bytes; each step gathers
its batch, draws noise and takes a step of Adam; one call takes many steps. Inference is
`jaxdae.inference.denoise`, compiled with the parameters as constants. On a CPU `--devices N` makes
N virtual devices, which share each batch.

Compilation is timed separately, and the first call is not counted. Then all cases take turns. The
table gives the median with the lowest and the highest, and two rates: operations per second, which
the network and the step need as they are written, and bytes per second, which the compiled program
moves by XLA's count when it consists of XLA's operations. Percentages are shares of two ceilings
measured in the same run: a product of two large matrices of the same type, accumulated in float32,
and a copy that is too large for any cache. A share can exceed 100%: small arrays stay in caches,
and our own kernels (`jaxdae.kernels.primitives`) move less than XLA's operations.

`--operations` adds the network without our CPU kernels, in XLA's operations, as on a machine
without a C++ compiler. `--plain` adds the network in the layers of `flax.linen`, on `jax.lax`'s
convolutions, with the same train step. On a CPU that step is called in a Python loop, because XLA's
convolutions are many times slower inside a scan; elsewhere both ways are timed, and the faster one
counts.
"""

import argparse
import contextlib
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from benchmarks.timing import in_turn, machine, markdown, not_a_file, spread
from jaxdae import kernels
from jaxdae.corruption import gaussian
from jaxdae.files import write_whole
from jaxdae.inference import denoise
from jaxdae.model import DenoisingAutoencoder
from jaxdae.objectives import Supervised
from jaxdae.optimizers import make_optimizer
from jaxdae.train_step import create_state, make_train_step
from jaxdae.training import AXIS, make_chunk, replicate


class PlainFlax(nn.Module):
    """The `strided` network as one would first write it."""

    dtype: Any = None
    example = property(lambda self: jnp.zeros((1, 28, 28, 1)))

    @nn.compact
    def __call__(self, x, sigma=None):
        window, two = (3, 3), (2, 2)
        x = nn.relu(nn.Conv(32, window, two, dtype=self.dtype)(x))
        x = nn.relu(nn.Conv(64, window, two, dtype=self.dtype)(x))
        x = nn.Dense(16, dtype=self.dtype)(x.reshape(len(x), -1))
        x = nn.Dense(7 * 7 * 64, dtype=self.dtype)(x).reshape(-1, 7, 7, 64)
        x = nn.relu(nn.ConvTranspose(64, window, two, dtype=self.dtype)(x))
        x = nn.relu(nn.ConvTranspose(32, window, two, dtype=self.dtype)(x))
        return nn.sigmoid(nn.ConvTranspose(1, window, dtype=self.dtype)(x).astype(jnp.float32))


OPERATIONS = "jaxdae without kernels"


class Case(NamedTuple):
    """What is timed: one line of the table."""

    task: str
    network: str
    dtype: str
    batch_size: int
    image_size: int = 28
    features: tuple[int, int] = (32, 64)


class Timed(NamedTuple):
    """A case that is compiled and warm.

    Fields:
      call: does `images` images.
      compile_seconds: what compiling took.
      operations, bytes: of one image, as the module's docstring says; None where XLA does not say.
    """

    call: Callable[[], Any]
    images: int
    compile_seconds: float
    operations: float | None
    bytes: float | None


def pixels(count: int, shape: tuple[int, ...]) -> np.ndarray:
    """So many images, uint8: what they show takes no part in the time."""
    return np.random.default_rng(0).integers(0, 256, (count, *shape), np.uint8)


def cost(function: Callable, batch_size: int, *arguments: Any) -> tuple[float | None, float | None]:
    """The operations and the bytes of an image, of a function of one batch."""
    with kernels.disabled():  # of our own kernels XLA knows nothing
        lowered = jax.jit(lambda *x: function(*x)).lower(*arguments)
    written, compiled = lowered.cost_analysis() or {}, lowered.compile().cost_analysis() or {}
    counts = written.get("flops"), compiled.get("bytes accessed")
    return tuple(None if count is None else count / batch_size for count in counts)  # type: ignore[return-value]


def ready(case: Case, images: int, devices: int) -> Timed:
    """Compiles a case and runs it once."""
    dtype, shape = jnp.dtype(case.dtype), (case.image_size, case.image_size)
    model: Any = PlainFlax(dtype=dtype)
    if not case.network.startswith("plain"):
        model = DenoisingAutoencoder(image_size=shape, features=case.features, dtype=dtype)
    steps = max(1, images // case.batch_size)
    images = steps * case.batch_size
    make = _train if case.task == "train" else _infer
    with kernels.disabled() if case.network == OPERATIONS else contextlib.nullcontext():
        start_to_call, costs = make(model, case, steps, devices)
        start = time.perf_counter()
        call = start_to_call()
        seconds = time.perf_counter() - start
    call()
    return Timed(call, images, seconds, *costs)


def _train(model: Any, case: Case, steps: int, devices: int) -> tuple[Callable, tuple]:
    ours = make_optimizer("adam", optax.constant_schedule(1e-3))
    optimizer = optax.adam(1e-3) if case.network.startswith("plain") else ours
    key = jax.random.key(0)
    make = partial(make_train_step, model, Supervised(gaussian(0.5)), optimizer)
    state = create_state(model, optimizer, 0)
    clean = pixels(steps * case.batch_size, model.example.shape[1:])
    batch = jnp.asarray(clean[: case.batch_size])
    # Of one piece, if the batch is taken in pieces: XLA counts the turns of a loop as one.
    with kernels.disabled():
        size = min(case.batch_size, kernels.gradient_piece()) if _on_cpu() else case.batch_size
    costs = cost(make(), size, state, batch[:size], key)
    indices = np.arange(len(clean), dtype=np.int32).reshape(steps, devices, -1).swapaxes(0, 1)

    def loop() -> Callable[[], Any]:
        step = jax.jit(make()).lower(state, batch, key).compile()
        batches = jnp.asarray(clean).reshape(steps, case.batch_size, *clean.shape[1:])

        def call() -> None:
            new = state
            for images in batches:
                new, _ = step(new, images, key)
            jax.block_until_ready(new)

        return call

    def chunk() -> Callable[[], Any]:
        pmapped = jax.pmap(
            make_chunk(make(axis_name=AXIS)),
            axis_name=AXIS,
            in_axes=(None, None, 0, None, None),
            out_axes=None,
            devices=jax.devices()[:devices],
        )
        placed = replicate((state, clean, key), jax.devices()[:devices])
        arguments = (*placed[:2], indices, np.int32(steps), placed[2])
        compiled = pmapped.lower(*arguments).compile()
        return lambda: jax.block_until_ready(compiled(*arguments))

    return loop if case.network == "plain in a loop" else chunk, costs


def _infer(model: Any, case: Case, steps: int, devices: int) -> tuple[Callable, tuple]:
    params = jax.jit(model.init)(jax.random.key(0), model.example)["params"]
    shape = (case.batch_size, *model.example.shape[1:])
    batches = [jax.random.uniform(jax.random.key(i), shape) for i in range(min(steps, 64))]

    def apply(images):
        if not case.network.startswith("plain"):
            return denoise(model, params, images)
        return model.apply({"params": params}, images)

    # Without the loop over pieces, whose turns XLA does not count.
    costs = cost(lambda p, x: model.apply({"params": p}, x), case.batch_size, params, batches[0])

    def start() -> Callable[[], Any]:
        compiled = jax.jit(apply).lower(batches[0]).compile()

        def call() -> None:
            out = [compiled(batches[i % len(batches)]) for i in range(steps)]
            jax.block_until_ready(out)

        return call

    return start, costs


def ceilings(dtypes: Sequence[str], repeats: int) -> dict[str, float]:
    """Operations a second of a large product in each type, and bytes a second of a large copy."""
    cpu = _on_cpu()
    side, values = (2048, 2**26) if cpu else (8192, 2**29)
    calls: dict[str, Callable[[], Any]] = {}
    for dtype in dtypes:
        a, b = jnp.ones((side, side), dtype), jnp.ones((side, side), dtype)
        product = jax.jit(partial(jnp.dot, preferred_element_type=jnp.float32))
        calls[dtype] = partial(_wait, product, a, b)
    x = jnp.zeros(values, jnp.float32)
    copy = jax.jit(lambda x: x + 1)
    calls["copy"] = partial(_wait, copy, x)
    for call in calls.values():
        call()
    best = {name: min(seconds) for name, seconds in in_turn(calls, repeats).items()}
    work = {name: 2 * x.nbytes if name == "copy" else 2 * side**3 for name in calls}
    return {name: work[name] / best[name] for name in calls}


def _on_cpu() -> bool:
    return jax.devices()[0].platform == "cpu"


def _wait(function: Callable, *arguments: Any) -> Any:
    return jax.block_until_ready(function(*arguments))


def measure(
    cases: Sequence[Case], *, images: int, repeats: int, devices: int = 1
) -> tuple[list[dict[str, Any]], dict[str, float]]:
    """A row for each case, all timed in turn, and the ceilings.

    Args:
      images: how many images a timed call does, about; an eighth of the plain network on a CPU,
        a tenth one at a time, and fewer of larger images or networks, by what they cost.
    """
    cpu = _on_cpu()
    dtypes = list(dict.fromkeys(case.dtype for case in cases))
    limits = ceilings(dtypes, repeats)
    timed = {}
    for case in cases:
        slow = 8 if cpu and case.network.startswith("plain") else 10 if case.batch_size == 1 else 1
        heavy = (case.image_size / 28 * case.features[0] / 32) ** 2
        timed[case] = ready(case, int(images / slow / max(1, heavy)), devices)
    seconds = in_turn({str(case): work.call for case, work in timed.items()}, repeats)
    rows = []
    for case, work in timed.items():
        speeds = [work.images / s for s in seconds[str(case)]]
        row = {**case._asdict(), "devices": devices, "images_per_second": speeds}
        row["compile_seconds"] = work.compile_seconds
        row["operations"], row["bytes"] = work.operations, work.bytes
        rows.append(row)
    return rows, limits


def table(rows: Sequence[dict[str, Any]], limits: dict[str, float]) -> str:
    """The rows as Markdown."""
    cells = []
    for row in rows:
        speed = statistics.median(row["images_per_second"])
        line = [row["task"], str(row["batch_size"]), row["dtype"], row["network"]]
        line += [spread(row["images_per_second"]), f"{row['compile_seconds']:.1f}"]
        for count, limit in (("operations", limits[row["dtype"]]), ("bytes", limits["copy"])):
            rate = row[count] and row[count] * speed
            line.append("" if rate is None else f"{rate / 1e9:,.0f} ({rate / limit:.0%})")
        ours = [r for r in rows if _kind(r) == _kind(row) and r["network"] == "jaxdae"]
        ratio = ""
        if row["network"] != "jaxdae" and ours:
            pairs = zip(ours[0]["images_per_second"], row["images_per_second"], strict=True)
            ratio = spread([a / b for a, b in pairs], 1)
        cells.append([*line, ratio])
    columns = ["task", "batch", "type", "network", "images/s", "compiling, s", "GFLOP/s", "GB/s"]
    if all(not line[-1] for line in cells):
        return markdown(columns, [line[:-1] for line in cells])
    return markdown([*columns, "speedup of jaxdae"], cells)


def _kind(row: dict[str, Any]) -> tuple:
    """What two networks must have in common to be compared."""
    return row["task"], row["dtype"], row["batch_size"]


def draw(rows: Sequence[dict[str, Any]], path: Path, title: str) -> None:
    """Images/s against the batch size, a line for each task, type and network."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import ScalarFormatter

    figure = Figure(figsize=(8.5, 4), layout="constrained")
    axes = figure.add_subplot()
    kinds = dict.fromkeys((r["task"], r["dtype"], r["network"]) for r in rows)
    for kind in kinds:
        own = [r for r in rows if (r["task"], r["dtype"], r["network"]) == kind]
        own.sort(key=lambda r: r["batch_size"])
        sizes = [r["batch_size"] for r in own]
        low, mid, high = (
            [f(r["images_per_second"]) for r in own] for f in (min, statistics.median, max)
        )
        (line,) = axes.plot(sizes, mid, "o-" if kind[0] == "train" else "s--", markersize=4)
        line.set_label(" ".join(kind))
        axes.fill_between(sizes, low, high, alpha=0.2, color=line.get_color(), linewidth=0)
    axes.set(xscale="log", yscale="log", xlabel="batch size", ylabel="images/s", title=title)
    axes.set_xticks(sorted({r["batch_size"] for r in rows}))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.minorticks_off()
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small")
    figure.savefig(path, dpi=150)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        "python -m benchmarks.throughput", description=__doc__, formatter_class=formatter
    )
    add = parser.add_argument
    add("--tasks", nargs="+", default=["train", "infer"], choices=["train", "infer"])
    add("--batch-sizes", type=int, nargs="+", metavar="N", help="(default: by the device)")
    add("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    add("--devices", type=int, default=1, metavar="N", help="share each batch (default: 1)")
    add("--operations", action="store_true", help="the same without our CPU kernels beside it")
    add("--plain", action="store_true", help="the same network in flax.linen's layers beside it")
    add("--repeats", type=int, default=5, metavar="N", help="timed turns (default: 5)")
    add("--images", type=int, metavar="N", help="in a timed call (default: by the device)")
    add("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    add("--plot", type=Path, metavar="FILE", help="draw images/s against the batch size into FILE")
    flags = parser.parse_args(argv)
    given = [*(flags.batch_sizes or [1]), flags.repeats, flags.images or 1, flags.devices]
    wrong = not_a_file("--json", flags.json) or not_a_file("--plot", flags.plot)
    if min(given) < 1:
        wrong = "error: batch sizes, repeats, images and devices must be at least 1"
    if wrong:
        print(wrong, file=sys.stderr)
        return 2
    if flags.devices > 1:
        with contextlib.suppress(RuntimeError):  # the devices are there already
            jax.config.update("jax_num_cpu_devices", flags.devices)
    here = machine()
    cpu = here["platform"] == "cpu"
    sizes = flags.batch_sizes or ([1, 32, 64, 128, 512] if cpu else [32, 256, 2048, 8192, 32768])
    images = flags.images or (6400 if cpu else 2**18)
    if flags.devices > len(jax.devices()) or any(size % flags.devices for size in sizes):
        print(
            f"error: {flags.devices} devices of {len(jax.devices())} here cannot share batches of "
            f"{', '.join(map(str, sizes))} evenly: choose other --devices or --batch-sizes",
            file=sys.stderr,
        )
        return 2
    cases = [
        Case(task, network, dtype, size)
        for task in flags.tasks
        for dtype in flags.dtypes
        for size in sizes
        for network in ("jaxdae", *[OPERATIONS] * flags.operations, *_plain(task, flags.plain))
        if (task, size) != ("train", 1)
    ]
    rows, limits = measure(cases, images=images, repeats=flags.repeats, devices=flags.devices)
    rows = fastest(rows)
    where = f"{here['device']}, {here['cores']} cores" if cpu else here["device"]
    print(f"{where}; jax {here['jax']}, flax {here['flax']}, {here['date']}")
    products = ", ".join(f"{limits[dtype] / 1e9:,.0f} GFLOP/s in {dtype}" for dtype in flags.dtypes)
    print(f"ceilings: {products}; {limits['copy'] / 1e9:,.0f} GB/s\n")
    print(table(rows, limits))
    if flags.json:
        report = {"machine": here, "ceilings": limits, "rows": rows}
        write_whole(flags.json, json.dumps(report, indent=1) + "\n")
    if flags.plot:
        draw(rows, flags.plot, where)
    return 0


def _plain(task: str, wanted: bool) -> tuple[str, ...]:
    """The ways to run the plain network."""
    if not wanted:
        return ()
    if task == "infer":
        return ("plain",)
    return ("plain in a loop",) if _on_cpu() else ("plain in a scan", "plain in a loop")


def fastest(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of the ways to run the plain network, the fastest only."""

    def speed(row: dict[str, Any]) -> float:
        return statistics.median(row["images_per_second"])

    best: dict[tuple, dict[str, Any]] = {}
    for row in rows:
        key = (*_kind(row), row["network"].partition(" in a ")[0])
        if key not in best or speed(row) > speed(best[key]):
            best[key] = row
    return list(best.values())


if __name__ == "__main__":
    sys.exit(main())
