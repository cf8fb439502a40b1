"""Optimisers and learning-rate schedules by name, as the recipes spell them."""

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

OPTIMIZERS = ("adam", "nadam", "adamw", "adadelta")
SCHEDULES = ("constant", "one-cycle", "plateau")


def make_schedule(name: str, learning_rate: float, steps: int) -> optax.Schedule:
    """The learning rate at each step.

    `one-cycle` rises linearly from a 25th of `learning_rate` to all of it over the first fifth of
    the steps, and falls linearly to a 2500th over the rest. `constant` and `plateau` stay as they
    are; `make_optimizer` lowers the latter.
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
    if name in SCHEDULES:
        return optax.constant_schedule(learning_rate)
    raise InputError(f"unknown schedule {name!r}: it is one of {', '.join(SCHEDULES)}")


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
    """An optimiser by name, with Keras's constants where optax's differ (epsilon 1e-7).

    Args:
      weight_decay: for `adamw`.
      centering: see `centered`.
      plateau_steps: where given, the rate falls by sqrt(0.1) when the loss, averaged over this
        many steps, has not improved five times in a row.
    """
    if name in ("adam", "nadam"):
        optimizer = adam(schedule, b1, b2, 1e-7, nesterov=name == "nadam", centering=centering)
        centering = False
    elif name == "adamw":
        optimizer = optax.adamw(schedule, b1=b1, b2=b2, eps=1e-7, weight_decay=weight_decay)
    elif name == "adadelta":
        optimizer = optax.adadelta(schedule, rho=0.95, eps=1e-7)
    else:
        raise InputError(f"unknown optimiser {name!r}: it is one of {', '.join(OPTIMIZERS)}")
    if centering:
        optimizer = centered(optimizer)
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
      cross: for each kernel, by its path, the average of its gradient times its bias's, summed
        over the outputs: the kernel's shape without the last axis.
      square: for each of their biases, the average of the sum of the squared gradient: a number.
    """

    inner: optax.OptState
    cross: dict[str, jax.Array]
    square: dict[str, jax.Array]


def centered(
    optimizer: optax.GradientTransformation, decay: float = 0.99
) -> optax.GradientTransformation:
    """Runs an optimiser in coordinates in which a layer's kernel and bias do not pull together.

    The inputs x of a layer y = x W + b are images or come from a relu: their mean m is far from
    zero, so a step of W also moves y as a step of b would, and an optimiser that looks at each
    number alone, as Adam does, goes slowly along what they share. In the coordinates W and
    c = b + m W the layer reads y = (x - m) W + c: its inputs are centred (LeCun, Bottou, Orr and
    Mueller, "Efficient BackProp", 1998, section 4.3). That is a linear change of variables: the
    network and what it computes stay as they are, only the path to the minimum is another.

    The mean is not looked up in the network. With d = dL/dy, the gradients of kernel and bias are
    x^T d and d, so E[x^T d . d] / E[d . d] is the mean of x weighted by the squared gradient. It
    is taken over all outputs of a layer: for each apart it would be noise where d is small, and
    training diverges. `decay` is that of the averages.

    It needs parameters in dictionaries in which `kernel`, outputs last, lies beside `bias`; what
    has no such partner goes to the inner optimiser as it is.
    """
    inner: Any = optax.with_extra_args_support(optimizer)

    def moved(mean: jax.Array, kernel: jax.Array) -> jax.Array:
        """What a kernel adds to the outputs of inputs that are at their mean: m W."""
        return (mean * kernel).reshape(-1, kernel.shape[-1]).sum(0)

    def init(params):
        flat = flatten_dict(params)
        cross = {"/".join(kernel): jnp.zeros(flat[kernel].shape[:-1]) for kernel, _ in _pairs(flat)}
        square = {name: jnp.zeros(()) for name in cross}
        return CenteredState(inner.init(params), cross, square)

    def update(updates, state, params=None, **extra):
        flat = flatten_dict(updates)
        both = _pairs(flat)
        mean, cross, square = {}, {}, {}
        for kernel, bias in both:
            name = "/".join(kernel)
            cross[name], square[name] = (
                decay * before + (1 - decay) * flat[which] @ flat[bias]
                for before, which in ((state.cross[name], kernel), (state.square[name], bias))
            )
            safe = jnp.where(square[name] > 0, square[name], 1)  # no gradient yet: no mean
            mean[kernel] = (cross[name] / safe)[..., None]
            flat[kernel] = flat[kernel] - mean[kernel] * flat[bias]
        if params is not None:  # in the same coordinates, for what decays weights
            weights = flatten_dict(params)
            for kernel, bias in both:
                weights[bias] = weights[bias] + moved(mean[kernel], weights[kernel])
            params = unflatten_dict(weights)
        steps, after = inner.update(unflatten_dict(flat), state.inner, params, **extra)
        flat = flatten_dict(steps)
        for kernel, bias in both:
            flat[bias] = flat[bias] - moved(mean[kernel], flat[kernel])
        return unflatten_dict(flat), CenteredState(after, cross, square)

    return optax.GradientTransformationExtraArgs(init, update)


def _pairs(tree: Mapping[tuple[str, ...], Any]) -> list[tuple[tuple[str, ...], ...]]:
    """The paths of the kernels, each with its bias's."""
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
    """`optax.adam`, if wanted `centered`, in one kernel where `jaxdae.kernels` has C++ ones.

    Its state is theirs, and so are its numbers, to rounding.

    Args:
      learning_rate: above 0, or a schedule of it.
      b1, b2: what the averages of the gradient and of its square keep of themselves, in [0, 1).
      eps: is added to what the update is divided by.
      nesterov: look ahead by the gradient itself, as Nadam does.
      centering: in the coordinates of `centered`, whose averages keep `decay`; parameters are in
        dictionaries then.
    """
    scaled = optax.scale_by_adam(b1, b2, eps, nesterov=nesterov)
    rated = optax.scale_by_learning_rate(learning_rate)
    plain: Any = optax.chain(scaled, rated)
    plain = centered(plain, decay) if centering else plain

    def at_once(gradients, state, params):
        """The updates, or the parameters with them, and the state; None without the kernel."""
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
        made, after = kernels.adam_step(scales, gradient, averages, pairs, jax.tree.leaves(params))
        made, mean, square = (
            jax.tree.unflatten(tree, leaves) for leaves in (made, after.mean, after.square)
        )
        inner = (optax.ScaleByAdamState(count, mean, square), rate)
        if not centering:
            return made, inner
        crosses = (dict(zip(names, x, strict=True)) for x in (after.cross, after.cross_square))
        return made, CenteredState(inner, *crosses)

    def update(updates, state, params=None, **extra):
        return at_once(updates, state, ()) or plain.update(updates, state, params, **extra)

    def step(gradients, state, params, **extra):
        made = at_once(gradients, state, params)
        return made or _step(plain, gradients, state, params, **extra)

    return Stepping(plain.init, update, step)


class Stepping(optax.GradientTransformationExtraArgs):
    """An optax optimiser that can also take its step in one pass, as `take_step` does.

    Fields:
      step: (gradients, state, params, **extra) to the parameters and the state, trees as they were.
    """

    step: Callable[..., Any]

    def __new__(cls, init: Callable, update: Callable, step: Callable) -> Self:
        self = super().__new__(cls, init, update)
        self.step = step
        return self


def take_step(
    optimizer: optax.GradientTransformation, gradients: Any, state: Any, params: Any, **extra: Any
) -> tuple[Any, Any]:
    """`optimizer.update` and `optax.apply_updates`; in one pass where the optimiser has such.

    Args:
      gradients: a tree of the parameters' shapes.
      state: the optimiser's, of `optimizer.init(params)` or of the step before.
      extra: what `update` may want to know besides, such as the loss, `value`.

    Returns:
      The parameters, in their own types, and the optimiser's state.
    """
    if isinstance(optimizer, Stepping):
        return optimizer.step(gradients, state, params, **extra)
    return _step(optimizer, gradients, state, params, **extra)


def _step(
    optimizer: optax.GradientTransformation, gradients: Any, state: Any, params: Any, **extra: Any
) -> tuple[Any, Any]:
    optimizer = optax.with_extra_args_support(optimizer)
    updates, state = optimizer.update(gradients, state, params, **extra)
    return optax.apply_updates(params, updates), state
