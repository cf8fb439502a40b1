"""Trained networks for other programs: StableHLO, ONNX and safetensors files, as bytes.

    model, params = pretrained.load("digits-blind")
    card = pretrained.card("digits-blind")
    Path("digits-blind.stablehlo").write_bytes(to_stablehlo(model, params))
    Path("digits-blind.onnx").write_bytes(to_onnx(model, params, card))
    Path("digits-blind.safetensors").write_bytes(to_safetensors(params, card))

StableHLO and ONNX files hold the function with its parameters: float32 images, (batch, height,
width, channels), to float32 images, (batch, height, width, out_channels); or one half of an
autoencoder, to or from its latent. The batch may have any size, and so may the images, if the
network takes any size. Both compute in float32. safetensors files hold the parameters and the
model card.

`to_onnx` builds the networks of `jaxdae.model` with ONNX's operators; tests compare the two. ONNX's
convolutions take channels first. Tensors are transposed only where images come in, go out, or
become vectors.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict
from jax import lax

from jaxdae import __version__, kernels, pretrained
from jaxdae.errors import InputError
from jaxdae.kernels import ConvShape, transpose_padding
from jaxdae.model import (
    Autoencoder,
    Denoiser,
    DenoisingAutoencoder,
    DenseAutoencoder,
    MaxPoolAutoencoder,
    UNet,
)

Part = Literal["whole", "encoder", "decoder"]
METHODS = {"whole": "__call__", "encoder": "encode", "decoder": "decode"}
PLATFORMS = ("cpu", "cuda", "tpu")
OPSET, IR = 17, 8  # read by onnxruntime 1.12, of 2022, and everything since
CARD = "card"  # the key of the model card, as JSON, in the metadata of a file


def need(what: str, *packages: str) -> None:
    """Checks that optional packages are installed.

    Raises:
      InputError: some are missing.
    """
    if missing := [package for package in packages if find_spec(package) is None]:
        raise InputError(f"{what} needs {', '.join(missing)}: pip install {' '.join(missing)}")


def function(model: Denoiser, params: Any, part: Part = "whole") -> Callable[[Any], Any]:
    """The function that is exported, in JAX.

    Raises:
      InputError: the model has no such part.
    """
    if part not in METHODS:
        raise InputError(f"there is no part {part!r}: choose one of {', '.join(METHODS)}")
    if part != "whole" and not isinstance(model, Autoencoder):
        raise InputError(f"a {type(model).__name__} has no latent and so no {part}: take it whole")
    model = model.clone(dtype=None)
    return partial(model.apply, {"params": _float32(params)}, method=METHODS[part])


def _float32(params: Any) -> Any:
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)


def input_shape(
    model: Denoiser,
    params: Any,
    part: Part = "whole",
    image_size: tuple[int, int] | None = None,
) -> tuple[int, ...]:
    """The shape of one input image, or of one input latent if `part` is the decoder.

    Args:
      image_size: the (height, width), for a network of any size; that of its example if not given.

    Raises:
      InputError: the model has no such part.
    """
    function(model, params, part)  # raises if there is none
    size = model.image_size or image_size or model.example.shape[1:3]
    shape = (*size, model.channels)
    if part != "decoder":
        return shape
    image = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    return jax.eval_shape(function(model, params, "encoder"), image).shape[1:]


def symbolic_shape(model: Denoiser, params: Any, part: Part = "whole") -> tuple[str, ...]:
    """The shape of a batch of inputs, in which the sizes that may differ have names."""
    shape = input_shape(model, params, part)
    names = ("height", "width") if model.image_size is None else ()
    return ("batch", *names, *map(str, shape[len(names) :]))


def to_stablehlo(
    model: Denoiser,
    params: Any,
    part: Part = "whole",
    platforms: Sequence[str] = PLATFORMS,
) -> bytes:
    """The function as `jax.export` serialises it: `jax.export.deserialize(bytearray).call(x)`.

    It needs jax and flatbuffers to run, but neither flax nor jaxdae. jax guarantees to read it for
    six months of newer versions.

    Args:
      platforms: where it should run.

    Raises:
      InputError: the model has no such part, or flatbuffers is not installed.
    """
    need("StableHLO", "flatbuffers")
    from jax import export

    call = jax.jit(function(model, params, part))
    shape = export.symbolic_shape(", ".join(symbolic_shape(model, params, part)))
    argument = jax.ShapeDtypeStruct(shape, jnp.float32)
    option = "jax_traceback_in_locations_limit"
    before = getattr(jax.config, option)
    try:
        jax.config.update(option, 0)  # no paths of this machine in the file
        with kernels.disabled():  # the C++ kernels are not there where it runs
            return bytes(export.export(call, platforms=platforms)(argument).serialize())
    finally:
        jax.config.update(option, before)


def to_safetensors(params: Any, card: Mapping[str, Any]) -> bytes:
    """The parameters, one array for each path in the tree, and the model card as JSON.

    Args:
      card: from `jaxdae.pretrained.card` or `describe`.

    Raises:
      InputError: safetensors is not installed.
    """
    need("a safetensors file", "safetensors")
    from safetensors.numpy import save

    arrays = {path: np.ascontiguousarray(leaf) for path, leaf in pretrained.flat(params).items()}
    return save(arrays, {CARD: json.dumps(card, allow_nan=False)})


def from_safetensors(path: Path) -> tuple[Any, Any, dict[str, Any]]:
    """Reads a network, its parameters (float32 NumPy arrays) and its card.

    Raises:
      InputError: safetensors is not installed, or the file is damaged or of another program.
    """
    need("a safetensors file", "safetensors")
    from safetensors import safe_open

    try:
        with safe_open(path, "numpy") as file:
            card = json.loads((file.metadata() or {})[CARD])
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        params = unflatten_dict(arrays, sep="/")
        return pretrained.build(card, params), params, card
    except Exception as error:  # damaged bytes raise errors of many types
        raise InputError(
            f"{path} is damaged, or is no network of jaxdae ({error}): export it again"
        ) from None


class Tensor(NamedTuple):
    """An input or a result in an ONNX graph.

    Fields:
      name: its name in the graph.
      shape: (height, width, channels), or (features,), without the batch. In a network of any size,
        height and width stand for all sizes with the same remainders.
      first: True for images with channels first.
    """

    name: str
    shape: tuple[int, ...]
    first: bool = False


class Graph:
    """An ONNX graph under construction; a layer finds its parameters by their path."""

    def __init__(self, params: Any) -> None:
        self.params = pretrained.flat(_float32(params))
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
        return Tensor(name, to, x.first)

    def constant(self, name: str, value: np.ndarray) -> str:
        """Adds a constant, and returns its name."""
        self.constants[name] = np.ascontiguousarray(value)
        return name

    def numbers(self, *values: int) -> str:
        """Adds a vector of integers."""
        return self.constant("_".join(["numbers", *map(str, values)]), np.array(values, np.int64))

    def lay(self, x: Tensor, *, first: bool) -> Tensor:
        """Images with their channels first, or last; vectors as they are."""
        if x.first == first or len(x.shape) == 1:
            return x
        order = (0, 3, 1, 2) if first else (0, 2, 3, 1)
        return self.node("Transpose", x, to=x.shape, perm=order)._replace(first=first)

    def reshape(self, x: Tensor, *shape: int) -> Tensor:
        """Equals `x.reshape(batch, *shape)`, channels last."""
        # 0 keeps the batch axis.
        return self.node("Reshape", self.lay(x, first=False), self.numbers(0, *shape), to=shape)

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
        axes = self.numbers(*((2, 3) if x.first else (1, 2)))
        to = (*images.shape[:2], x.shape[2])
        return self.node("Slice", x, self.numbers(0, 0), size, axes, to=to)

    def scalar(self, number: int) -> str:
        """Adds an integer."""
        return self.constant(f"number_{number}", np.array(number, np.int64))

    def compute(self, op: str, *inputs: str) -> str:
        """Adds a node that computes with sizes, and returns its name."""
        return self.node(op, Tensor(inputs[0], ()), *inputs[1:], to=()).name

    def layer(self, path: str, kernel: np.ndarray) -> tuple[str, str]:
        """Adds a layer's kernel, in ONNX's layout, and its bias."""
        bias = self.constant(f"{path}/bias", self.params[f"{path}/bias"])
        return self.constant(f"{path}/kernel", kernel), bias

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
            self.lay(x, first=True),
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
            self.lay(x, first=True),
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
        return self.node("Add", x, self.lay(other, first=x.first).name, to=x.shape)

    def max_pool(self, x: Tensor) -> Tensor:
        """`jaxdae.model.max_pool`."""
        height, width, channels = x.shape
        return self.node(
            "MaxPool",
            self.lay(x, first=True),
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
            self.lay(x, first=True),
            "",
            self.constant("scales", np.array([1, 1, 2, 2], np.float32)),
            to=(2 * height, 2 * width, channels),
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )


def _strided_encoder(graph: Graph, model: DenoisingAutoencoder, x: Tensor) -> Tensor:
    for i in range(len(model.features)):
        x = graph.relu(graph.conv(x, f"encoder/conv_{i}", stride=2))
    return graph.dense(graph.reshape(x, prod(x.shape)), "encoder/latent")


def _strided_decoder(graph: Graph, model: DenoisingAutoencoder, x: Tensor) -> Tensor:
    stride = 2 ** len(model.features)
    height, width = (model.padded_side(side) // stride for side in model.image_size)
    x = graph.reshape(graph.dense(x, "decoder/dense"), height, width, model.features[-1])
    for i in range(len(model.features)):
        x = graph.relu(graph.conv_transpose(x, f"decoder/conv_transpose_{i}", stride=2))
    return graph.conv_transpose(x, "decoder/output", stride=1)


def _maxpool_encoder(graph: Graph, model: MaxPoolAutoencoder, x: Tensor) -> Tensor:
    for i in range(len(model.features)):
        x = graph.max_pool(graph.relu(graph.conv(x, f"encoder/conv_{i}")))
    return x


def _maxpool_decoder(graph: Graph, model: MaxPoolAutoencoder, x: Tensor) -> Tensor:
    levels = len(model.features)
    for i in range(levels):
        if model.upsampling == "transposed":
            x = graph.relu(graph.conv_transpose(x, f"decoder/conv_transpose_{i}", stride=2))
        else:
            padding = "VALID" if levels > 2 and i == levels - 1 else "SAME"
            x = graph.upsample(graph.relu(graph.conv(x, f"decoder/conv_{i}", padding=padding)))
    return graph.conv(x, "decoder/output")


def _dense_stack(graph: Graph, model: DenseAutoencoder, x: Tensor, half: str) -> Tensor:
    for i in range(len(model.features) + 1):
        x = graph.dense(graph.relu(x) if i else x, f"{half}/dense_{i}")
    return x


def _dense_encoder(graph: Graph, model: DenseAutoencoder, x: Tensor) -> Tensor:
    return _dense_stack(graph, model, graph.reshape(x, prod(x.shape)), "encoder")


def _dense_decoder(graph: Graph, model: DenseAutoencoder, x: Tensor) -> Tensor:
    x = _dense_stack(graph, model, x, "decoder")
    height, width = model.image_size
    return graph.reshape(x, height, width, x.shape[0] // (height * width))


def _unet(graph: Graph, model: UNet, x: Tensor) -> Tensor:
    def residual(x: Tensor, path: str) -> Tensor:
        return graph.add(x, graph.conv(graph.relu(x), f"{path}/conv"))

    x, skips = graph.conv(x, "stem"), []
    for i in range(len(model.features) - 1):
        skips.append(x)
        x = residual(graph.conv(graph.relu(x), f"down_{i}", stride=2), f"encode_{i}")
    if model.bridge:
        narrow = graph.relu(graph.conv(x, "bridge_in"))
        flat = graph.reshape(narrow, prod(narrow.shape))
        wide = graph.dense(graph.relu(graph.dense(flat, "bridge_hidden")), "bridge_wide")
        x = graph.add(x, graph.conv(graph.reshape(wide, *narrow.shape), "bridge_out"))
    for i, skip in reversed(list(enumerate(skips))):
        x = residual(x, f"decode_{i}")
        x = graph.add(graph.conv_transpose(graph.relu(x), f"up_{i}", stride=2), skip)
    return graph.conv(graph.relu(graph.conv(graph.relu(x), "last")), "output")


# The layers of each architecture between padding and cropping, in halves for autoencoders.
LAYERS: dict[type[Denoiser], dict[str, Callable[..., Tensor]]] = {
    DenoisingAutoencoder: {"encoder": _strided_encoder, "decoder": _strided_decoder},
    MaxPoolAutoencoder: {"encoder": _maxpool_encoder, "decoder": _maxpool_decoder},
    DenseAutoencoder: {"encoder": _dense_encoder, "decoder": _dense_decoder},
    UNet: {"whole": _unet},
}


def to_onnx(model: Denoiser, params: Any, card: Mapping[str, Any], part: Part = "whole") -> bytes:
    """An ONNX file: `images` to `restored`, or `images` to `latent`, or `latent` to `restored`.

    Args:
      card: from `jaxdae.pretrained.card` or `describe`; it becomes the metadata "card", as JSON.

    Raises:
      InputError: the model has no such part, or is none of `jaxdae.model`; onnx is not
        installed.
    """
    need("ONNX", "onnx")
    import onnx
    from onnx import helper, numpy_helper

    shape = input_shape(model, params, part)
    if type(model) not in LAYERS:
        raise InputError(f"a {type(model).__name__} has no form in ONNX here: write StableHLO")
    graph = Graph(params)
    given = x = Tensor("latent" if part == "decoder" else "images", shape)
    if part != "decoder":
        x = graph.pad(x, model)
    for name, layers in LAYERS[type(model)].items():
        if part in ("whole", name):
            x = layers(graph, model, x)
    if part == "whole" and (model.image_size is None or x.shape[:2] != given.shape[:2]):
        x = graph.crop(x, given)
    elif part == "decoder" and model.image_size is not None:
        height, width = model.image_size
        axes = graph.numbers(*((2, 3) if x.first else (1, 2)))
        box = (graph.numbers(0, 0), graph.numbers(height, width), axes)
        x = graph.node("Slice", x, *box, to=(height, width, x.shape[2]))
    if part != "encoder" and model.output == "sigmoid":
        x = graph.sigmoid(x)
    x = graph.lay(x, first=False)._replace(name="latent" if part == "encoder" else "restored")
    graph.nodes[-1].output[0] = x.name

    def described(side: Tensor) -> Any:
        shape: list[str | int | None] = ["batch", *side.shape]
        if model.image_size is None:
            whole = part == "whole" or side.name == "images"
            shape[1:3] = ("height", "width") if whole else (f"{side.name}_{n}" for n in "hw")
        return helper.make_tensor_value_info(side.name, onnx.TensorProto.FLOAT, shape)

    inputs, outputs = [described(given)], [described(x)]
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    made = helper.make_model(
        helper.make_graph(graph.nodes, "jaxdae", inputs, outputs, constants),
        producer_name="jaxdae",
        producer_version=__version__,
        doc_string=str(card.get("about", "")),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    helper.set_model_props(made, {CARD: json.dumps(card, allow_nan=False)})
    onnx.checker.check_model(made, full_check=True)  # infers and checks the shapes, too
    return made.SerializeToString()
