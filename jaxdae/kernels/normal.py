"""Normal numbers, bit for bit those of `jax.random.normal`; faster on a CPU.

XLA's loop on a CPU waits for one long chain of operations at a time.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.interpreters import batching
from jaxtyping import Array, Float, Key

from jaxdae.kernels import build
from jaxdae.kernels.primitives import make_primitive
from jaxdae.random import unrolled


def normal(key: Key[Array, ""], count: int, dtype: Any = jnp.float32) -> Float[Array, " count"]:
    """`jax.random.normal(key, (count,), dtype)`, the same numbers.

    Args:
      key: any; JAX's default, a typed threefry key, is fast.
      count: how many, below 2**32; more raise a ValueError where they are compiled.
      dtype: any float type; float32 is fast.

    Returns:
      Numbers of N(0, 1), (count,).
    """
    fast = unrolled(key)
    with jax.named_scope("random_normal"):  # so a profile calls it
        if fast is key or dtype != jnp.float32 or count >= 2**32 or not build.available():
            return jax.random.normal(fast, (count,), dtype)
        kernel, form = (partial(f, count=count) for f in (normal_p.bind, _normal))
        return lax.platform_dependent(jax.random.key_data(key), cpu=kernel, default=form)


def _normal(keys: Array, *, count: int) -> Array:
    def row(words: Array) -> Array:
        key = unrolled(jax.random.wrap_key_data(words, impl="threefry2x32"))
        return jax.random.normal(key, (count,), jnp.float32)

    return jax.vmap(row)(keys.reshape(-1, 2)).reshape(*keys.shape[:-1], count)


def _normal_kernel(keys: Array, *, count: int) -> Array:
    result = jax.ShapeDtypeStruct((*keys.shape[:-1], count), jnp.float32)
    return jax.ffi.ffi_call("jaxdae_normal", result)(keys)


def _normal_batch(arguments: Sequence[Any], axes: Sequence[Any], *, count: int) -> tuple[Any, Any]:
    return normal_p.bind(jnp.moveaxis(arguments[0], axes[0], 0), count=count), 0


normal_p = make_primitive(
    "normal", _normal, lambda keys, count: ((*keys.shape[:-1], count), jnp.float32), _normal_kernel
)
batching.primitive_batchers[normal_p] = _normal_batch
