"""The networks of `jaxdae.model` as ONNX files.

Each architecture is built a second time, with ONNX's operators. The tests compare the two.
"""

import json
from collections.abc import Callable, Mapping
from math import prod
from typing import Any

import numpy as np

from jaxdae import __version__
from jaxdae.errors import InputError
from jaxdae.export.onnx_graph import Graph, Tensor
from jaxdae.export.parts import CARD, Part, input_shape, need
from jaxdae.model import (
    Denoiser,
    DenoisingAutoencoder,
    DenseAutoencoder,
    MaxPoolAutoencoder,
    PhotoDenoiser,
    UNet,
)

IMAGES = "images"  # the input
SIGMA = "sigma"  # that of a network that takes a noise level
OPSET, IR = 17, 8  # read by onnxruntime 1.12, of 2022, and everything since


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


def _estimate(graph: Graph, model: PhotoDenoiser, images: Tensor) -> Tensor:
    """The noise level that the network estimates at each pixel, padded like the images."""
    x = graph.pixel_unshuffle(images)
    for i in range(len(model.level_features)):
        x = graph.conv(graph.relu(x) if i else x, f"level/down_{i}", stride=2 if i else 1)
        x = graph.conv(graph.relu(x), f"level/conv_{i}")
    x = graph.absolute(graph.conv(graph.relu(x), "level/output"))
    for _ in model.level_features:
        x = graph.upsample(x)
    return graph.pad(
        graph.layout(graph.crop(x, Tensor(IMAGES, images.shape)), channels_first=False), model
    )


def _photo(graph: Graph, model: PhotoDenoiser, images: Tensor) -> Tensor:
    def stack(x: Tensor, name: str) -> Tensor:
        for i in range(model.blocks):
            hidden = graph.conv(x, f"{name}_{i}/conv_0")
            x = graph.add(x, graph.conv(graph.relu(hidden), f"{name}_{i}/conv_1"))
        return x

    estimate = _estimate(graph, model, images) if model.estimates else None
    x, skips = graph.pixel_unshuffle(graph.append_level(images, SIGMA, estimate)), []
    x = graph.conv(x, "stem")
    for i in range(len(model.features) - 1):
        x = stack(x, f"encode_{i}")
        skips.append(x)
        x = graph.conv(x, f"down_{i}", stride=2)
    x = stack(x, "middle")
    for i, skip in reversed(list(enumerate(skips))):
        x = stack(graph.add(graph.conv_transpose(x, f"up_{i}", stride=2), skip), f"decode_{i}")
    noise = graph.pixel_shuffle(graph.conv(x, "output"))
    if model.outputs == model.channels:
        return graph.subtract(images, noise)
    return graph.node("Neg", noise, to=noise.shape)


# The layers of each architecture between padding and cropping, in halves for autoencoders.
LAYERS: dict[type[Denoiser], dict[str, Callable[..., Tensor]]] = {
    DenoisingAutoencoder: {"encoder": _strided_encoder, "decoder": _strided_decoder},
    MaxPoolAutoencoder: {"encoder": _maxpool_encoder, "decoder": _maxpool_decoder},
    DenseAutoencoder: {"encoder": _dense_encoder, "decoder": _dense_decoder},
    UNet: {"whole": _unet},
    PhotoDenoiser: {"whole": _photo},
}


def to_onnx(model: Denoiser, params: Any, card: Mapping[str, Any], part: Part = "whole") -> bytes:
    """Serialises a network as ONNX.

    The whole network maps `images` to `restored`, the encoder `images` to `latent`, the decoder
    `latent` to `restored`. A network that takes a noise level has a second input, `sigma`, one
    number or one for each image. Without it, or below 0, the network estimates it, if it can;
    otherwise it is 0.

    Args:
      card: from `jaxdae.pretrained.card` or `describe`; it becomes the metadata "card", as JSON.
      part: the whole network, or one half of an autoencoder.

    Returns:
      The content of the file.

    Raises:
      InputError: the model has no such part, its architecture is not one of `LAYERS`, or onnx is
        not installed.
    """
    need("ONNX", "onnx")
    import onnx
    from onnx import helper, numpy_helper

    shape = input_shape(model, params, part)
    if type(model) not in LAYERS:
        raise InputError(f"a {type(model).__name__} has no form in ONNX here: write StableHLO")
    graph = Graph(params)
    entry = x = Tensor("latent" if part == "decoder" else IMAGES, shape)
    if part != "decoder":
        x = graph.pad(x, model)
    for name, layers in LAYERS[type(model)].items():
        if part in ("whole", name):
            x = layers(graph, model, x)
    if part == "whole" and (model.image_size is None or x.shape[:2] != entry.shape[:2]):
        x = graph.crop(x, entry)
    elif part == "decoder" and model.image_size is not None:
        height, width = model.image_size
        axes = graph.numbers(*((2, 3) if x.channels_first else (1, 2)))
        box = (graph.numbers(0, 0), graph.numbers(height, width), axes)
        x = graph.node("Slice", x, *box, to=(height, width, x.shape[2]))
    if part != "encoder" and model.output == "sigmoid":
        x = graph.sigmoid(x)
    x = graph.layout(x, channels_first=False)._replace(
        name="latent" if part == "encoder" else "restored"
    )
    graph.nodes[-1].output[0] = x.name

    def described(side: Tensor) -> Any:
        shape: list[str | int | None] = ["batch", *side.shape]
        if model.image_size is None:
            whole = part == "whole" or side.name == IMAGES
            shape[1:3] = ("height", "width") if whole else (f"{side.name}_{n}" for n in "hw")
        return helper.make_tensor_value_info(side.name, onnx.TensorProto.FLOAT, shape)

    inputs, outputs = [described(entry)], [described(x)]
    if isinstance(model, PhotoDenoiser):
        inputs.append(helper.make_tensor_value_info(SIGMA, onnx.TensorProto.FLOAT, ["levels"]))
        unknown = -1 if model.estimates else 0
        graph.constants[SIGMA] = np.full(1, unknown, np.float32)  # an input's default value
    constants = [numpy_helper.from_array(value, name) for name, value in graph.constants.items()]
    model_proto = helper.make_model(
        helper.make_graph(graph.nodes, "jaxdae", inputs, outputs, constants),
        producer_name="jaxdae",
        producer_version=__version__,
        doc_string=str(card.get("about", "")),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR,
    )
    helper.set_model_props(model_proto, {CARD: json.dumps(card, allow_nan=False)})
    onnx.checker.check_model(model_proto, full_check=True)  # infers and checks the shapes, too
    return model_proto.SerializeToString()
