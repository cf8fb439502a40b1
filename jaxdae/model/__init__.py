"""The networks, as Flax modules.

    model = DenoisingAutoencoder()
    params = model.init(key, model.example)["params"]
    images = model.apply({"params": params}, noisy)                      # in [0, 1]
    latent = model.apply({"params": params}, noisy, method="encode")     # (batch, 16)
    images = model.apply({"params": params}, latent, method="decode")

Images are channels last, (batch, height, width, channels). A network reads height and width from
its input, pads them by reflection to what its strides divide, and crops its output; networks with
dense layers take one `image_size`. `model.apply(variables, images, sigma)` passes a noise level to
networks that take one.

`method="logits"` gives the output before its nonlinearity, for cross-entropies. Autoencoders have
two halves, `encode` and `decode`, whose parameters are `encoder` and `decoder`. Each layer has a
`kernel`, Glorot-uniform at the start, and a `bias`, zero at the start, as in Keras; `PhotoDenoiser`
has no biases. Parameters are float32; `dtype` is the type of the computation, as in Flax.
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
    pixel_shuffle,
    pixel_unshuffle,
    relu,
    upsample,
)
from jaxdae.model.photo import PhotoDenoiser, gray_params
from jaxdae.model.registry import ARCHITECTURES, build, fields_of, parameter_count, parameter_shapes
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
    "PhotoDenoiser",
    "UNet",
    "add",
    "build",
    "fields_of",
    "gray_params",
    "max_pool",
    "parameter_count",
    "parameter_shapes",
    "pixel_shuffle",
    "pixel_unshuffle",
    "relu",
    "upsample",
]
