"""Trained networks for other programs: StableHLO, ONNX and safetensors files, as bytes.

    model, params = pretrained.load("digits-blind")
    card = pretrained.card("digits-blind")
    Path("digits-blind.stablehlo").write_bytes(to_stablehlo(model, params))
    Path("digits-blind.onnx").write_bytes(to_onnx(model, params, card))
    Path("digits-blind.safetensors").write_bytes(to_safetensors(params, card))

StableHLO and ONNX files hold the function with its parameters: float32 images, (batch, height,
width, channels), to float32 images, (batch, height, width, out_channels); or one half of an
autoencoder, to or from its latent. The batch may have any size, and so may the images, if the
network takes any size. In ONNX, a network that takes a noise level has it as a second input, which
may be left out. Both compute in float32. safetensors files hold the parameters and the
model card.
"""

from jaxdae.export.onnx_models import to_onnx
from jaxdae.export.parts import METHODS, Part, function, input_shape, need, symbolic_shape
from jaxdae.export.stablehlo import PLATFORMS, to_stablehlo
from jaxdae.export.tensors import from_safetensors, to_safetensors

__all__ = [
    "METHODS",
    "PLATFORMS",
    "Part",
    "from_safetensors",
    "function",
    "input_shape",
    "need",
    "symbolic_shape",
    "to_onnx",
    "to_safetensors",
    "to_stablehlo",
]
