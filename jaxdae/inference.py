"""Applying a network to any number of images.

    denoised = denoise(model, params, noisy)                    # in [0, 1]
    fast = jax.jit(lambda images: denoise(model, params, images))
    for name, restored in stream(fast, pairs, batch=512):       # any number of (name, images)

On a CPU, `denoise` takes a large batch in pieces that fit the caches. `stream` groups images into
batches of one size, for one compiled program. A program that is compiled with its parameters, as
`fast` is, computes once what depends on the parameters alone.

For the lowest latency of single images on a CPU, let calls run in the calling thread, before
anything is computed:

    jax.config.update("jax_cpu_enable_async_dispatch", False)

and let Linux's C library keep freed memory, in the environment in which Python is started:

    MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296 MALLOC_TOP_PAD_=67108864
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


def denoise(
    model: Denoiser,
    params: Any,
    images: Images,
    sigma: Any = None,
    *,
    strength: Any = 1.0,
    piece: int = 64,
) -> Images:
    """Denoises images: a pure function, which the caller may jit.

    On a CPU a large batch is taken piece by piece: the activations of 64 small images fit the
    caches, those of 512 do not. Other platforms take the whole batch.

    Args:
      params: the model's parameters.
      images: noisy images, (n, height, width, channels), nominally in [0, 1].
      sigma: the standard deviation of their noise, one number, one for each image, or a map (n,
        height, width, 1), for a network that takes it. If not given, such a network estimates it.
      strength: the noise level, given or estimated, is multiplied by it. More removes more.
      piece: images at a time on a CPU, at least 1.

    Returns:
      (n, height, width, out_channels).

    Raises:
      InputError: the images do not fit the model, `piece` is less than 1, or the network takes no
        noise level that a strength would change.
    """
    if piece < 1:
        raise InputError(f"piece={piece} must be at least 1 image, such as 64")
    scaled = not (isinstance(strength, int | float) and strength == 1)
    if scaled and not (model.estimates or (model.takes_noise_level and sigma is not None)):
        raise InputError(
            f"strength={strength} needs a network that takes a noise level: leave it out"
        )
    levels = None if sigma is None else jnp.asarray(sigma)
    if levels is not None and levels.ndim < 4:
        levels = jnp.broadcast_to(levels, (len(images),))

    def apply(images: Images, levels: Any) -> Any:
        if levels is None and scaled:
            levels = model.apply({"params": params}, images, method="noise_level")
        levels = levels * strength if scaled else levels
        return model.apply({"params": params}, images, levels)

    def in_pieces(images: Images, levels: Any) -> Any:
        whole = len(images) // piece * piece

        def first(x: Any) -> Any:
            return None if x is None else x[:whole].reshape(-1, piece, *x.shape[1:])

        out = lax.map(lambda part: apply(*part), (first(images), first(levels)))
        out = out.reshape(whole, *out.shape[2:])
        if whole == len(images):
            return out
        rest = apply(images[whole:], None if levels is None else levels[whole:])
        return jnp.concatenate([out, rest])

    if len(images) <= piece:
        return apply(images, levels)
    return lax.platform_dependent(images, levels, cpu=in_pieces, default=apply)


def stream(
    apply: Callable[[Held], Any], groups: Iterable[tuple[Tag, Held]], batch: int
) -> Iterator[tuple[Tag, Held]]:
    """Applies a function to groups of images, of any lengths, in batches of one size.

    A batch may hold images of several groups. The last one is filled up with zeros, whose results
    are dropped. While a batch is computed, the next one is filled.

    Args:
      apply: maps (batch, *shape) to (batch, *other shape), such as a jitted `denoise`.
      groups: pairs of a tag and images, (n, *shape), n at least 1; they are read as needed.
      batch: images at a time.

    Yields:
      Each tag with the results of its images, in the order of `groups`.
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
