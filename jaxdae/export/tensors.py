"""The parameters and the card of a network as a safetensors file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import unflatten_dict

from jaxdae import pretrained
from jaxdae.errors import InputError
from jaxdae.export.parts import CARD, need


def to_safetensors(params: Any, card: Mapping[str, Any]) -> bytes:
    """Serialises parameters, one array for each path in the tree, and a model card as JSON.

    Args:
      card: from `jaxdae.pretrained.card` or `describe`.

    Returns:
      The content of the file.

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
