"""A step of Adam for all parameters at once, by one kernel.

XLA makes three loops for each leaf on a CPU, and each computes the averages again.
"""

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import ad
from jaxtyping import Array

from jaxdae.kernels.primitives import make_primitive

Pairs = tuple[tuple[int, int], ...]


class AdamState(NamedTuple):
    """The running averages that a step of Adam changes.

    Fields:
      mean, square: of each leaf, the averages of its gradient and of the square.
      cross, cross_square: of each centred pair, the averages of `jaxdae.optimizers.centered`: an
        array of the kernel's shape without the last axis, and a number.
    """

    mean: list[Array]
    square: list[Array]
    cross: list[Array]
    cross_square: list[Array]


def adam_step(
    scales: Sequence[Array | float],
    gradient: Sequence[Array],
    state: AdamState,
    pairs: Sequence[tuple[int, int]] = (),
    params: Sequence[Array] = (),
) -> tuple[list[Array], AdamState]:
    """A step of Adam's for all leaves at once.

        mean = keep * mean + (1 - keep) * gradient
        square = keep_square * square + (1 - keep_square) * gradient**2
        scale = sqrt(of_square * square) + epsilon
        update = rate * (of_mean * mean + of_gradient * gradient) / scale

    Args:
      scales: keep, keep_square, of_mean, of_gradient, of_square, epsilon, rate (below 0, for a step
        down), and what the averages of the pairs keep.
      gradient: a list of leaves of any shapes; all here is float32.
      pairs: which leaves are a kernel and its bias, to go in centred coordinates
        (`jaxdae.optimizers.centered`).
      params: leaves of the same shapes, to which the updates are added, or nothing.

    Returns:
      The updates, or the parameters with them; and the state.
    """
    numbers = jnp.stack([jnp.asarray(scale, jnp.float32) for scale in scales])
    given = (*gradient, *jax.tree.leaves(state), *params)
    made = iter(adam_p.bind(numbers, *given, pairs=tuple(pairs), added=bool(params)))
    update, *averages = ([next(made) for _ in part] for part in (gradient, *state))
    return update, AdamState(*averages)


def _leaf_count(arrays: Sequence[Any], pairs: Pairs, added: bool) -> int:
    """How many of the arrays are gradients: as many as means, squares and, if given, parameters."""
    return (len(arrays) - 2 * len(pairs)) // (4 if added else 3)


def _adam(scales: Array, *arrays: Array, pairs: Pairs, added: bool = False) -> list[Array]:
    keep, keep_square, of_mean, of_gradient, of_square, epsilon, rate, keep_cross = scales
    count = _leaf_count(arrays, pairs, added)
    gradient, mean, square = (list(arrays[i * count : (i + 1) * count]) for i in range(3))
    rest = arrays[3 * count :]
    cross, cross_square = list(rest[: len(pairs)]), list(rest[len(pairs) : 2 * len(pairs)])
    params = rest[2 * len(pairs) :]
    centers = []
    for i, (kernel, bias) in enumerate(pairs):
        shift = gradient[bias]
        cross[i] = keep_cross * cross[i] + (1 - keep_cross) * gradient[kernel] @ shift
        cross_square[i] = keep_cross * cross_square[i] + (1 - keep_cross) * shift @ shift
        safe = jnp.where(cross_square[i] > 0, cross_square[i], 1)  # 0: no gradient yet
        centers.append((cross[i] / safe)[..., None])
    for (kernel, bias), center in zip(pairs, centers, strict=True):
        gradient[kernel] = gradient[kernel] - center * gradient[bias]
    mean = [keep * m + (1 - keep) * g for m, g in zip(mean, gradient, strict=True)]
    square = [
        keep_square * s + (1 - keep_square) * g**2 for s, g in zip(square, gradient, strict=True)
    ]
    update = [
        rate * (of_mean * m + of_gradient * g) / (jnp.sqrt(of_square * s) + epsilon)
        for g, m, s in zip(gradient, mean, square, strict=True)
    ]
    for (kernel, bias), center in zip(pairs, centers, strict=True):
        moved = (center * update[kernel]).reshape(-1, *update[bias].shape).sum(0)
        update[bias] = update[bias] - moved
    if added:
        update = [p + u for p, u in zip(params, update, strict=True)]
    return [*update, *mean, *square, *cross, *cross_square]


def _adam_shapes(_: Any, *arrays: Any, pairs: Pairs, added: bool) -> list[tuple]:
    count = _leaf_count(arrays, pairs, added)
    return [(array.shape, array.dtype) for array in arrays[: 3 * count + 2 * len(pairs)]]


def _adam_kernel(scales: Array, *arrays: Array, pairs: Pairs, added: bool) -> list[Array]:
    shapes = _adam_shapes(scales, *arrays, pairs=pairs, added=added)
    results = [jax.ShapeDtypeStruct(*made) for made in shapes]
    # Averages are written where they lie, and parameters.
    count = _leaf_count(arrays, pairs, added)
    aliases = {1 + i: i for i in range(count, len(results))}
    aliases |= {1 + len(results) + i: i for i in range(len(arrays) - len(results))}
    call = jax.ffi.ffi_call("jaxdae_adam", results, input_output_aliases=aliases)
    indices = np.array(pairs, np.int64).reshape(-1, 2).T.reshape(-1)
    return list(call(scales, *arrays, pairs=indices))


def _adam_jvp(
    primals: Sequence[Array], tangents: Sequence[Any], **options: Any
) -> tuple[list[Any], list[Any]]:
    tangents = tuple(map(ad.instantiate_zeros, tangents))
    return jax.jvp(partial(_adam, **options), tuple(primals), tangents)


adam_p = make_primitive("adam", _adam, _adam_shapes, _adam_kernel, several=True)
ad.primitive_jvps[adam_p] = _adam_jvp
