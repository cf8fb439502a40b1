"""What the tests of `denoise` and of the page share: files, the command, and small networks."""

import shutil
from pathlib import Path

import jax
import numpy as np
from PIL import Image

from experiments import denoise
from jaxdae import pretrained
from jaxdae.model import PhotoDenoiser


def save(path, pixels, **options):
    """Writes an image file, and its folder; returns its path."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image)


def command(*words):
    """Runs it here; the status."""
    return denoise.main([*map(str, words), "--no-progress"])


def shipped_networks(folder, gain):
    """The networks that come with the package, with small random ones for photographs.

    Args:
      gain: multiplies the last layer, which is small in a fresh network.
    """
    for path in pretrained.FOLDER.glob("digit*"):
        shutil.copy(path, folder)
    for name, channels in (("photo", 3), ("photo-gray", 1)):
        model = PhotoDenoiser(channels, features=(4, 4), blocks=1, level_features=(3,))
        params = jax.jit(model.init)(jax.random.key(channels), model.example)["params"]
        params = {**params, "output": {"kernel": gain * params["output"]["kernel"]}}
        about = {"about": f"Removes noise from {channels} channels. And more."}
        pretrained.save(name, model, jax.tree.map(np.asarray, params), about, folder)
    return folder
