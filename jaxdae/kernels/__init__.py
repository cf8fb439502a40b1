"""Layers, the optimiser's step and normal numbers, by what is fastest on each platform.

docs/kernels.md describes the layers of this package, from the public forms down to the C++ kernels.
"""

from jaxdae.kernels.adam import AdamState, adam_step
from jaxdae.kernels.build import available, disabled, uses_amx
from jaxdae.kernels.conv import (
    Padding,
    conv,
    conv_transpose,
    dense,
    in_conv_layout,
    precise_sum,
    weighted_image_sum,
)
from jaxdae.kernels.conv_shape import ConvShape, transpose_padding
from jaxdae.kernels.normal import normal
from jaxdae.kernels.schedule import dense_then_conv_transpose, gradient_piece

__all__ = [
    "AdamState",
    "ConvShape",
    "Padding",
    "adam_step",
    "available",
    "conv",
    "conv_transpose",
    "dense",
    "dense_then_conv_transpose",
    "disabled",
    "gradient_piece",
    "in_conv_layout",
    "normal",
    "precise_sum",
    "transpose_padding",
    "uses_amx",
    "weighted_image_sum",
]
