"""The networks by name."""

from typing import Any

import jax

from jaxdae.errors import InputError
from jaxdae.model.autoencoders import DenoisingAutoencoder, DenseAutoencoder, MaxPoolAutoencoder
from jaxdae.model.base import Denoiser
from jaxdae.model.unet import UNet

ARCHITECTURES: dict[str, type[Denoiser]] = {
    "strided": DenoisingAutoencoder,
    "maxpool": MaxPoolAutoencoder,
    "dense": DenseAutoencoder,
    "unet": UNet,
}


def build(architecture: str, **fields: Any) -> Denoiser:
    """Makes an architecture by its name, checking the fields.

    Raises:
      InputError: an unknown architecture or field, or sizes that are not positive integers.
    """
    if architecture not in ARCHITECTURES:
        raise InputError(
            f"unknown architecture {architecture!r}: it is one of {', '.join(ARCHITECTURES)}"
        )
    kind = ARCHITECTURES[architecture]
    known = [name for name in kind.__dataclass_fields__ if name not in ("parent", "name")]
    for field, value in fields.items():
        if field not in known:
            raise InputError(
                f"the {architecture} architecture has no {field!r}: it has {', '.join(known)}"
            )
        if field in ("dtype", "upsampling") or (field == "out_channels" and value is None):
            continue
        sizes = value if isinstance(value, (tuple, list)) else (value,)
        low = 0 if field == "bridge" else 1
        if not sizes or any(
            isinstance(s, bool) or not isinstance(s, int) or s < low for s in sizes
        ):
            raise InputError(f"{field}={value!r} must be made of positive integers, such as 16")
    if fields.get("upsampling", "nearest") not in ("nearest", "transposed"):
        raise InputError(f"upsampling={fields['upsampling']!r} must be nearest or transposed")
    return kind(**fields)


def parameter_count(params: Any) -> int:
    """The number of values in a parameter tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
