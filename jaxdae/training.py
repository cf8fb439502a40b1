"""The training loop: chunks of many steps, each one call on all devices, and epochs of chunks.

The step itself is `jaxdae.train_step`.

Everything random is a pure function of (seed, step, example). One root key, `jax.random.key(seed)`,
is folded with the number of a stream (initialisation, order, corruption, crop), then with the epoch
or the step, then with the example's place in the global batch. No key is carried from step to step,
so a resumed run is bit for bit the run that was never stopped.

The state has no device axis. It is replicated, and gradients and metrics are averaged inside the
`pmap`. Images stay on the devices as uint8, and each step gathers its batch there; the host sends
only the order of the examples. A data set that is too large for the devices stays on the host,
which gathers the batches of the next chunk while the current one is computed. The bits of the
result are the same.
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
from jaxtyping import Array, Float, Int

from jaxdae.errors import DivergenceError, InputError
from jaxdae.random import stream
from jaxdae.train_step import TrainState, TrainStep

AXIS = "devices"
HERE = Path(__file__).parent
CHUNK_BYTES = 1 << 26  # of images sent to the devices at a time, unless one step needs more
Data = Any  # an array with the examples along its first axis, or a tuple of such arrays


def scan_first(
    body: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any, count: Int[Array, ""]
) -> tuple[Any, Any]:
    """`lax.scan` over the first `count` of `xs`, a number that is known at run time only.

    One compiled program serves all counts, with the same rounding. (XLA compiles a scan of one turn
    to other code than a loop.)

    Returns:
      The last carry, and the outputs stacked, with zeros from `count` on.
    """

    body = jax.jit(body)  # traced once, for the shapes and for the loop

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
    """Makes chunk(state, data, indices, count, key) -> (state, metrics): many steps in one call.

    It is one device's part, to be pmapped over the axis "devices". `indices`, (steps, batch per
    device), says which examples this device takes at each step; only the first `count` steps are
    taken. Metrics are stacked along the steps. If `resident`, `data` is the whole data set;
    otherwise it holds just the examples of the steps, (steps, batch per device, ...).

    With `fixed_noise`, an image's corruption depends on its index alone and is the same in all
    epochs. Otherwise it depends on the step and on the image's place in the global batch.
    """

    def chunk(state, data, indices, count, key):
        places = lax.axis_index(AXIS) * indices.shape[1] + jnp.arange(indices.shape[1])

        def body(state, step):
            index, batch = (step, jax.tree.map(lambda x: x[step], data)) if resident else step
            if fixed_noise:
                return train_step(state, batch, key, index)
            return train_step(state, batch, jax.random.fold_in(key, state.step), places)

        return scan_first(body, state, indices if resident else (indices, data), count)

    return chunk


def replicate(tree: Any, devices: Sequence[jax.Device]) -> Any:
    """Copies a tree to every device, placed as pmapped functions return it."""
    sharding = NamedSharding(Mesh(np.asarray(devices), (AXIS,)), PartitionSpec())
    return jax.device_put(tree, sharding)


def share_batch(
    batch_size: int, devices: int, examples: int, microbatches: int | None = None
) -> int:
    """The examples per device in a global batch.

    Raises:
      InputError: the devices cannot share the batch evenly, the batch exceeds the data set, or the
        microbatches do not divide it or cannot be shared evenly.
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

    The incomplete last batch is dropped; it holds other examples in each epoch.
    """
    key = jax.random.fold_in(stream(seed, "order"), epoch)
    steps = examples // batch_size
    order = np.asarray(_permutation(key, examples), np.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


_permutation = jax.jit(jax.random.permutation, static_argnums=1)


class Progress(NamedTuple):
    """What `train` yields after each chunk of steps.

    Fields:
      epoch: the epoch, from 0.
      ended: True if this chunk was the epoch's last.
      state: the state after the chunk. The next chunk reuses its memory: use it or copy it before
        you ask for more.
      losses: the loss of each of the chunk's steps.
      images: how many images the chunk trained on.
      seconds: the chunk's time, without compilation.
      compile_seconds: the time to compile for it.
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
    data: Data,
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
    """Trains, and yields after every chunk of steps.

    Args:
      train_step: from `make_train_step`, with `axis_name=AXIS`.
      state: where to begin; it stays usable.
      data: the training set as the objective takes it: clean images, uint8 (n, height, width,
        channels), or a tuple of arrays. Data that is not `resident` is only indexed, so it may be
        a memory-mapped file. An array with a method `patches(seed, epoch, indices)` gives other
        images in each epoch.
      epochs: which epochs to run. Their numbers decide the order of the examples, so a resumed run
        passes the rest of its range.
      batch_size: over all devices.
      taken: the steps of the first epoch that are done already.
      fixed_noise: corrupt each image in the same way in every epoch.
      devices: the devices to use; all of them if not given.
      chunk_steps: the most steps between two reports.
      chunk_seconds: how long a chunk should take; the first ones are short, to measure. The chunks
        do not change the result.
      learning_rate: the schedule, for the message of a `DivergenceError`.
      resident: keep the data on every device; `fits` decides if not given.
      debug: the same train step without an axis. If given, a step whose loss is not finite is run
        again, one operation at a time, to find the first operation that is not finite. It needs
        memory for one more state.

    Raises:
      InputError: the batch does not suit the devices or the data set.
      DivergenceError: a loss is not finite. The last state yielded was good.
    """
    devices = jax.devices() if devices is None else devices
    arrays = jax.tree.leaves(data)
    examples = len(arrays[0])
    share = share_batch(batch_size, len(devices), examples)
    # With several processes, each serves its own devices.
    mine = [i for i, device in enumerate(devices) if device.process_index == jax.process_index()]
    local = [devices[i] for i in mine]
    cropped = any(hasattr(array, "patches") for array in arrays)
    if resident is None or cropped:
        resident = not cropped and fits(data, local)
    key = stream(seed, "corruption")
    chunk = jax.pmap(
        make_chunk(train_step, fixed_noise=fixed_noise, resident=resident),
        axis_name=AXIS,
        in_axes=(None, None if resident else 0, 0, None, None),
        out_axes=None,
        donate_argnums=() if debug else (0,),
        devices=devices,
    )
    # A fresh state lies on one device, a returned one on all: placed like the returned one, the
    # program is compiled once. It is a copy, since chunks reuse the memory of their state.
    state = jax.jit(partial(jax.tree.map, jnp.copy))(state)
    state, key = replicate((state, key), local)
    on_devices = replicate(jax.tree.map(np.asarray, data), local) if resident else None
    longest = max(1, min(chunk_steps, examples // batch_size))
    if not resident:  # two chunks are in memory at a time, one of them on the devices
        longest = max(1, min(longest, CHUNK_BYTES // (batch_size * bytes_of(data) // examples)))
    pace = Pace(longest, chunk_seconds)

    def chunks() -> Iterator[tuple[int, bool, int, np.ndarray]]:
        for epoch in epochs:
            order = epoch_order(seed, epoch, examples, batch_size)
            done = taken if epoch == epochs[0] else 0
            while done < len(order):
                count = agreed(min(pace.steps, len(order) - done))
                # All chunks have the shape of the longest, so one compiled program serves all.
                indices = np.resize(order[done : done + count], (longest, len(devices), share))
                indices = np.ascontiguousarray(indices[:, mine].swapaxes(0, 1))
                done += count
                yield epoch, done == len(order), count, indices

    def gather(epoch: int, indices: np.ndarray) -> Data:
        def take(array: Any) -> np.ndarray:
            rows = indices.reshape(-1)
            drawn = hasattr(array, "patches")
            taken = array.patches(seed, epoch, rows) if drawn else array[rows]
            return taken.reshape(*indices.shape, *array.shape[1:])

        return jax.tree.map(take, data)

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
                batch = gather(epoch, index)
                where = _culprit(debug, jax.device_get(before), batch, *noise)
            raise DivergenceError(
                f"the loss is {losses[first]} at step {step}{rate}{where}: lower the learning rate"
            )
        yield Progress(epoch, ended, state, losses, count * batch_size, end - ready, ready - start)


def agreed(number: int) -> int:
    """Process 0's number, for all processes: they must take the same steps."""
    if jax.process_count() == 1:
        return number
    return int(multihost_utils.broadcast_one_to_all(np.int32(number)))


class Pace:
    """How many steps a chunk should have, to take `seconds`.

    Reports, and what must wait for the end of a chunk (such as Ctrl-C), are then never far.
    """

    def __init__(self, longest: int, seconds: float) -> None:
        self.longest, self.seconds = longest, seconds
        self.steps = longest if seconds == float("inf") else 1

    def took(self, steps: int, seconds: float) -> None:
        """Learns from a chunk; the next has at most four times as many steps."""
        wanted = self.seconds / max(seconds / steps, 1e-9)
        self.steps = int(min(max(wanted, 1), 4 * self.steps, self.longest))


def fits(data: Data, devices: Sequence[Any]) -> bool:
    """True if the data fits into a quarter of each device's memory.

    A device that does not report its memory, such as a CPU, counts as 4 GiB.
    """
    memory = [(device.memory_stats() or {}).get("bytes_limit", 2**32) for device in devices]
    return bytes_of(data) <= min(memory) // 4


def bytes_of(data: Data) -> int:
    """The size of the data in bytes."""
    return sum(prod(array.shape) * array.dtype.itemsize for array in jax.tree.leaves(data))


def _ahead(
    chunks: Iterator[tuple], gather: Callable[[int, np.ndarray], Any] | None
) -> Iterator[tuple]:
    """Each chunk with its data, which is gathered while the chunk before it is used."""
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
    """The place in the code of the step's first operation whose result is not finite."""
    with jax.disable_jit(), jax.debug_nans(True), jax.debug_infs(True):
        try:
            step(*given)
        except FloatingPointError as error:
            frames = traceback.extract_tb(error.__traceback__)
            files = {Path(f.filename): f.lineno for f in frames}  # the innermost line of each
            ours = [f"{p.name}:{line}" for p, line in files.items() if HERE in p.parents]
            return f" ({error}, {' > '.join(ours)})"
    return ""
