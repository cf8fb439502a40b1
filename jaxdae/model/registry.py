"""The networks by name."""

from typing import Any

import jax

from jaxdae.errors import InputError
from jaxdae.model.autoencoders import DenoisingAutoencoder, DenseAutoencoder, MaxPoolAutoencoder
from jaxdae.model.base import ACTIVATIONS, Denoiser
from jaxdae.model.photo import PhotoDenoiser
from jaxdae.model.unet import UNet

# A configuration's value that is a field of the class is one that the network reads.
ARCHITECTURES: dict[str, type[Denoiser]] = {
    "strided": DenoisingAutoencoder,
    "maxpool": MaxPoolAutoencoder,
    "dense": DenseAutoencoder,
    "unet": UNet,
    "photo": PhotoDenoiser,
}
CHOICES = {"upsampling": ("nearest", "transposed"), "output": tuple(ACTIVATIONS)}
OPTIONAL = ("out_channels", "image_size", "dtype")  # which may be None


def fields_of(architecture: str) -> tuple[str, ...]:
    """The names of an architecture's fields.

    Raises:
      InputError: there is no such architecture.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"unknown architecture {architecture!r}: it is one of {', '.join(ARCHITECTURES)}"
        )
    fields = ARCHITECTURES[architecture].__dataclass_fields__
    return tuple(name for name in fields if name not in ("parent", "name"))


def build(architecture: str, **fields: Any) -> Denoiser:
    """Makes a network by the name of its architecture, and checks its fields.

    Raises:
      InputError: an unknown architecture or field, or sizes that are not positive integers.
    """
    known = fields_of(architecture)
    for field, value in fields.items():
        if field not in known:
            raise InputError(
                f"the {architecture} architecture has no {field!r}: it has {', '.join(known)}"
            )
        if field in CHOICES:
            if value not in CHOICES[field]:
                raise InputError(f"{field}={value!r} must be {' or '.join(CHOICES[field])}")
        elif field != "dtype" and not (field in OPTIONAL and value is None):
            _check_sizes(field, value)
    return ARCHITECTURES[architecture](**fields)


def _check_sizes(field: str, value: Any) -> None:
    sizes = value if isinstance(value, (tuple, list)) else (value,)
    least = 0 if field == "bridge" else 1
    whole = [isinstance(size, int) and not isinstance(size, bool) for size in sizes]
    if not sizes or not all(whole) or min(sizes) < least:
        raise InputError(f"{field}={value!r} must be made of positive integers, such as 16")


def parameter_shapes(model: Denoiser) -> Any:
    """The shapes of a network's parameters, as a tree of tuples."""
    params = jax.eval_shape(model.init, jax.random.key(0), model.example)["params"]
    return jax.tree.map(lambda leaf: leaf.shape, params)


def parameter_count(params: Any) -> int:
    """The number of values in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
