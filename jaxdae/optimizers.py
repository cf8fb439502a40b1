"""Optimisers and learning-rate schedules by name, with the constants of Keras.

schedule = make_schedule("one-cycle", 0.005, steps)
optimizer = make_optimizer("nadam", schedule, centering=True)
params, state = take_step(optimizer, gradients, state, params)
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Self

import jax
import jax.numpy as jnp
import optax
import optax.contrib
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdae import kernels
from jaxdae.errors import InputError

SCHEDULES = ("constant", "one-cycle", "cosine", "plateau")


def make_schedule(name: str, learning_rate: float, steps: int) -> optax.Schedule:
    """Makes the function from the step to the learning rate.

    `one-cycle` rises linearly from learning_rate / 25 to learning_rate in the first fifth of the
    steps, then falls linearly to learning_rate / 2500. `cosine` rises from there in the first
    fiftieth, then falls to learning_rate / 1000 along half a period of a cosine. `constant` and
    `plateau` are constant; for `plateau`, `make_optimizer` lowers the rate.

    Args:
      learning_rate: the highest rate, above 0.
      steps: the number of training steps.

    Raises:
      InputError: an unknown name, or a learning rate that is not a finite number above 0.
    """
    if not (math.isfinite(learning_rate) and learning_rate > 0):
        raise InputError(f"learning rate {learning_rate} must be a number above 0, such as 0.001")
    if name == "one-cycle":
        rise = max(1, steps // 5)
        return optax.join_schedules(
            [
                optax.linear_schedule(learning_rate / 25, learning_rate, rise),
                optax.linear_schedule(learning_rate, learning_rate / 2500, steps - rise),
            ],
            [rise],
        )
    if name == "cosine":
        rise = max(1, steps // 50)
        return optax.warmup_cosine_decay_schedule(
            learning_rate / 25, learning_rate, rise, max(steps, rise + 1), learning_rate / 1000
        )
    if name in SCHEDULES:
        return optax.constant_schedule(learning_rate)
    raise InputError(f"unknown schedule {name!r}: it is one of {', '.join(SCHEDULES)}")


class Entry(NamedTuple):
    """An optimiser in the registry.

    Fields:
      make: (schedule, centering, **fields) to the optimiser, with a keyword for each of `reads`.
      reads: the fields of `Config` that this optimiser reads and not every other one.
    """

    make: Callable[..., optax.GradientTransformation]
    reads: tuple[str, ...] = ()


def make_optimizer(
    name: str,
    schedule: optax.Schedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    weight_decay: float = 0.0,
    centering: bool = False,
    plateau_steps: int | None = None,
) -> optax.GradientTransformation:
    """Makes an optimiser by name, with Keras's epsilon, 1e-7.

    Args:
      name: a key of `OPTIMIZERS`. Its entry says which of `b1`, `b2` and `weight_decay` it reads.
      schedule: the learning rate at each step.
      b1, b2: the decay of the first and of the second moment, in [0, 1).
      weight_decay: the decoupled weight decay, at least 0.
      centering: train in centred coordinates; see `centered`.
      plateau_steps: if given, the loss is averaged over this many steps, and the rate is multiplied
        by sqrt(0.1) when five averages in a row have not improved.

    Raises:
      InputError: an unknown name.
    """
    if name not in OPTIMIZERS:
        raise InputError(f"unknown optimiser {name!r}: it is one of {', '.join(OPTIMIZERS)}")
    entry, fields = OPTIMIZERS[name], {"b1": b1, "b2": b2, "weight_decay": weight_decay}
    optimizer = entry.make(schedule, centering, **{field: fields[field] for field in entry.reads})
    if plateau_steps is None:
        return optimizer
    plateau = optax.contrib.reduce_on_plateau(
        factor=0.1**0.5, patience=5, accumulation_size=plateau_steps
    )
    return optax.chain(optimizer, plateau)


class CenteredState(NamedTuple):
    """The state of `centered`.

    Fields:
      inner: the inner optimiser's state.
      cross: path of a kernel to the moving average of sum_o dL/dW[..., o] * dL/db[o], over outputs
        o: the kernel's shape without its last axis.
      square: path of a kernel to the moving average of sum_o (dL/db[o])^2, a scalar.
    """

    inner: optax.OptState
    cross: dict[str, jax.Array]
    square: dict[str, jax.Array]


def centered(
    optimizer: optax.GradientTransformation, decay: float = 0.99
) -> optax.GradientTransformation:
    """Runs an optimiser in coordinates in which the inputs of each layer have mean zero.

    The inputs x of a layer y = x W + b are images, or outputs of a relu, so their mean m is far
    from zero. A step of W then moves y much as a step of b does, and an optimiser that scales each
    parameter alone, such as Adam, is slow along that common direction. With W and c = b + m W as
    parameters, the layer is y = (x - m) W + c: its inputs are centred (LeCun, Bottou, Orr and
    Mueller, "Efficient BackProp", 1998, section 4.3). This is a linear change of variables. The
    network and its function stay the same; only the path to the minimum differs.

    The mean is estimated from gradients. With d = dL/dy, the gradients of W and b are x^T d and d,
    so E[x^T d . d] / E[d . d] is the mean of x, weighted by the squared gradient. The sums run over
    all outputs of a layer: one estimate for each output is noise where d is small, and training
    diverges.

    Parameters must be nested dictionaries. A `kernel`, outputs last, with a `bias` beside it is
    centred. All other parameters go to the inner optimiser unchanged.

    Args:
      optimizer: the inner optimiser.
      decay: of the moving averages, in [0, 1).
    """
    inner: Any = optax.with_extra_args_support(optimizer)

    def mean_output(mean: jax.Array, kernel: jax.Array) -> jax.Array:
        """m W: the output of a layer without bias for the mean input."""
        return (mean * kernel).reshape(-1, kernel.shape[-1]).sum(0)

    def init(params):
        flat = flatten_dict(params)
        cross = {"/".join(kernel): jnp.zeros(flat[kernel].shape[:-1]) for kernel, _ in _pairs(flat)}
        square = {name: jnp.zeros(()) for name in cross}
        return CenteredState(inner.init(params), cross, square)

    def update(updates, state, params=None, **extra):
        flat = flatten_dict(updates)
        pairs = _pairs(flat)
        mean, cross, square = {}, {}, {}
        for kernel, bias in pairs:
            name = "/".join(kernel)
            cross[name], square[name] = (
                decay * before + (1 - decay) * flat[which] @ flat[bias]
                for before, which in ((state.cross[name], kernel), (state.square[name], bias))
            )
            safe = jnp.where(square[name] > 0, square[name], 1)  # before the first gradient
            mean[kernel] = (cross[name] / safe)[..., None]
            flat[kernel] = flat[kernel] - mean[kernel] * flat[bias]
        if params is not None:  # weight decay acts on the same coordinates
            weights = flatten_dict(params)
            for kernel, bias in pairs:
                weights[bias] = weights[bias] + mean_output(mean[kernel], weights[kernel])
            params = unflatten_dict(weights)
        steps, after = inner.update(unflatten_dict(flat), state.inner, params, **extra)
        flat = flatten_dict(steps)
        for kernel, bias in pairs:
            flat[bias] = flat[bias] - mean_output(mean[kernel], flat[kernel])
        return unflatten_dict(flat), CenteredState(after, cross, square)

    return optax.GradientTransformationExtraArgs(init, update)


def _pairs(tree: Mapping[tuple[str, ...], Any]) -> list[tuple[tuple[str, ...], ...]]:
    """The paths of each kernel and of the bias beside it."""
    return [
        (path, (*path[:-1], "bias"))
        for path in tree
        if path[-1] == "kernel" and (*path[:-1], "bias") in tree
    ]


def adam(
    learning_rate: optax.ScalarOrSchedule,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    *,
    nesterov: bool = False,
    centering: bool = False,
    decay: float = 0.99,
) -> optax.GradientTransformation:
    """Adam or Nadam, as one pass over the parameters where the CPU kernels are available.

    It equals `optax.adam` up to rounding, wrapped in `centered` if `centering`, and has the same
    state. Kingma and Ba, "Adam", 2015; Dozat, "Incorporating Nesterov momentum into Adam", 2016.

    Args:
      learning_rate: above 0, or a schedule.
      b1, b2: the decay of the first and of the second moment, in [0, 1).
      eps: added to the root of the second moment.
      nesterov: True for Nadam.
      centering, decay: see `centered`.
    """
    scaled = optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)
    rated = optax.scale_by_learning_rate(learning_rate)
    plain: Any = optax.chain(scaled, rated)
    plain = centered(plain, decay) if centering else plain

    def fused(gradients, state, params):
        """The new parameters, or the updates if `params` is (), and the state.

        None if there is no kernel for these arrays.
        """
        arrays = jax.tree.leaves((gradients, params))
        if not kernels.available() or any(x.dtype != jnp.float32 for x in arrays):
            return None
        (before, rate), cross, cross_square = state if centering else (state, {}, {})
        count = optax.safe_increment(before.count)
        first, second = 1 - b1**count, 1 - b2**count
        step, rate = rated.update(jnp.ones(()), rate)
        scales = [b1, b2, 1 / first, 0, 1 / second, eps, step, decay]
        if nesterov:
            scales[2:4] = b1 / (1 - b1 ** optax.safe_increment(count)), (1 - b1) / first
        gradient, tree = jax.tree.flatten(gradients)
        pairs, names = [], []
        if centering:
            keys = jax.tree_util.tree_flatten_with_path(gradients)[0]
            paths = {tuple(key.key for key in path): i for i, (path, _) in enumerate(keys)}
            pairs = [(paths[kernel], paths[bias]) for kernel, bias in _pairs(paths)]
            names = ["/".join(kernel) for kernel, _ in _pairs(paths)]
        averages = kernels.AdamState(
            *map(jax.tree.leaves, (before.mu, before.nu)),
            *([averages[name] for name in names] for averages in (cross, cross_square)),
        )
        new, after = kernels.adam_step(scales, gradient, averages, pairs, jax.tree.leaves(params))
        new, mean, square = (
            jax.tree.unflatten(tree, leaves) for leaves in (new, after.mean, after.square)
        )
        inner = (optax.ScaleByAdamState(count, mean, square), rate)
        if not centering:
            return new, inner
        crosses = (dict(zip(names, x, strict=True)) for x in (after.cross, after.cross_square))
        return new, CenteredState(inner, *crosses)

    def update(updates, state, params=None, **extra):
        return fused(updates, state, ()) or plain.update(updates, state, params, **extra)

    def step(gradients, state, params, **extra):
        done = fused(gradients, state, params)
        return done or _take_step(plain, gradients, state, params, **extra)

    return Stepping(plain.init, update, step)


class Stepping(optax.GradientTransformationExtraArgs):
    """An optax optimiser with a fused step.

    Fields:
      step: (gradients, state, params, **extra) to the new parameters and state.
    """

    step: Callable[..., Any]

    def __new__(cls, init: Callable, update: Callable, step: Callable) -> Self:
        self = super().__new__(cls, init, update)
        self.step = step
        return self


def take_step(
    optimizer: optax.GradientTransformation, gradients: Any, state: Any, params: Any, **extra: Any
) -> tuple[Any, Any]:
    """Updates parameters: `optimizer.update` and `optax.apply_updates`, fused if possible.

    Args:
      gradients: a tree like `params`.
      state: the optimiser's state, from `optimizer.init(params)` or the last step.
      extra: further arguments of `update`, such as the loss as `value`.

    Returns:
      The new parameters, in their own types, and the new state.
    """
    if isinstance(optimizer, Stepping):
        return optimizer.step(gradients, state, params, **extra)
    return _take_step(optimizer, gradients, state, params, **extra)


def _take_step(
    optimizer: optax.GradientTransformation, gradients: Any, state: Any, params: Any, **extra: Any
) -> tuple[Any, Any]:
    optimizer = optax.with_extra_args_support(optimizer)
    updates, state = optimizer.update(gradients, state, params, **extra)
    return optax.apply_updates(params, updates), state


def _adam(schedule: Any, centering: bool, b1: float, b2: float) -> optax.GradientTransformation:
    return adam(schedule, b1, b2, 1e-7, centering=centering)


def _nadam(schedule: Any, centering: bool, b1: float, b2: float) -> optax.GradientTransformation:
    return adam(schedule, b1, b2, 1e-7, nesterov=True, centering=centering)


def _adamw(
    schedule: Any, centering: bool, b1: float, b2: float, weight_decay: float
) -> optax.GradientTransformation:
    optimizer = optax.adamw(schedule, b1=b1, b2=b2, eps=1e-7, weight_decay=weight_decay)
    return centered(optimizer) if centering else optimizer


def _adadelta(schedule: Any, centering: bool) -> optax.GradientTransformation:
    optimizer = optax.adadelta(schedule, rho=0.95, eps=1e-7)
    return centered(optimizer) if centering else optimizer


OPTIMIZERS: dict[str, Entry] = {
    "adam": Entry(_adam, reads=("b1", "b2")),
    "nadam": Entry(_nadam, reads=("b1", "b2")),
    "adamw": Entry(_adamw, reads=("b1", "b2", "weight_decay")),
    "adadelta": Entry(_adadelta),
}
