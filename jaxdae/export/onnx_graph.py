"""The layers of `jaxdae.model` as nodes of an ONNX graph.

ONNX's convolutions take channels first. Tensors are transposed only where images come in, go out,
or become vectors.
"""

from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from jax import lax

from jaxdae import pretrained
from jaxdae.export.parts import to_float32
from jaxdae.kernels import ConvShape, transpose_padding
from jaxdae.model import Denoiser


class Tensor(NamedTuple):
    """An input or a result in an ONNX graph.

    Fields:
      name: its name in the graph.
      shape: (height, width, channels), or (features,), without the batch. In a network of any size,
        height and width stand for all sizes with the same remainders.
      channels_first: True for images with channels first.
    """

    name: str
    shape: tuple[int, ...]
    channels_first: bool = False


class Graph:
    """An ONNX graph under construction.

    Args:
      params: the network's parameters. A layer finds its own by their path.

    Fields:
      nodes: in the order of computation.
      constants: name to array.
    """

    def __init__(self, params: Any) -> None:
        self.params = pretrained.flat(to_float32(params))
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}

    def node(
        self, op: str, x: Tensor, *others: str, to: tuple[int, ...], **attributes: Any
    ) -> Tensor:
        """Adds a node. Its result has the shape `to` and the layout of `x`."""
        from onnx import helper

        name = f"{op}_{len(self.nodes)}"
        inputs = [x.name, *others]
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return Tensor(name, to, x.channels_first)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant, and returns its name."""
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def numbers(self, *values: int) -> str:
        """Adds a vector of integers, and returns its name."""
        return self.constant("_".join(["numbers", *map(str, values)]), np.array(values, np.int64))

    def layout(self, x: Tensor, *, channels_first: bool) -> Tensor:
        """Transposes images to a layout; vectors stay as they are."""
        if x.channels_first == channels_first or len(x.shape) == 1:
            return x
        order = (0, 3, 1, 2) if channels_first else (0, 2, 3, 1)
        transposed = self.node("Transpose", x, to=x.shape, perm=order)
        return transposed._replace(channels_first=channels_first)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """`x.reshape(batch, *shape)`, channels last."""
        x = self.layout(x, channels_first=False)
        return self.node("Reshape", x, self.numbers(0, *shape), to=shape)  # 0 keeps the batch

    def pad(self, x: Tensor, model: Denoiser) -> Tensor:
        """Images, channels last, padded by reflection as `Denoiser` pads them."""
        for axis, side in ((1, x.shape[0]), (2, x.shape[1])):
            padded = model.padded_side(side)
            if model.image_size is None:
                places = self._reflected(x.name, axis, model)
            elif padded == side:
                continue
            else:
                mode: Literal["reflect", "edge"] = "reflect" if side > 1 else "edge"
                rows = np.pad(np.arange(side), (0, padded - side), mode=mode)
                places = self.constant(f"rows_{axis}", rows)
            to = (*x.shape[: axis - 1], padded, *x.shape[axis:])
            x = self.node("Gather", x, places, to=to, axis=axis)
        return x

    def _reflected(self, images: str, axis: int, model: Denoiser) -> str:
        """The rows (or columns) of padded images, for a side that is known at run time only."""
        sides = [model.padded_side(side) for side in range(1, 65)]
        multiple = max(b - a for a, b in pairwise(sides))
        lost = -sides[-1] % multiple  # padded sides are a multiple, less this
        zero, one, two = (self.scalar(number) for number in (0, 1, 2))
        side = self.compute("Gather", self.compute("Shape", images), self.scalar(axis))
        missing = self.compute("Neg", self.compute("Add", side, self.scalar(lost)))
        missing = self.compute("Mod", missing, self.scalar(multiple))
        places = self.compute("Range", zero, self.compute("Add", side, missing), one)
        period = self.compute("Mul", two, self.compute("Sub", side, one))
        period = self.compute("Max", period, one)
        places = self.compute("Mod", places, period)
        return self.compute("Min", places, self.compute("Sub", period, places))

    def crop(self, x: Tensor, images: Tensor) -> Tensor:
        """Images, in either layout, cropped to the size of others, channels last."""
        size = self.compute("Slice", self.compute("Shape", images.name), *map(self.numbers, (1, 3)))
        axes = self.numbers(*((2, 3) if x.channels_first else (1, 2)))
        to = (*images.shape[:2], x.shape[2])
        return self.node("Slice", x, self.numbers(0, 0), size, axes, to=to)

    def scalar(self, number: int) -> str:
        """Adds an integer, and returns its name."""
        return self.constant(f"number_{number}", np.array(number, np.int64))

    def compute(self, op: str, *inputs: str) -> str:
        """Adds a node that computes with sizes, and returns its name."""
        return self.node(op, Tensor(inputs[0], ()), *inputs[1:], to=()).name

    def layer(self, path: str, kernel: np.ndarray) -> list[str]:
        """Adds a layer's kernel, in ONNX's layout, and its bias if any; returns their names."""
        names = [self.constant(f"{path}/kernel", kernel)]
        if f"{path}/bias" in self.params:
            names.append(self.constant(f"{path}/bias", self.params[f"{path}/bias"]))
        return names

    def dense(self, x: Tensor, path: str) -> Tensor:
        """`jaxdae.model.Dense`, on vectors."""
        kernel = self.params[f"{path}/kernel"]
        return self.node("Gemm", x, *self.layer(path, kernel), to=kernel.shape[1:])

    def conv(self, x: Tensor, path: str, *, stride: int = 1, padding: str = "SAME") -> Tensor:
        """`jaxdae.model.Conv`."""
        kernel = self.params[f"{path}/kernel"]  # HWIO; ONNX has OIHW
        size, window = x.shape[:2], kernel.shape[:2]
        pads = lax.padtype_to_pads(size, window, (stride, stride), padding)
        return self.node(
            "Conv",
            self.layout(x, channels_first=True),
            *self.layer(path, kernel.transpose(3, 2, 0, 1)),
            to=(*ConvShape(size, window, stride, tuple(pads)).y_size, kernel.shape[3]),
            kernel_shape=window,
            strides=(stride, stride),
            pads=[amount for side in zip(*pads, strict=True) for amount in side],
        )

    def conv_transpose(self, x: Tensor, path: str, *, stride: int) -> Tensor:
        """`jaxdae.model.ConvTranspose`."""
        kernel = self.params[f"{path}/kernel"]  # HWIO; ONNX has it rotated by 180 degrees, IOHW
        window = kernel.shape[:2]
        # lax pads the dilated input by `low` in front; ONNX crops its output by k - 1 - low there,
        # and likewise at the end. A kernel smaller than the stride leaves pixels to add there.
        cuts = [
            (k - 1 - low, k - 1 - high)
            for k, (low, high) in zip(window, transpose_padding(kernel.shape, stride), strict=True)
        ]
        return self.node(
            "ConvTranspose",
            self.layout(x, channels_first=True),
            *self.layer(path, kernel[::-1, ::-1].transpose(2, 3, 0, 1)),
            to=(x.shape[0] * stride, x.shape[1] * stride, kernel.shape[3]),
            kernel_shape=window,
            strides=(stride, stride),
            pads=[max(0, cut) for side in zip(*cuts, strict=True) for cut in side],
            output_padding=[max(0, -end) for _, end in cuts],
        )

    def relu(self, x: Tensor) -> Tensor:
        return self.node("Relu", x, to=x.shape)

    def sigmoid(self, x: Tensor) -> Tensor:
        return self.node("Sigmoid", x, to=x.shape)

    def add(self, x: Tensor, other: Tensor) -> Tensor:
        return self.node(
            "Add", x, self.layout(other, channels_first=x.channels_first).name, to=x.shape
        )

    def subtract(self, x: Tensor, other: Tensor) -> Tensor:
        return self.node(
            "Sub", x, self.layout(other, channels_first=x.channels_first).name, to=x.shape
        )

    def absolute(self, x: Tensor) -> Tensor:
        return self.node("Abs", x, to=x.shape)

    def append_level(self, x: Tensor, level: str, estimate: Tensor | None = None) -> Tensor:
        """Images, channels last, with one more channel: each image's number, of a vector.

        Args:
          estimate: the channel for numbers below 0, if any.
        """
        height, width, channels = x.shape
        size = self.compute("Slice", self.compute("Shape", x.name), *map(self.numbers, (0, 3)))
        size = self.node("Concat", Tensor(size, ()), self.numbers(1), to=(), axis=0).name
        level = self.compute("Reshape", level, self.numbers(-1, 1, 1, 1))
        if estimate is not None:
            zero = self.constant("no_noise", np.zeros((), np.float32))
            unknown = self.compute("Less", level, zero)
            level = self.compute("Where", unknown, estimate.name, level)
        level = self.compute("Expand", level, size)
        return self.node("Concat", x, level, to=(height, width, channels + 1), axis=3)

    def pixel_unshuffle(self, x: Tensor) -> Tensor:
        """`jaxdae.model.layers.pixel_unshuffle`."""
        height, width, channels = x.shape
        x = self.layout(x, channels_first=True)
        return self.node("SpaceToDepth", x, to=(height // 2, width // 2, 4 * channels), blocksize=2)

    def pixel_shuffle(self, x: Tensor) -> Tensor:
        """`jaxdae.model.layers.pixel_shuffle`."""
        height, width, channels = x.shape
        x = self.layout(x, channels_first=True)
        return self.node("DepthToSpace", x, to=(2 * height, 2 * width, channels // 4), blocksize=2)

    def max_pool(self, x: Tensor) -> Tensor:
        """`jaxdae.model.max_pool`."""
        height, width, channels = x.shape
        return self.node(
            "MaxPool",
            self.layout(x, channels_first=True),
            to=(-(-height // 2), -(-width // 2), channels),
            kernel_shape=(2, 2),
            strides=(2, 2),
            pads=(0, 0, height % 2, width % 2),
        )

    def upsample(self, x: Tensor) -> Tensor:
        """`jaxdae.model.upsample`."""
        height, width, channels = x.shape
        return self.node(
            "Resize",
            self.layout(x, channels_first=True),
            "",
            self.constant("scales", np.array([1, 1, 2, 2], np.float32)),
            to=(2 * height, 2 * width, channels),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
