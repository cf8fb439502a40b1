"""The train step: a pure function, (state, images, key) -> (state, metrics)."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jax import lax
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, UInt8

from jaxdae import kernels
from jaxdae.corruption import Corruption, pair
from jaxdae.losses import Loss
from jaxdae.model import Denoiser
from jaxdae.optimizers import take_step
from jaxdae.random import stream

Params = Any


Metrics = dict[str, Float[Array, ""]]


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


TrainStep = Callable[..., tuple[TrainState, Metrics]]


def create_state(
    model: Denoiser,
    optimizer: optax.GradientTransformation,
    seed: int,
    *,
    ema: bool = False,
) -> TrainState:
    """A fresh state, its parameters drawn from the seed."""

    @jax.jit
    def create(key: Key[Array, ""]) -> TrainState:
        params = model.init(key, jnp.zeros((1, *model.image_shape)))["params"]
        average = jax.tree.map(jnp.copy, params) if ema else None
        return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), average)

    return create(stream(seed, "init"))


def to_float(images: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """uint8 in [0, 255] to float32 in [0, 1]; floats are passed on."""
    return images.astype(jnp.float32) / 255 if images.dtype == jnp.uint8 else images


def make_train_step(
    model: Denoiser,
    corruption: Corruption,
    loss: Loss,
    optimizer: optax.GradientTransformation,
    *,
    teacher: Callable[[Array], Array] | None = None,
    ema_decay: float | None = None,
    microbatches: int | None = None,
    axis_name: str | None = None,
) -> TrainStep:
    """Makes the pure train step.

    Args:
      teacher: corrupted images to restored ones, a better network's: learn those instead of the
        clean images (distillation). Under the mean squared error both lead to the mean of the
        clean images that a corrupted one may come from; the teacher's is near that mean already,
        so the gradients say it with less noise.
      microbatches: differentiate the global batch in so many equal parts, one after the other,
        and average in a fixed order: what any number of devices that divides it does alike, to
        the bit. Without it devices agree on the gradients to rounding, which Adam's division by
        small numbers and the network's relus amplify from step to step.
      ema_decay: keep an average of the parameters, `decay * average + (1 - decay) * params`.
      axis_name: average gradients and metrics over this axis of a `pmap` or `shard_map`.

    Returns:
      step(state, images, key, positions=None) -> (state, {"loss"}): images are clean, uint8 or
      float in [0, 1]; `key` and `positions` are what the corruption takes, so a fresh key for
      every step gives fresh noise.
    """

    def objective(params, inputs, target):
        logits: Any = model.apply({"params": params}, inputs, method="logits")
        return loss(logits, target).mean()

    differentiate_whole = jax.value_and_grad(objective)

    def differentiate(params, inputs, target):
        """The loss and its gradient; on a CPU of a large batch piece by piece, for the caches."""
        count = len(inputs)
        most = kernels.gradient_piece()
        piece = max(size for size in range(1, min(count, most) + 1) if count % size == 0)
        if piece == count or piece < most // 4:
            return differentiate_whole(params, inputs, target)

        def in_pieces(params, inputs, target):
            def turn(total, part):
                return jax.tree.map(jnp.add, total, differentiate_whole(params, *part)), None

            parts = tuple(x.reshape(-1, piece, *x.shape[1:]) for x in (inputs, target))
            shapes = jax.eval_shape(differentiate_whole, params, *(part[0] for part in parts))
            zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
            total, _ = lax.scan(turn, zeros, parts)
            return jax.tree.map(lambda x: x * (piece / count), total)

        return lax.platform_dependent(
            params, inputs, target, cpu=in_pieces, default=differentiate_whole
        )

    def in_parts(state, parts):
        """The loss and the gradient of each part, stacked."""
        # The compiler must not see how many there are. A loop of one turn, or one over an axis of
        # length 1, it would simplify, and then round otherwise than the same loop over many: so
        # the count is only known at run time, and one part that is not visited is added.
        count = len(parts[0]) + jnp.minimum(state.step, 0)
        parts = jax.tree.map(lambda x: jnp.concatenate([x, x[:1]]), parts)

        def part(i):
            return differentiate_whole(state.params, *(x[i] for x in parts))

        def turn(i, out):
            return jax.tree.map(lambda stack, x: stack.at[i].set(x), out, part(i))

        out = jax.tree.map(
            lambda x: jnp.zeros((len(parts[0]), *x.shape), x.dtype),
            jax.eval_shape(part, 0),
        )
        return jax.tree.map(lambda x: x[:-1], lax.fori_loop(0, count, turn, out))

    def step(state, images, key, positions=None):
        inputs, clean = pair(corruption, key, to_float(images), positions)
        target = clean if teacher is None else lax.stop_gradient(teacher(inputs))

        if microbatches is None:
            value, gradient = differentiate(state.params, inputs, target)
            if axis_name is not None and lax.axis_size(axis_name) > 1:
                # As one vector: a CPU pays for each collective, however small.
                vector, unravel = ravel_pytree((value, gradient))
                value, gradient = unravel(lax.pmean(vector, axis_name))
        else:
            devices = 1 if axis_name is None else lax.axis_size(axis_name)
            parts = jax.tree.map(
                lambda x: x.reshape(microbatches // devices, -1, *x.shape[1:]), (inputs, target)
            )
            value, gradient = in_parts(state, parts)
            if axis_name is not None:
                value, gradient = lax.all_gather((value, gradient), axis_name, tiled=True)
            value, gradient = jax.tree.map(lambda x: x.mean(0), (value, gradient))
        params, opt_state = take_step(
            optimizer, gradient, state.opt_state, state.params, value=value
        )
        ema = state.ema
        if ema_decay is not None:
            ema = optax.incremental_update(params, ema, 1 - ema_decay)
        state = TrainState(state.step + 1, params, opt_state, ema)
        return state, {"loss": value}

    return step
