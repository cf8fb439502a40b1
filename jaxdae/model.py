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

from math import prod
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from jaxdae import native
from jaxdae.convolution import Padding, across, conv, conv_transpose, dense, mix, precise_sum
from jaxdae.errors import InputError

Dtype = Any
Images = Float[Array, "batch height width channels"]
Latent = Float[Array, "batch *latent"]


class Affine(nn.Module):
    """A kernel and a bias, readable as attributes: what the layers below share.

    Fields:
      inputs, outputs: channels (or features) in and out.
      dtype: the type to compute in; None takes the widest of the input's and the parameters'.
    """

    inputs: int
    outputs: int
    dtype: Dtype = None

    @property
    def window(self) -> tuple[int, ...]:
        """The kernel's spatial axes."""
        return ()

    def setup(self) -> None:
        shape = (*self.window, self.inputs, self.outputs)
        self.kernel = self.param("kernel", nn.initializers.glorot_uniform(), shape)
        self.bias = self.param("bias", nn.initializers.zeros, (self.outputs,))

    def cast(self, x: Array) -> Array:
        """The input in the type to compute in."""
        return x.astype(self.dtype or jnp.result_type(x, self.kernel))


class Dense(Affine):
    """A fully connected layer: (batch, ...), `inputs` numbers in each, to (batch, outputs)."""

    def __call__(self, x: Array, rectify: bool = False) -> Array:
        """The layer on vectors, or on images as vectors, or on what a relu makes of them."""
        return dense(self.cast(x), self.kernel, self.bias, rectify=rectify)


class Conv(Affine):
    """A convolution on the forms of `jaxdae.convolution`; see there for stride and padding."""

    kernel_size: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: Padding = "SAME"

    @property
    def window(self) -> tuple[int, ...]:
        return self.kernel_size

    def __call__(self, x: Images, rectify: bool = False) -> Images:
        """The convolution of images, or of what a relu makes of them."""
        x = self.cast(x)
        return conv(
            x, self.kernel, self.bias, stride=self.stride, padding=self.padding, rectify=rectify
        )


class ConvTranspose(Conv):
    """A transposed convolution: both axes grow by the stride. "SAME" padding only."""

    def __call__(self, x: Images, rectify: bool = False) -> Images:
        x = self.cast(x)
        return conv_transpose(x, self.kernel, self.bias, stride=self.stride, rectify=rectify)

    def after_dense(self, layer: Dense, latent: Latent, shape: tuple[int, int, int]) -> Images:
        """Equals `self(layer(latent).reshape(-1, *shape))`, for less work on a large batch.

        With no activation in between, the two layers are one affine map of the latent vector.
        The layer is applied to the rows of the dense kernel and to its bias, `inputs + 1` images
        however large the batch, of which each result is a weighted sum. Where the parameters are
        known as this is traced, as in `jax.jit(lambda images: model.apply(variables, images))`,
        these images are a constant of the program.
        """
        batch, latent = latent.shape[0], self.cast(latent)
        numbers = (layer.kernel, layer.bias, self.kernel)
        constant = (
            native.available()
            and isinstance(latent, jax.core.Tracer)
            and not any(isinstance(x, jax.core.Tracer) for x in numbers)
        )
        wide = latent.dtype.itemsize >= 4
        # What little it saves of a small one, the odd size costs, and the more, the faster products
        # are; a symbolic one has any size. On tiles they cost less than the sums would.
        small = (1 if wide else 3) if constant else (layer.inputs + 1) * (2 if wide else 3.5)
        if not isinstance(batch, int) or batch <= small or native.tiled(latent.dtype):
            return self(layer(latent).reshape(-1, *shape))
        options: dict[str, Any] = {"shape": shape, "stride": self.stride, "dtype": latent.dtype}
        if constant:
            with jax.ensure_compile_time_eval():
                images = _joined_now(*numbers, **options)
        else:
            images = _joined(*numbers, **options)
        return mix(latent, images, self.bias)


def _joined(
    kernel: Array, bias: Array, window: Array, *, shape: tuple[int, ...], stride: int, dtype: Any
) -> Images:
    """The rows of a dense kernel and its bias, as a transposed convolution's kernel leaves them."""
    rows = jnp.concatenate([kernel, bias[None]])
    # No narrower than the parameters: it is a kernel that is made here.
    rows = rows.astype(jnp.promote_types(rows.dtype, dtype))
    return conv_transpose(rows.reshape(-1, *shape), window, stride=stride)


_joined_now = jax.jit(_joined, static_argnames=("shape", "stride", "dtype"))


class Denoiser(nn.Module):
    """What every architecture shares: images in, images out; a subclass has `restore`.

    Fields:
      image_shape: (height, width, channels) of the images that come in.
      out_channels: channels of the reconstruction; None for as many as come in.
      dtype: the type to compute in.
    """

    image_shape: tuple[int, int, int] = (28, 28, 1)
    out_channels: int | None = None
    dtype: Dtype = None

    def __call__(self, images: Images) -> Images:
        """Reconstructs images: (batch, *image_shape) to (batch, height, width, out_channels)."""
        return nn.sigmoid(self.logits(images))

    def logits(self, images: Images) -> Images:
        """The reconstruction before the sigmoid, float32.

        Raises:
          InputError: the images have another shape than `image_shape`.
        """
        return self._crop(self.restore(self._pad(images)))

    def _pad(self, images: Images) -> Images:
        shape = tuple(self.image_shape)
        if images.ndim != 4 or images.shape[1:] != shape:
            raise InputError(
                f"images of shape {images.shape} do not fit this model, which takes (batch, "
                f"{', '.join(map(str, shape))}): build one with image_shape={images.shape[1:]}"
            )
        return jnp.pad(images, ((0, 0), *self.edges, (0, 0)))

    def _crop(self, images: Images) -> Images:
        (top, _), (left, _) = self.edges
        height, width, _ = self.image_shape
        images = images[:, top : top + height, left : left + width]
        return images.astype(jnp.promote_types(images.dtype, jnp.float32))

    @property
    def padded(self) -> tuple[int, int]:
        """The height and width that the layers see."""
        return self.image_shape[:2]

    @property
    def edges(self) -> list[tuple[int, int]]:
        """The zeros before and after that make an image's height and width those."""
        spare = [total - size for total, size in zip(self.padded, self.image_shape, strict=False)]
        return [(total // 2, total - total // 2) for total in spare]

    @property
    def _outputs(self) -> int:
        return self.image_shape[2] if self.out_channels is None else self.out_channels


class Autoencoder(Denoiser):
    """A denoiser in two halves with a latent between: a subclass sets up `encoder`, `decoder`."""

    def restore(self, images: Images) -> Images:
        return self._decode(self.encoder(images))

    def encode(self, images: Images) -> Latent:
        """The latent representation of images, (batch, *latent).

        Raises:
          InputError: the images have another shape than `image_shape`.
        """
        return self.encoder(self._pad(images))

    def decode(self, latent: Latent) -> Images:
        """Images in [0, 1], (batch, height, width, out_channels), from latent representations."""
        return nn.sigmoid(self._crop(self._decode(latent)))

    def _decode(self, latent: Latent) -> Images:
        return self.decoder(latent).reshape(latent.shape[0], *self.padded, self._outputs)


class StridedEncoder(nn.Module):
    """Strided convolutions, flattened, and a dense layer to the latent vector."""

    image_shape: tuple[int, int, int]
    features: tuple[int, ...]
    latent_dim: int
    kernel_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Float[Array, "batch latent"]:
        inputs = self.image_shape[2]
        for i, outputs in enumerate(self.features):
            name = f"conv_{i}"
            layer = Conv(inputs, outputs, self.dtype, self.kernel_size, stride=2, name=name)
            x, inputs = layer(x, rectify=i > 0), outputs
        size = prod(x.shape[1:])
        return Dense(size, self.latent_dim, self.dtype, name="latent")(x, rectify=True)


class StridedDecoder(nn.Module):
    """A dense layer, transposed convolutions of stride 2, and one of stride 1 to the image."""

    image_shape: tuple[int, int, int]
    features: tuple[int, ...]
    latent_dim: int
    kernel_size: tuple[int, int]
    dtype: Dtype

    @nn.compact
    def __call__(self, latent: Float[Array, "batch latent"]) -> Images:
        height, width, channels = self.image_shape
        stride, inputs = 2 ** len(self.features), self.features[-1]
        shape = (height // stride, width // stride, inputs)
        dense = Dense(self.latent_dim, prod(shape), self.dtype, name="dense")
        x = latent
        for i, outputs in enumerate(reversed(self.features)):
            layer = ConvTranspose(
                inputs, outputs, self.dtype, self.kernel_size, stride=2, name=f"conv_transpose_{i}"
            )
            x = layer(x, rectify=True) if i else layer.after_dense(dense, latent, shape)
            inputs = outputs
        output = ConvTranspose(inputs, channels, self.dtype, self.kernel_size, name="output")
        return output(x, rectify=True)


class DenoisingAutoencoder(Autoencoder):
    """`strided`: strided convolutions to a latent vector, transposed convolutions back.

    178,001 parameters at the defaults: the denoising autoencoder of the Keras tutorials.

    Fields:
      features: channels after each halving of the image.
      latent_dim: length of the latent vector.
      kernel_size: height and width of every kernel.
    """

    features: tuple[int, ...] = (32, 64)
    latent_dim: int = 16
    kernel_size: tuple[int, int] = (3, 3)

    def setup(self) -> None:
        fields = (tuple(self.features), self.latent_dim, self.kernel_size, self.dtype)
        self.encoder = StridedEncoder((*self.padded, self.image_shape[2]), *fields)
        self.decoder = StridedDecoder((*self.padded, self._outputs), *fields)

    @property
    def padded(self) -> tuple[int, int]:
        stride = 2 ** len(self.features)
        height, width = (-(-size // stride) * stride for size in self.image_shape[:2])
        return height, width


class MaxPoolEncoder(nn.Module):
    """Convolution, relu and 2x2 max-pooling, once for each entry of `features`."""

    inputs: int
    features: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        inputs = self.inputs
        for i, outputs in enumerate(self.features):
            x = max_pool(relu(Conv(inputs, outputs, self.dtype, name=f"conv_{i}")(x)))
            inputs = outputs
        return x


class MaxPoolDecoder(nn.Module):
    """Convolutions, each followed (or replaced, if transposed) by an up-sampling by 2."""

    outputs: int
    features: tuple[int, ...]
    upsampling: Literal["nearest", "transposed"]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        inputs, levels = self.features[-1], len(self.features)
        for i, outputs in enumerate(reversed(self.features)):
            if self.upsampling == "transposed":
                name = f"conv_transpose_{i}"
                x = relu(ConvTranspose(inputs, outputs, self.dtype, stride=2, name=name)(x))
            else:
                # The published network brings 32 back to 28 by one convolution without padding.
                padding = "VALID" if levels > 2 and i == levels - 1 else "SAME"
                layer = Conv(inputs, outputs, self.dtype, padding=padding, name=f"conv_{i}")
                x = upsample(relu(layer(x)))
            inputs = outputs
        return Conv(inputs, self.outputs, self.dtype, name="output")(x)


class MaxPoolAutoencoder(Autoencoder):
    """`maxpool`: 3x3 convolutions with max-pooling, to a small image as the latent.

    Fields:
      features: channels at each level; (16, 8, 8) and (32, 32) are the two published sizes.
      upsampling: "nearest" neighbour after a convolution (published with 16-8-8), or
        "transposed" convolutions (published with 32-32; 28,353 parameters).
    """

    features: tuple[int, ...] = (16, 8, 8)
    upsampling: Literal["nearest", "transposed"] = "nearest"

    def setup(self) -> None:
        features = tuple(self.features)
        self.encoder = MaxPoolEncoder(self.image_shape[2], features, self.dtype)
        self.decoder = MaxPoolDecoder(self._outputs, features, self.upsampling, self.dtype)

    @property
    def padded(self) -> tuple[int, int]:
        # Of n levels, the unpadded convolution takes 2 off before the last doubling: 4 in all, so
        # a side of 2**n m - 4 comes back as it went in (the pools round up).
        stride = 2 ** len(self.features)
        short = 4 if self.upsampling == "nearest" and len(self.features) > 2 else 0
        height, width = (-(-(s + short) // stride) * stride - short for s in self.image_shape[:2])
        return height, width


class DenseStack(nn.Module):
    """Dense layers with relu between them."""

    widths: tuple[int, ...]
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Float[Array, "batch *inputs"]) -> Float[Array, "batch outputs"]:
        for i, (inputs, outputs) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            x = Dense(inputs, outputs, self.dtype, name=f"dense_{i}")(x, rectify=i > 0)
        return x


class DenseAutoencoder(Autoencoder):
    """`dense`: the image flattened to a vector, the baseline that shows what flattening loses.

    Fields:
      features: widths of the hidden layers between the image and the latent vector.
      latent_dim: length of the latent vector.
    """

    features: tuple[int, ...] = (128,)
    latent_dim: int = 16

    def setup(self) -> None:
        height, width, channels = self.image_shape
        widths = (height * width * channels, *self.features, self.latent_dim)
        self.encoder = DenseStack(widths, self.dtype)
        widths = (self.latent_dim, *reversed(self.features), height * width * self._outputs)
        self.decoder = DenseStack(widths, self.dtype)


class ResidualConv(nn.Module):
    """`x + conv(relu(x))`, 3x3: nothing of the sum is lost to a relu."""

    features: int
    dtype: Dtype

    @nn.compact
    def __call__(self, x: Images) -> Images:
        return add(x, Conv(self.features, self.features, self.dtype, name="conv")(x, rectify=True))


class UNet(Denoiser):
    """`unet`: no bottleneck, for whoever wants clean images and no latent vector.

    After Ronneberger, Fischer and Brox, "U-Net" (2015), made cheap: a thin stem at full size, most
    of the work below it, skips that add instead of concatenating, and at the smallest size a dense
    bridge over the whole image, which tells every pixel what digit it is part of. Relus stand
    before the convolutions and not behind the sums, so that what comes into a level reaches its end
    unchanged (He, Zhang, Ren and Sun, "Identity mappings in deep residual networks", 2016).

    Fields:
      features: channels at full size, and after each halving of it.
      bridge: width of the dense bridge; 0 for none.
      bridge_channels: channels of the image that goes into the bridge.
    """

    features: tuple[int, ...] = (24, 48, 96)
    bridge: int = 384
    bridge_channels: int = 16

    @nn.compact
    def restore(self, images: Images) -> Images:
        first, *deeper = self.features
        x = Conv(self.image_shape[2], first, self.dtype, name="stem")(images)
        skips, inputs = [], first
        for i, outputs in enumerate(deeper):
            skips.append(x)
            x = Conv(inputs, outputs, self.dtype, stride=2, name=f"down_{i}")(x, rectify=True)
            x = ResidualConv(outputs, self.dtype, name=f"encode_{i}")(x)
            inputs = outputs
        if self.bridge:
            x = add(x, self._bridge(x))
        for i, outputs in reversed(list(enumerate(self.features[:-1]))):
            x = ResidualConv(inputs, self.dtype, name=f"decode_{i}")(x)
            up = ConvTranspose(inputs, outputs, self.dtype, stride=2, name=f"up_{i}")
            x = add(up(x, rectify=True), skips[i])
            inputs = outputs
        x = Conv(inputs, inputs, self.dtype, name="last")(x, rectify=True)
        return Conv(inputs, self._outputs, self.dtype, name="output")(x, rectify=True)

    def _bridge(self, x: Images) -> Images:
        """What the whole of a small image says about each of its pixels."""
        channels, thin, one = x.shape[-1], self.bridge_channels, (1, 1)
        narrow = Conv(channels, thin, self.dtype, one, name="bridge_in")(x)
        size = prod(narrow.shape[1:])
        hidden = Dense(size, self.bridge, self.dtype, name="bridge_hidden")(narrow, rectify=True)
        wide = Dense(self.bridge, size, self.dtype, name="bridge_wide")(hidden, rectify=True)
        return Conv(thin, channels, self.dtype, one, name="bridge_out")(wide.reshape(narrow.shape))

    @property
    def padded(self) -> tuple[int, int]:
        stride = 2 ** (len(self.features) - 1)
        height, width = (-(-size // stride) * stride for size in self.image_shape[:2])
        return height, width


# What stands between convolutions, laid out as they are.


def relu(x: Images) -> Images:
    """What is negative becomes 0."""
    return across(nn.relu, x)


def add(x: Images, *others: Images) -> Images:
    """A sum of images in the dtype of the first; axes of length 1 broadcast."""
    return across(precise_sum, x, *others)


def max_pool(x: Images) -> Images:
    """2x2 max-pooling with stride 2, rounding up, of values that are not negative.

    Of equal values the first receives the gradient, as in TensorFlow.
    """

    def pool(x: Array) -> Array:
        first, height, width, last = x.shape
        # What is padded with is never above what is at least 0.
        x = jnp.pad(x, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
        x = x.reshape(first, x.shape[1] // 2, 2, x.shape[2] // 2, 2, last)
        best, *others = (x[:, :, i, :, j] for i in (0, 1) for j in (0, 1))
        for other in others:
            best = jnp.where((other > best) | jnp.isnan(other), other, best)
        return best

    return across(pool, x)


def upsample(x: Images) -> Images:
    """Doubles height and width by repeating every pixel (nearest neighbour)."""

    def repeat(x: Array) -> Array:
        first, height, width, last = x.shape
        x = jnp.broadcast_to(x[:, :, None, :, None], (first, height, 2, width, 2, last))
        return x.reshape(first, 2 * height, 2 * width, last)

    return across(repeat, x)


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
