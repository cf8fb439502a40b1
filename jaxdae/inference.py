"""Applying a network to any number of images.

    denoised = denoise(model, params, noisy)                    # in [0, 1]
    fast = jax.jit(lambda images: denoise(model, params, images))
    for name, restored in stream(fast, pairs, batch=512):   # of (name, images), however many

On a CPU `denoise` keeps a large batch from falling out of the caches; `stream` makes batches of one
size, for one compiled program, out of whatever comes. A program that is compiled with its
parameters, as `fast` is, computes once, not at every call, what depends on them alone.

JAX on a CPU hands each call to another thread, which costs a single image a good part of its time.
Who wants one image as soon as can be says, before anything is computed,

    jax.config.update("jax_cpu_enable_async_dispatch", False)

and calls run in the thread that makes them, and return when they are done. What memory a call took,
Linux's C library may give back to the system at its end, and take anew page by page in the next,
which costs a part of the call's time. In the environment that Python is started in,

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=67108864

keep it.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from jaxdae.errors import InputError
from jaxdae.model import Denoiser

Images = Float[Array, "n height width channels"]
Held = Float[np.ndarray, "n height width channels"]  # in the host's memory
Tag = TypeVar("Tag")


def denoise(model: Denoiser, params: Any, images: Images, *, piece: int = 64) -> Images:
    """Restores images: a pure function, to be jitted by whoever calls it.

    On a CPU a large batch is taken piece by piece, for what a network makes of 64 images stays in
    the caches, and of 512 does not. Other platforms take it whole.

    Args:
      params: the model's parameters.
      images: corrupted images in [0, 1], (n, *model.image_shape).
      piece: images at a time on a CPU, at least 1.

    Returns:
      Images in [0, 1], (n, height, width, out_channels).

    Raises:
      InputError: the images have another shape than the model takes, or `piece` is less than 1.
    """

    def apply(images: Images) -> Any:
        return model.apply({"params": params}, images)

    def in_pieces(images: Images) -> Any:
        whole = len(images) // piece * piece
        parts = images[:whole].reshape(-1, piece, *images.shape[1:])
        out = lax.map(apply, parts)
        out = out.reshape(whole, *out.shape[2:])
        return out if whole == len(images) else jnp.concatenate([out, apply(images[whole:])])

    if piece < 1:
        raise InputError(f"piece={piece} must be at least 1 image, such as 64")
    if len(images) <= piece:
        return apply(images)
    return lax.platform_dependent(images, cpu=in_pieces, default=apply)


def stream(
    apply: Callable[[Held], Any], groups: Iterable[tuple[Tag, Held]], batch: int
) -> Iterator[tuple[Tag, Held]]:
    """Applies a function to groups of images, of any lengths, in batches of one.

    A batch is filled from as many groups as it takes; what the last lacks is zeros, whose results
    are left out. While a batch is computed, the next one is filled.

    Args:
      apply: maps (batch, *shape) to (batch, *other shape), such as a jitted `denoise`.
      groups: pairs of anything and images, (n, *shape), n at least 1, asked for as they are needed.
      batch: images at a time.

    Yields:
      Each pair, with the results in the images' place, in the order of `groups`.
    """
    waiting: deque[_Group] = deque()  # groups whose results are not whole, the oldest first
    running: deque[tuple[Any, list[tuple[_Group, int]]]] = deque()
    filled: list[Held] = []  # of the batch to come
    shares: list[tuple[_Group, int]] = []
    count = 0

    def launch() -> None:
        nonlocal filled, shares, count
        if count < batch:
            filled.append(np.zeros((batch - count, *filled[0].shape[1:]), filled[0].dtype))
        # A new array every time: the device may read it where it lies.
        running.append((apply(np.concatenate(filled)), shares))
        filled, shares, count = [], [], 0

    def land() -> Iterator[tuple[Any, Held]]:
        results, parts = running.popleft()
        results, first = np.asarray(results), 0
        for group, size in parts:
            group.take(results[first : first + size])
            first += size
        while waiting and waiting[0].missing == 0:
            group = waiting.popleft()
            yield group.tag, group.results()

    for tag, images in groups:
        waiting.append(_Group(tag, len(images)))
        while len(images):
            part, images = images[: batch - count], images[batch - count :]
            filled.append(part)
            shares.append((waiting[-1], len(part)))
            count += len(part)
            if count == batch:
                launch()
                if len(running) > 1:
                    yield from land()
    if count:
        launch()
    while running:
        yield from land()


class _Group:
    """A group's results, as they come."""

    def __init__(self, tag: Any, missing: int) -> None:
        self.tag, self.missing = tag, missing
        self._parts: list[Held] = []

    def take(self, part: Held) -> None:
        self._parts.append(part)
        self.missing -= len(part)

    def results(self) -> Held:
        return self._parts[0] if len(self._parts) == 1 else np.concatenate(self._parts)
