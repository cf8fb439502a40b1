"""Random keys, and JAX's random numbers, bit for bit, in a form that a CPU computes faster.

JAX compiles threefry for a CPU as loops over its rounds, with a pass through memory for each group
of rounds. Here the twenty rounds are written out, so that XLA fuses them, and what uses the bits,
into one loop over the numbers. Normal numbers in float32 also have a kernel:
`jaxdae.kernels.normal`. `python -m benchmarks.step_profile` measures the rest.
"""

from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend.random import define_prng_impl, threefry_prng_impl
from jaxtyping import Array, Key, UInt32

Words = tuple[Array, Array]
ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
PARITY = np.uint32(0x1BD11BDA)

STREAMS = {"init": 0, "order": 1, "corruption": 2, "crop": 3, "turn": 4}


def stream(seed: int, name: str) -> Key[Array, ""]:
    """The key of one stream of a run's random numbers.

    Args:
      seed: the run's.
      name: a key of `STREAMS`.
    """
    return jax.random.fold_in(jax.random.key(seed), STREAMS[name])


def unrolled(key: Key[Array, "*batch"]) -> Key[Array, "*batch"]:
    """A key from which `jax.random` draws the same numbers as from `key`, faster on a CPU.

    A key that is not a typed threefry key, JAX's default, is returned unchanged. So is every key if
    `jax_threefry_partitionable` is off, because the numbers would differ. Some distributions, such
    as `jax.random.poisson`, take only JAX's own keys.

    Raises:
      ValueError: when a draw of 2**32 numbers or more is traced.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    partitionable = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined]
    if not typed or not partitionable or jax.random.key_impl(key) != "threefry2x32":
        return key
    return jax.random.wrap_key_data(jax.random.key_data(key), impl=_IMPLEMENTATION)


def fold_in(key: Key[Array, ""], data: Array) -> Key[Array, ""]:
    """`jax.random.fold_in`, faster on a CPU: the same key."""
    folded = jax.random.fold_in(unrolled(key), data)
    if not jnp.issubdtype(key.dtype, jax.dtypes.prng_key):
        return folded
    return jax.random.wrap_key_data(jax.random.key_data(folded), impl=jax.random.key_impl(key))


def _hash(key: UInt32[Array, "2"], counts: Words) -> Words:
    """Threefry-2x32 of 20 rounds: Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"."""
    keys = (key[0], key[1], key[0] ^ key[1] ^ PARITY)
    a, b = counts[0] + keys[0], counts[1] + keys[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            a = a + b
            b = a ^ (b << np.uint32(rotation) | b >> np.uint32(32 - rotation))
        a = a + keys[(group + 1) % 3]
        b = b + keys[(group + 2) % 3] + np.uint32(group + 1)
    return a, b


def _counts(shape: tuple[int, ...]) -> Words:
    """The index of each element of an array, as the high and the low words of 64 bits."""
    if prod(shape) >= 2**32:
        raise ValueError(
            f"an array of shape {shape} has {prod(shape)} elements, but must have less than 2**32: "
            "draw it in parts"
        )
    low = lax.iota(jnp.uint32, prod(shape)).reshape(shape)
    return jnp.zeros_like(low), low


def _random_bits(key: UInt32[Array, "2"], width: int, shape: tuple[int, ...]) -> Array:
    high, low = _hash(key, _counts(shape))
    if width == 64:
        return high.astype(jnp.uint64) << np.uint64(32) | low.astype(jnp.uint64)
    return (high ^ low).astype(jnp.dtype(f"uint{width}"))


def _split(key: UInt32[Array, "2"], shape: tuple[int, ...]) -> UInt32[Array, "*shape 2"]:
    return jnp.stack(_hash(key, _counts(shape)), axis=-1)


def _fold_in(key: UInt32[Array, "2"], data: Any) -> UInt32[Array, "2"]:
    return jnp.stack(_hash(key, (jnp.zeros_like(data), data)))


def _seed(seed: Array) -> UInt32[Array, "2"]:
    return jax.random.key_data(jax.random.key(seed, impl=threefry_prng_impl))


_IMPLEMENTATION = define_prng_impl(
    key_shape=(2,),
    seed=_seed,
    split=_split,
    random_bits=_random_bits,
    fold_in=_fold_in,
    name="threefry2x32_unrolled",
    tag="ufry",
)
