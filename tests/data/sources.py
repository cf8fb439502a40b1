"""What the tests of data sets share: small files, and how a mistake is answered."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from jaxdae import data
from jaxdae.errors import InputError

# A run that takes a second.
QUICK = ["--recipe", "dense", "--features", "8", "--latent-dim", "4", "--no-figures", "--no-cache"]


def refused(name, *parts, **options):
    """load() refuses in one line that holds every one of `parts`."""
    with pytest.raises(InputError) as caught:
        data.load(name, **options)
    message = str(caught.value)
    assert "\n" not in message
    for part in parts:
        assert part in message, f"{part!r} is not in: {message}"
    return message


def pixels(n, h=4, w=5, *channels, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, h, w, *channels), np.uint8)


def npz(path, **arrays):
    np.savez(path, **arrays)
    return f"npz:{path}"


def picture(path, x, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(x).save(path, **options)
    return path


def mutations(content, seed, n):
    """Copies with bytes flipped, cut, doubled or overwritten by large numbers."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        x = bytearray(content)
        for _ in range(rng.integers(1, 4)):
            at, how = int(rng.integers(len(x) + 1)), rng.integers(5)
            if how == 0:
                x[at : at + 1] = bytes([rng.integers(256)])
            elif how == 1:
                x[at : at + 4] = b"\xff\xff\xff\xff"
            elif how == 2:
                del x[at : at + int(rng.integers(1, 30))]
            elif how == 3:
                x[at:at] = x[at : at + 20]
            else:
                at = min(at, 40)
                x[at : at + 1] = bytes([rng.integers(256)])
        yield bytes(x)


def survives(name):
    """Loads, or is refused in one line."""
    try:
        data.load(name)
        return 1
    except InputError as error:
        assert "\n" not in str(error)
        return 0


def write_images(
    folder: Path, count: int, shape: tuple[int, ...] = (9, 8), suffix: str = ".png"
) -> None:
    """Writes random images NNN.SUFFIX; the same number gives the same image."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, shape, np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:03}{suffix}")
