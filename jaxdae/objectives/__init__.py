"""Objectives: what is learnt, one file each.

    objective = Supervised(gaussian(0.5), mean_squared_error)
    example = objective.prepare(key, images)                    # what the network is given
    losses = objective.loss(partial(model.apply, variables), example)

An objective is two pure functions. `prepare` makes examples from a batch of the data set, outside
the gradient; `loss` compares what the network makes of them with the target, inside it. Both work
on any part of a batch, so that devices and microbatches share one.
"""

from jaxdae.corruption import Corruption
from jaxdae.objectives.base import Apply, Example, Objective, image_loss, restoration_loss
from jaxdae.objectives.classification import Classification, Labelled
from jaxdae.objectives.paired import Pair, Paired
from jaxdae.objectives.supervised import Supervised

__all__ = [
    "Apply",
    "Classification",
    "Example",
    "Labelled",
    "Objective",
    "Pair",
    "Paired",
    "Supervised",
    "as_objective",
    "image_loss",
    "restoration_loss",
]


def as_objective(what: Corruption | Objective) -> Objective:
    """A corruption as the supervised objective that undoes it; an objective as it is."""
    return Supervised(what) if isinstance(what, Corruption) else what
