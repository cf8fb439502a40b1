"""Optimisers and learning-rate schedules by name, as the recipes spell them."""

import math

import optax
import optax.contrib

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
    plateau_steps: int | None = None,
) -> optax.GradientTransformation:
    """An optimiser by name, with Keras's constants where optax's differ (epsilon 1e-7).

    Args:
      weight_decay: for `adamw`.
      plateau_steps: where given, the rate falls by sqrt(0.1) when the loss, averaged over this
        many steps, has not improved five times in a row.
    """
    if name == "adam":
        optimizer = optax.adam(schedule, b1=b1, b2=b2, eps=1e-7)
    elif name == "nadam":
        optimizer = optax.nadam(schedule, b1=b1, b2=b2, eps=1e-7)
    elif name == "adamw":
        optimizer = optax.adamw(schedule, b1=b1, b2=b2, eps=1e-7, weight_decay=weight_decay)
    elif name == "adadelta":
        optimizer = optax.adadelta(schedule, rho=0.95, eps=1e-7)
    else:
        raise InputError(f"unknown optimiser {name!r}: it is one of {', '.join(OPTIMIZERS)}")
    if plateau_steps is None:
        return optimizer
    plateau = optax.contrib.reduce_on_plateau(
        factor=0.1**0.5, patience=5, accumulation_size=plateau_steps
    )
    return optax.chain(optimizer, plateau)
