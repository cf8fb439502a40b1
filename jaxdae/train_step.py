"""The train step: a pure function, (state, images, key) -> (state, metrics).

It needs nothing but this file and an objective. Whoever has a training loop of their own takes
`create_state` and `make_train_step` alone.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxdae import kernels
from jaxdae.objectives import Example, Objective
from jaxdae.optimizers import take_step
from jaxdae.random import stream

Params = Any
Metrics = dict[str, Float[Array, ""]]
TrainStep = Callable[..., tuple["TrainState", Metrics]]


class TrainState(struct.PyTreeNode):
    """All that training changes.

    Fields:
      step: the number of steps taken, int32.
      params: the model's parameters.
      opt_state: the optimiser's state.
      ema: the exponential moving average of the parameters, or None.
    """

    step: Int[Array, ""]
    params: Params
    opt_state: optax.OptState
    ema: Params | None

    @property
    def eval_params(self) -> Params:
        """The parameters to evaluate and keep: the average where there is one."""
        return self.params if self.ema is None else self.ema


def create_state(
    model: nn.Module,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool = False,
    params: Params | None = None,
) -> TrainState:
    """A fresh state.

    Args:
      model: a network with `example`, a batch to initialise it with.
      seed: decides the parameters.
      ema: keep an average of the parameters, too.
      params: begin with these parameters.
    """

    @jax.jit
    def create(key: Key[Array, ""], given: Params | None) -> TrainState:
        params = model.init(key, model.example)["params"] if given is None else given
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

    return create(stream(seed, "init"), params)


def to_float(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 in [0, 255] to float32 in [0, 1]. Other types, such as floats, stay as they are."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def make_train_step(
    model: nn.Module,
    objective: Objective,
    optimizer: optax.GradientTransformation,
    *,
    ema_decay: float | None = None,
    microbatches: int | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """Makes the pure train step.

    Args:
      model: the network.
      objective: what it learns.
      ema_decay: keep an average of the parameters, `decay * average + (1 - decay) * params`. In
        the first steps the decay is (1 + step) / (10 + step), if that is less: the parameters of
        the start are soon forgotten.
      microbatches: differentiate the global batch in so many equal parts, one after the other, and
        average their gradients in a fixed order. Any number of devices that divides it then gives
        the same bits. Without it, devices agree to rounding; Adam and the ReLUs amplify that from
        step to step.
      axis_name: average gradients and metrics over this axis of a `pmap` or `shard_map`.

    Returns:
      step(state, data, key, positions=None) -> (state, {"loss"}). `data` is a batch as the
      objective takes it: clean images, uint8 or float in [0, 1], or a tuple with them. `key` and
      `positions` go to `objective.prepare`; a fresh key for every step gives fresh noise.
    """

    def mean_loss(params: Params, example: Example) -> Float[Array, ""]:
        return objective.loss(partial(model.apply, {"params": params}), example).mean()

    differentiate = jax.value_and_grad(mean_loss)

    def step(state, data, key, positions=None):
        example = objective.prepare(key, jax.tree.map(to_float, data), positions)
        if microbatches is None:
            loss, gradient = in_pieces(differentiate, state.params, example)
            if axis_name is not None and lax.axis_size(axis_name) > 1:
                # As one vector: a CPU pays for each collective, however small.
                vector, unravel = ravel_pytree((loss, gradient))
                loss, gradient = unravel(lax.pmean(vector, axis_name))
        else:
            devices = 1 if axis_name is None else lax.axis_size(axis_name)
            parts = split(example, microbatches // devices)
            loss, gradient = in_parts(differentiate, state, parts)
            if axis_name is not None:
                loss, gradient = lax.all_gather((loss, gradient), axis_name, tiled=True)
            loss, gradient = jax.tree.map(lambda x: x.mean(0), (loss, gradient))
        params, opt_state = take_step(
            optimizer, gradient, state.opt_state, state.params, value=loss
        )
        ema = state.ema
        if ema_decay is not None:
            decay = jnp.minimum(ema_decay, (1 + state.step) / (10 + state.step))
            ema = optax.incremental_update(params, ema, 1 - decay)
        return TrainState(state.step + 1, params, opt_state, ema), {"loss": loss}

    return step


Differentiate = Callable[[Params, Example], tuple[Array, Params]]


def split(example: Example, parts: int) -> Example:
    """An example's batch in equal parts: (batch, ...) to (parts, batch / parts, ...)."""
    return jax.tree.map(lambda x: x.reshape(parts, -1, *x.shape[1:]), example)


def in_pieces(
    differentiate: Differentiate, params: Params, example: Example
) -> tuple[Array, Params]:
    """The loss and its gradient. A CPU takes a large batch piece by piece, for its caches."""
    count, most = len(example.input), kernels.gradient_piece()
    piece = max(size for size in range(1, min(count, most) + 1) if count % size == 0)
    if piece == count or piece < most // 4:
        return differentiate(params, example)

    def pieces(params: Params, example: Example) -> tuple[Array, Params]:
        def turn(total: Any, part: Example) -> tuple[Any, None]:
            return jax.tree.map(jnp.add, total, differentiate(params, part)), None

        parts = split(example, count // piece)
        shapes = jax.eval_shape(differentiate, params, jax.tree.map(lambda x: x[0], parts))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        total, _ = lax.scan(turn, zeros, parts)
        return jax.tree.map(lambda x: x * (piece / count), total)

    return lax.platform_dependent(params, example, cpu=pieces, default=differentiate)


def in_parts(
    differentiate: Differentiate, state: TrainState, parts: Example
) -> tuple[Array, Params]:
    """The loss and the gradient of each part, stacked."""
    # The compiler must not know how many parts there are. It would simplify a loop of one turn, or
    # over an axis of length 1, and then round otherwise than in a loop of many. So the count is
    # known at run time only, and one more part is added that is not visited.
    number = len(parts.input)
    count = number + jnp.minimum(state.step, 0)
    parts = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), parts)

    def part(i: Any) -> tuple[Array, Params]:
        return differentiate(state.params, jax.tree.map(lambda x: x[i], parts))

    def turn(i: Any, out: Any) -> Any:
        return jax.tree.map(lambda stack, x: stack.at[i].set(x), out, part(i))

    shapes = jax.eval_shape(part, 0)
    out = jax.tree.map(lambda x: jnp.zeros((number + 1, *x.shape), x.dtype), shapes)
    return jax.tree.map(lambda x: x[:-1], lax.fori_loop(0, count, turn, out))
