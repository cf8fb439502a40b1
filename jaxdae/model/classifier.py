"""A small classifier of digits: it measures what denoising has kept of a digit."""

from itertools import pairwise
from math import prod

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdae.errors import InputError
from jaxdae.model.layers import Conv, Dense, Dtype, Images, max_pool, relu


class DigitClassifier(nn.Module):
    """`classifier`: a 5x5 convolution with max-pooling and a 3x3 one; then pairs of 3x3 ones, the
    first of each of stride 2; then a dense layer.

    60,562 parameters at the defaults.

    Fields:
      image_size: the (height, width) of the images.
      channels: their channels.
      features: channels after each halving of the image.
      classes: how many classes there are.
      dtype: the type to compute in.
    """

    image_size: tuple[int, int] = (28, 28)
    channels: int = 1
    features: tuple[int, ...] = (24, 48)
    classes: int = 10
    dtype: Dtype = None

    @property
    def example(self) -> Images:
        """A batch of one image of zeros, to initialise the network with."""
        return jnp.zeros((1, *self.image_size, self.channels))

    @nn.compact
    def __call__(self, images: Images) -> Float[Array, "batch classes"]:
        """The logits of images in [0, 1], float32: (batch, height, width, channels) to (batch,
        classes).

        Raises:
          InputError: the images have another size or other channels.
        """
        shape = (*self.image_size, self.channels)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"images of shape {images.shape} do not fit this classifier, which takes (batch, "
                f"{', '.join(map(str, shape))}): resize them"
            )
        first = self.features[0]
        x = Conv(self.channels, first, self.dtype, (5, 5), name="down_0")(images)
        x = max_pool(relu(x))
        x = relu(Conv(first, first, self.dtype, name="conv_0")(x))
        for i, (inputs, outputs) in enumerate(pairwise(self.features), 1):
            x = relu(Conv(inputs, outputs, self.dtype, stride=2, name=f"down_{i}")(x))
            x = relu(Conv(outputs, outputs, self.dtype, name=f"conv_{i}")(x))
        x = x.reshape(x.shape[0], prod(x.shape[1:]))
        logits = Dense(x.shape[1], self.classes, self.dtype, name="logits")(x)
        return logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
