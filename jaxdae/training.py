"""Training: a pure step, many steps in one call on every device, and epochs of those.

The step is `(state, images, key) -> (state, metrics)` and needs nothing else from here; whoever
brings their own loop takes `make_train_step` alone. `train` is the loop around it.

Everything random is a pure function of (seed, step, example). One root key, `jax.random.key(seed)`,
is folded with the number of a stream (initialisation, order, corruption, crop), then with the epoch
or the step, then with the example's place in the global batch. No key is carried from step to step,
so a run that is resumed is the run that was never stopped, bit for bit.

The state has no device axis: it is replicated, and gradients and metrics are averaged inside the
`pmap`. Images stay on the devices as uint8, whence each step gathers its batch; the host sends the
order of the examples and nothing else. A data set that is too large for that stays with the host,
which gathers the batches of a chunk while the one before it is computed: the result is the same, to
the bit.
"""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax import lax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, UInt8

from jaxdae.errors import DivergenceError, InputError
from jaxdae.random import stream
from jaxdae.train_step import TrainState, TrainStep

AXIS = "devices"


HERE = Path(__file__).parent


CHUNK_BYTES = 1 << 26  # of images that are sent to the devices at a time, or those of one step


def scan_first(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, count: Int[Array, ""]
) -> tuple[Any, Any]:
    """`lax.scan` over the first `count` of `xs`, a number that only the call knows.

    One compilation serves all counts, and rounds alike in all: a scan of one turn is compiled to
    something else than the body of a loop.

    Returns:
      The last carry, and the outputs stacked, with zeros from `count` on.
    """

    body = jax.jit(body)  # traced once: for the shapes, and in the loop again

    def element(i):
        return jax.tree.map(lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False), xs)

    def turn(i, both):
        carry, out = body(both[0], element(i))
        return carry, jax.tree.map(lambda stack, x: stack.at[i].set(x), both[1], out)

    _, shapes = jax.eval_shape(lambda carry: body(carry, element(0)), carry)
    length = len(jax.tree.leaves(xs)[0])
    out = jax.tree.map(lambda x: jnp.zeros((length, *x.shape), x.dtype), shapes)
    return lax.fori_loop(0, count, turn, (carry, out))


def make_chunk(
    train_step: TrainStep, *, fixed_noise: bool = False, resident: bool = True
) -> Callable:
    """Makes chunk(state, images, indices, count, key) -> (state, metrics): many steps at once.

    To be pmapped over the axis "devices": it is one device's part. `indices` (steps, batch per
    device) says which images this device takes at each step, of which the first `count` are taken;
    metrics come stacked along the steps. `images` is the whole data set, uint8, or, where it is not
    `resident`, only those images: (steps, batch per device, ...).

    With `fixed_noise` an image's corruption depends on its index alone, drawn once for the whole
    run; otherwise on the step and on its place in the global batch.
    """

    def chunk(state, images, indices, count, key):
        places = lax.axis_index(AXIS) * indices.shape[1] + jnp.arange(indices.shape[1])

        def body(state, step):
            index, batch = (step, images[step]) if resident else step
            if fixed_noise:
                return train_step(state, batch, key, index)
            return train_step(state, batch, jax.random.fold_in(key, state.step), places)

        return scan_first(body, state, indices if resident else (indices, images), count)

    return chunk


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Places a tree whole on every device, as the pmapped functions return it."""
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, sharding)


def share_batch(
    batch_size: int, devices: int, examples: int, microbatches: int | None = None
) -> int:
    """The examples per device in a global batch.

    Raises:
      InputError: the devices cannot share the batch evenly, it exceeds the data set, or the
        microbatches do not divide it or cannot be shared themselves.
    """
    if batch_size < 1:
        raise InputError(f"batch size {batch_size} must be at least 1, such as {32 * devices}")
    if examples < devices:
        raise InputError(
            f"{devices} devices need at least an image each, and there are {examples} training "
            f"images: use at most {examples} devices"
        )
    if batch_size > examples:
        raise InputError(
            f"batch size {batch_size} exceeds the {examples} training images: "
            f"choose at most {examples // devices * devices}"
        )
    if batch_size % devices:
        lower = batch_size // devices * devices
        near = f"{lower} or {lower + devices}" if lower else f"{devices}"
        raise InputError(
            f"batch size {batch_size} cannot be shared evenly by {devices} devices: choose {near}"
        )
    good = [n for n in range(devices, batch_size + 1, devices) if batch_size % n == 0]
    if microbatches is not None and microbatches not in good:
        raise InputError(
            f"{microbatches} microbatches must divide the batch size {batch_size} and be "
            f"shared evenly by {devices} devices: choose one of {', '.join(map(str, good))}"
        )
    return batch_size // devices


def epoch_order(seed: int, epoch: int, examples: int, batch_size: int) -> Int[np.ndarray, "s b"]:
    """The examples of each batch of an epoch, shuffled by key: (steps, batch size), int32.

    What does not fill a last batch is left out, other examples each epoch.
    """
    key = jax.random.fold_in(stream(seed, "order"), epoch)
    steps = examples // batch_size
    order = np.asarray(_permutation(key, examples), np.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


_permutation = jax.jit(jax.random.permutation, static_argnums=1)


class Progress(NamedTuple):
    """What `train` says after each chunk of steps.

    Fields:
      epoch: the epoch, from 0.
      ended: whether this chunk was the epoch's last.
      state: the state after the chunk. It is given away to the next chunk: use it, or copy it,
        before asking for more.
      losses: the loss of each of the chunk's steps.
      images: how many images the chunk trained on.
      seconds: what the chunk took, compilation apart.
      compile_seconds: what was spent compiling for it.
    """

    epoch: int
    ended: bool
    state: TrainState
    losses: Float[np.ndarray, " steps"]
    images: int
    seconds: float
    compile_seconds: float


def train(
    train_step: TrainStep,
    state: TrainState,
    images: UInt8[np.ndarray, "n height width channels"],
    *,
    seed: int,
    epochs: range,
    batch_size: int,
    taken: int = 0,
    fixed_noise: bool = False,
    devices: Sequence[jax.Device] | None = None,
    chunk_steps: int = 125,
    chunk_seconds: float = 1.0,
    learning_rate: optax.Schedule | None = None,
    resident: bool | None = None,
    debug: TrainStep | None = None,
) -> Iterator[Progress]:
    """Trains, yielding after every chunk of steps.

    Args:
      train_step: from `make_train_step`, with `axis_name=AXIS`.
      state: where to begin; it stays usable.
      images: clean training images. Where they are not `resident`, only their `shape` and what
        indexing gives are used, so they may be a file that is mapped into memory. Where they have
        a method `patches`, each epoch is given other images: `patches(seed, epoch, indices)`.
      epochs: which epochs to run; their numbers decide the order of the examples, so a run that
        is resumed passes the rest of its range.
      batch_size: over all devices.
      taken: the steps of the first epoch that the state has been through already.
      fixed_noise: corrupt each image once and for all instead of afresh at every step.
      devices: the devices to use; all of them if not given.
      chunk_steps: the most steps to take between two reports.
      chunk_seconds: how long a chunk is to take; the first ones are short, to find out. Where the
        chunks end changes nothing, to the bit.
      learning_rate: the schedule, for the message of a `DivergenceError`.
      resident: keep the images on every device; `fits` decides if not given.
      debug: the same train step without an axis. If given, no state is given away to the next, and
        the step whose loss is not finite is gone through again, one operation at a time, for the
        first that made something else of finite numbers.

    Raises:
      InputError: the batch does not suit the devices or the data set.
      DivergenceError: a loss is not finite. The last state yielded was good.
    """
    devices = jax.devices() if devices is None else devices
    share = share_batch(batch_size, len(devices), len(images))
    # Of several processes each places, and gathers for, its own devices.
    mine = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    local = [devices[i] for i in mine]
    patches = getattr(images, "patches", None)
    if resident is None or patches is not None:
        resident = patches is None and fits(images, local)
    key = stream(seed, "corruption")
    chunk = jax.pmap(
        make_chunk(train_step, fixed_noise=fixed_noise, resident=resident),
        axis_name=AXIS,
        in_axes=(None, None if resident else 0, 0, None, None),
        out_axes=None,
        donate_argnums=() if debug else (0,),
        devices=devices,
    )
    # A fresh state lies on one device and a state that comes back on all: placed at once as it
    # comes back, it is compiled for once. A copy, for it is given away and the caller's is not.
    state = jax.jit(partial(jax.tree.map, jnp.copy))(state)
    state, key = replicate((state, key), local)
    on_devices = replicate(np.asarray(images), local) if resident else None
    longest = max(1, min(chunk_steps, len(images) // batch_size))
    if not resident:  # two chunks, one on the devices, are in memory at a time
        size = batch_size * prod(images.shape[1:]) * images.dtype.itemsize
        longest = max(1, min(longest, CHUNK_BYTES // size))
    pace = Pace(longest, chunk_seconds)

    def chunks() -> Iterator[tuple[int, bool, int, np.ndarray]]:
        for epoch in epochs:
            order = epoch_order(seed, epoch, len(images), batch_size)
            done = taken if epoch == epochs[0] else 0
            while done < len(order):
                count = agreed(min(pace.steps, len(order) - done))
                # All chunks have the shape of the longest, and so one compilation.
                indices = np.resize(order[done : done + count], (longest, len(devices), share))
                indices = np.ascontiguousarray(indices[:, mine].swapaxes(0, 1))
                done += count
                yield epoch, done == len(order), count, indices

    def take(epoch: int, rows: np.ndarray) -> Any:
        return images[rows] if patches is None else patches(seed, epoch, rows)

    def gather(epoch: int, indices: np.ndarray) -> Any:
        return take(epoch, indices.reshape(-1)).reshape(*indices.shape, *images.shape[1:])

    compiled = False
    for epoch, ended, count, indices, batches in _ahead(chunks(), None if resident else gather):
        given = on_devices if resident else batches
        start = time.perf_counter()
        if not compiled:
            state, _ = jax.block_until_ready(chunk(state, given, indices, np.int32(0), key))
            compiled = True
        ready = time.perf_counter()
        before = state
        # Reading the losses waits for the chunk: queuing many collectives can deadlock.
        state, metrics = chunk(state, given, indices, np.int32(count), key)
        losses = np.asarray(metrics["loss"])[:count]
        end = time.perf_counter()
        pace.took(count, end - ready)
        if not np.isfinite(losses).all():
            first = int(np.argmin(np.isfinite(losses)))
            step = int(state.step) - count + first
            rate = f" at learning rate {float(learning_rate(step)):.3g}" if learning_rate else ""
            where = ""
            if debug:
                before, _ = chunk(before, given, indices, np.int32(first), key)
                index = indices[:, first].reshape(-1)
                noise = (key, index) if fixed_noise else (jax.random.fold_in(key, step), None)
                batch = take(epoch, index)
                where = _culprit(debug, jax.device_get(before), batch, *noise)
            raise DivergenceError(
                f"the loss is {losses[first]} at step {step}{rate}{where}: lower the learning rate"
            )
        yield Progress(epoch, ended, state, losses, count * batch_size, end - ready, ready - start)


def agreed(number: int) -> int:
    """Process 0's number, for all processes: those that compute together must do as much."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


class Pace:
    """How many steps to take at once, that a chunk may take some seconds and no longer.

    A report, and what must happen between two chunks (a stop, say), is then never far, however
    long a step is.
    """

    def __init__(self, longest: int, seconds: float) -> None:
        self.longest, self.seconds = longest, seconds
        self.steps = longest if seconds == float("inf") else 1

    def took(self, steps: int, seconds: float) -> None:
        """Learns from a chunk. From a short one it concludes no more than four times as many."""
        wanted = self.seconds / max(seconds / steps, 1e-9)
        self.steps = int(min(max(wanted, 1), 4 * self.steps, self.longest))


def fits(images: UInt8[np.ndarray, "n height width channels"], devices: Sequence[Any]) -> bool:
    """Whether images may stay on every device: a quarter of its memory is for them.

    Of a device that does not tell its memory, as a CPU, 4 GiB are taken to be there.
    """
    size = np.prod(images.shape, dtype=np.int64) * images.dtype.itemsize
    memory = [(device.memory_stats() or {}).get("bytes_limit", 2**32) for device in devices]
    return bool(size <= min(memory) // 4)


def _ahead(
    chunks: Iterator[tuple], gather: Callable[[int, np.ndarray], Any] | None
) -> Iterator[tuple]:
    """Each chunk, from its epoch to its indices, with their images if they are to be gathered.

    Those of the next are gathered meanwhile.
    """
    if gather is None:
        yield from ((*chunk, None) for chunk in chunks)
        return
    with ThreadPoolExecutor(1) as pool:
        waiting: Any = None
        for chunk in chunks:
            following = (chunk, pool.submit(gather, chunk[0], chunk[-1]))
            if waiting:
                yield *waiting[0], waiting[1].result()
            waiting = following
        if waiting:
            yield *waiting[0], waiting[1].result()


def _culprit(step: TrainStep, *given: Any) -> str:
    """Where, of the operations of a step, the first is whose result is not finite."""
    with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
        try:
            step(*given)
        except FloatingPointError as error:
            frames = traceback.extract_tb(error.__traceback__)
            files = {Path(f.filename): f.lineno for f in frames}  # the innermost line of each
            ours = [f"{p.name}:{line}" for p, line in files.items() if p.parent == HERE]
            return f" ({error}, {' > '.join(ours)})"
    return ""
