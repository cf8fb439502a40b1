"""Trained networks: those that come with the package, and files in the same format.

    model, params = jaxdae.pretrained.load("digits-blind")
    images = model.apply({"params": params}, noisy)      # in [0, 1]

A network is two files. `NAME.npz` holds the parameters, an array for each path in the tree, in
float32, or in float16 where rounding to it costs nothing that can be seen.
`NAME.json`, the model card, holds the architecture and its fields, the SHA-256 of the parameters,
and what a user wants to know: data, recipe, seed, command, results, limits.
"""

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxdae.errors import InputError
from jaxdae.files import replacing, tree_sha256
from jaxdae.model import ARCHITECTURES, DigitClassifier

FORMAT = 2  # of a card
FOLDER = Path(str(resources.files("jaxdae"))) / "weights"
MODELS: dict[str, type[nn.Module]] = {**ARCHITECTURES, "classifier": DigitClassifier}


def names() -> list[str]:
    """The names of the networks that come with the package, sorted."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def card(name: str, folder: Path = FOLDER) -> dict[str, Any]:
    """Reads the model card of a network.

    Args:
      name: one of `names()`, or of the networks in `folder`.
      folder: where the two files are.

    Raises:
      InputError: an unknown name, or a damaged card.
    """
    path = folder / f"{name}.json"
    if Path(name).name != name or not path.is_file():
        here = ", ".join(sorted(path.stem for path in folder.glob("*.json")))
        raise InputError(f"no pretrained network {name!r}: it is one of {here}")
    try:
        described = json.loads(path.read_text())
        if not isinstance(described, dict):
            raise ValueError("it must be a JSON object")
        return described
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged ({error}): {_mend(folder)}") from None


def load(name: str, folder: Path = FOLDER) -> tuple[nn.Module, Any]:
    """Loads a network: the module, and its parameters as NumPy arrays of float32.

    Args:
      name: one of `names()`, or of the networks in `folder`.
      folder: where the two files are.

    Raises:
      InputError: an unknown name, or damaged files.
    """
    described = card(name, folder)
    try:
        with np.load(folder / f"{name}.npz", allow_pickle=False) as file:
            arrays = {path: file[path] for path in file.files}
        arrays = {
            path: array.astype(np.float32) if array.dtype == np.float16 else array
            for path, array in arrays.items()
        }
        params = unflatten_dict(arrays, sep="/")
        return build(described, params), params
    except Exception as error:  # a damaged zip file raises exceptions of many types
        raise InputError(f"{folder / name}.npz is damaged ({error}): {_mend(folder)}") from None


def build(described: Mapping[str, Any], params: Any) -> nn.Module:
    """Builds the network that a card describes.

    Args:
      described: a model card.
      params: checked against the SHA-256 in the card.

    Raises:
      ValueError: the parameters do not have that SHA-256.
      KeyError, TypeError: the card lacks the architecture, or its fields are wrong.
    """
    if tree_sha256(params) != described["params_sha256"]:
        raise ValueError("its parameters do not have the SHA-256 of its card")
    fields = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in described["fields"].items()
    }
    if "format" not in described:
        fields = _first_format(described["architecture"], fields)
    return MODELS[described["architecture"]](**fields)


def _first_format(architecture: str, fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of cards without a format: all networks had an image shape, the U-Net a bridge."""
    height, width, channels = fields.pop("image_shape", (28, 28, 1))
    if architecture == "unet":
        fields = {"bridge": 384, **fields}
    if architecture != "maxpool" and fields.get("bridge", 1):
        fields["image_size"] = (height, width)
    return {"channels": channels, **fields}


def _mend(folder: Path) -> str:
    return "install jaxdae again" if folder == FOLDER else "restore it from a copy"


def flat(params: Any) -> dict[str, Any]:
    """Path in the tree, such as encoder/conv_0/kernel, to a NumPy array."""
    return {path: np.asarray(leaf) for path, leaf in flatten_dict(params, sep="/").items()}


def describe(name: str, model: nn.Module, params: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the model card of a network: `about`, and what `build` needs.

    The card leaves out the type that the network computes in: `build` gives one in float32.
    """
    kinds = {kind: key for key, kind in MODELS.items()}
    fields = {
        key: getattr(model, key)
        for key, field in type(model).__dataclass_fields__.items()
        if key not in ("parent", "name", "dtype") and getattr(model, key) != field.default
    }
    arrays = flat(params)
    return {
        "name": name,
        **about,
        "format": FORMAT,
        "architecture": kinds[type(model)],
        "fields": fields,
        "parameters": sum(leaf.size for leaf in arrays.values()),
        "params_sha256": tree_sha256(unflatten_dict(arrays, sep="/")),
    }


def save(
    name: str,
    model: nn.Module,
    params: Any,
    about: Mapping[str, Any],
    folder: Path = FOLDER,
    half: bool = False,
) -> None:
    """Writes the two files of a network.

    Args:
      about: what the card says beside the network itself: JSON values.
      folder: created if missing.
      half: round the parameters to float16: half the size.
    """
    arrays = flat(params)
    if half:
        arrays = {path: array.astype(np.float16) for path, array in arrays.items()}
        rounded = {path: array.astype(np.float32) for path, array in arrays.items()}
        params = unflatten_dict(rounded, sep="/")
    text = json.dumps(describe(name, model, params, about), indent=2, allow_nan=False) + "\n"
    # The card comes last: it holds the SHA-256 of the arrays.
    with (
        replacing(folder / f"{name}.json") as card_file,
        replacing(folder / f"{name}.npz") as arrays_file,
    ):
        card_file.write_text(text)
        np.savez_compressed(arrays_file, **arrays)
