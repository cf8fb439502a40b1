"""The networks, as Flax modules.

    model = DenoisingAutoencoder()
    params = model.init(key, jnp.zeros((1, 28, 28, 1)))["params"]
    images = model.apply({"params": params}, noisy)                      # in [0, 1]
    latent = model.apply({"params": params}, noisy, method="encode")     # (batch, 16)
    images = model.apply({"params": params}, latent, method="decode")

Every architecture has the same face: images in and out are channels last and outputs lie in
[0, 1]; `logits` is the output before the sigmoid, which is what a cross-entropy wants. Of the
autoencoders `encode` and `decode` are the two halves, and their parameters split into `encoder` and
`decoder`; the U-Net has no latent, and neither. Each layer is a `kernel` and a `bias`; kernels
start Glorot-uniform and biases at zero, as Keras's do. Parameters are float32; `dtype` is the type
of the computation, as in Flax.

A side that the strides do not divide is padded with zeros (half before, half after) on the way in
and cropped on the way out.
"""

from jaxdae.model.autoencoders import (
    DenoisingAutoencoder,
    DenseAutoencoder,
    MaxPoolAutoencoder,
)
from jaxdae.model.base import Autoencoder, Denoiser
from jaxdae.model.classifier import DigitClassifier
from jaxdae.model.layers import (
    Conv,
    ConvTranspose,
    Dense,
    Dtype,
    Images,
    Latent,
    add,
    max_pool,
    relu,
    upsample,
)
from jaxdae.model.registry import ARCHITECTURES, build, parameter_count
from jaxdae.model.unet import UNet

__all__ = [
    "ARCHITECTURES",
    "Autoencoder",
    "Conv",
    "ConvTranspose",
    "Denoiser",
    "DenoisingAutoencoder",
    "Dense",
    "DenseAutoencoder",
    "DigitClassifier",
    "Dtype",
    "Images",
    "Latent",
    "MaxPoolAutoencoder",
    "UNet",
    "add",
    "build",
    "max_pool",
    "parameter_count",
    "relu",
    "upsample",
]
