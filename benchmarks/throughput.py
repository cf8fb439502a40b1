"""Training throughput: images/s of the `strided` network, against plain Flax layers.

    python -m benchmarks.throughput
    python -m benchmarks.throughput --batch-sizes 32 64 128 --dtypes float32 bfloat16

Both networks take the same train step (the same noise, loss and optimiser) on one device. The plain
one has the same layers as `flax.linen.Conv` and `flax.linen.ConvTranspose`, on `jax.lax`'s
convolutions, and is timed both ways: in a scan of steps, as jaxdae runs, and as a loop in Python
over a compiled step, which is faster on a CPU; the faster counts. Compilation is apart and a first
call is thrown away; then all are timed in turn, so that what disturbs the machine disturbs all, and
the table gives the median with the lowest and the highest, and the median of the ratios within a
turn.
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from jaxdae.corruption import gaussian
from jaxdae.losses import mean_squared_error
from jaxdae.model import DenoisingAutoencoder
from jaxdae.training import create_state, make_train_step


class PlainFlax(nn.Module):
    """The `strided` network as one would first write it."""

    image_shape: tuple[int, int, int] = (28, 28, 1)
    dtype: Any = None

    @nn.compact
    def __call__(self, x):
        return nn.sigmoid(self.logits(x))

    @nn.compact
    def logits(self, x):
        window, two = (3, 3), (2, 2)
        x = nn.relu(nn.Conv(32, window, two, dtype=self.dtype)(x))
        x = nn.relu(nn.Conv(64, window, two, dtype=self.dtype)(x))
        x = nn.Dense(16, dtype=self.dtype)(x.reshape(len(x), -1))
        x = nn.Dense(7 * 7 * 64, dtype=self.dtype)(x).reshape(-1, 7, 7, 64)
        x = nn.relu(nn.ConvTranspose(64, window, two, dtype=self.dtype)(x))
        x = nn.relu(nn.ConvTranspose(32, window, two, dtype=self.dtype)(x))
        return nn.ConvTranspose(1, window, dtype=self.dtype)(x).astype(jnp.float32)


def trainer(
    model: Any, batch_size: int, steps: int, *, scan: bool = True
) -> tuple[Callable[[], None], float]:
    """A call that trains `steps` steps, in a scan or a Python loop; the seconds to compile it."""
    optimizer = optax.adam(1e-3)
    state = create_state(model, optimizer, 0)
    step = make_train_step(model, gaussian(0.5), mean_squared_error, optimizer)
    pixels = np.random.default_rng(0).integers(0, 256, (steps * batch_size, 28, 28, 1), np.uint8)

    def many(state, images):
        def body(state, batch):
            return step(state, batch, jax.random.fold_in(jax.random.key(0), state.step))

        return jax.lax.scan(body, state, images.reshape(steps, batch_size, 28, 28, 1))

    images = jnp.asarray(pixels)
    key = jax.random.key(0)
    start = time.perf_counter()
    if scan:
        compiled = jax.jit(many).lower(state, images).compile()
    else:
        compiled = jax.jit(step).lower(state, images[:batch_size], key).compile()
    seconds = time.perf_counter() - start

    def call() -> None:
        if scan:
            jax.block_until_ready(compiled(state, images))
            return
        new = state
        for i in range(steps):
            new, _ = compiled(new, images[i * batch_size : (i + 1) * batch_size], key)
        jax.block_until_ready(new)

    call()
    return call, seconds


def measure(
    batch_size: int, dtype: str, repeats: int, images: int, plain_images: int
) -> dict[str, Any]:
    """One row: the networks at a batch size, timed in turn.

    Args:
      images: how many images a timed call trains on; of the plain network, `plain_images`.
    """
    models = {
        "jaxdae": (DenoisingAutoencoder(dtype=jnp.dtype(dtype)), images, True),
        "plain in a scan": (PlainFlax(dtype=jnp.dtype(dtype)), plain_images, True),
        "plain in a loop": (PlainFlax(dtype=jnp.dtype(dtype)), plain_images, False),
    }
    calls: dict[str, tuple[Callable[[], None], int]] = {}
    row: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype}
    for name, (model, count, scan) in models.items():
        steps = max(1, count // batch_size)
        call, row[f"{name}_compile_seconds"] = trainer(model, batch_size, steps, scan=scan)
        calls[name] = (call, steps * batch_size)
    speeds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, (call, count) in calls.items():
            start = time.perf_counter()
            call()
            speeds[name].append(count / (time.perf_counter() - start))
    row |= {name: speeds[name] for name in speeds}
    ways = (speeds["plain in a scan"], speeds["plain in a loop"])
    row["plain"] = max(ways, key=statistics.median)
    row["ratio"] = [a / b for a, b in zip(speeds["jaxdae"], row["plain"], strict=True)]
    return row


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.throughput",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[32, 64], metavar="N")
    parser.add_argument("--dtypes", nargs="+", default=["float32"], choices=["float32", "bfloat16"])
    parser.add_argument("--repeats", type=int, default=5, help="timed turns (default: 5)")
    parser.add_argument(
        "--images", type=int, default=6400, help="images in a timed call (default: 6400)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure to FILE")
    flags = parser.parse_args()
    if min(*flags.batch_sizes, flags.repeats, flags.images) < 1:
        print("error: batch sizes, repeats and images must be at least 1", file=sys.stderr)
        return 2
    if flags.json and (flags.json.is_dir() or not flags.json.parent.is_dir()):
        print(f"error: --json {flags.json} must be a file in a folder that exists", file=sys.stderr)
        return 2
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else platform.processor() or "cpu"
    print(f"{device.platform} ({kind}), jax {jax.__version__}, training, images/s")
    print(f"{'batch':>5} {'dtype':>9} {'jaxdae':>24} {'plain Flax':>24} {'ratio':>20}")
    rows = []
    # The plain network is slow on a CPU: an eighth of the images is enough to time it.
    plain = flags.images // 8 if device.platform == "cpu" else flags.images
    for dtype in flags.dtypes:
        for batch_size in flags.batch_sizes:
            row = measure(batch_size, dtype, flags.repeats, flags.images, plain)
            rows.append(row)
            cells = [
                f"{statistics.median(v):,.{d}f} ({min(v):,.{d}f}-{max(v):,.{d}f})"
                for v, d in ((row["jaxdae"], 0), (row["plain"], 0), (row["ratio"], 1))
            ]
            print(f"{batch_size:>5} {dtype:>9} {cells[0]:>24} {cells[1]:>24} {cells[2]:>20}")
    if flags.json:
        flags.json.write_text(json.dumps(rows, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
