"""Data sets from any source, as arrays of bytes.

    dataset = load("mnist")
    dataset.train.images        # uint8 [60000 28 28 1]
    dataset.test.labels         # int32 [10000], or None if the source has no labels

| name         | source                                                                           |
| ------------ | -------------------------------------------------------------------------------- |
| `mnist`      | the copy inside this package: no network, nothing to prepare                     |
| `idx:DIR`    | four files in MNIST's own format, plain or gzipped; labels are optional          |
| `npz:FILE`   | NumPy arrays: `x_train` and `x_test`, as in Keras's `mnist.npz`; or `images`     |
| `folder:DIR` | image files, in `train/` and `test/` or split by a hash; sub-folders are classes |
| `pairs:A,B`  | two such folders with files of the same names: A noisy, B clean                  |
| `tfds:NAME`  | a data set of TensorFlow Datasets with images of one size, such as `tfds:cifar10` |

All images of a data set have one shape. With `crop`, image files may have any sizes, and the data
set holds patches of them. Large folders of images are decoded into a file in the cache, and read
from there during training. Other arrays are read into memory, up to `MAX_BYTES` of
`jaxdae.image_io.numpy_stacks`. No memory is allocated for a size that a file only promises.
"""

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxdae.data.dataset import Dataset, Split
from jaxdae.data.idx import load_idx
from jaxdae.data.mnist import load_mnist
from jaxdae.data.npz import load_npz
from jaxdae.errors import InputError

__all__ = ["FORMS", "Dataset", "Split", "load"]

FORMS = "mnist, idx:DIR, npz:FILE, folder:DIR, pairs:NOISY_DIR,CLEAN_DIR or tfds:NAME"


def load(
    name: str, *, crop: int | None = None, gray: bool = False, cache_dir: Path | None = None
) -> Dataset:
    """Loads a data set by name: one of the forms in this module's table.

    The order of the images depends on the source alone.

    Args:
      crop: for `folder:` and `pairs:`, cut the images into square patches, `crop` pixels a side,
        at least 8. The images may have any sizes then.
      gray: for `folder:` and `pairs:`, make images in colour gray.
      cache_dir: where decoded images are kept, for `tfds:` and for large folders; None for
        `$XDG_CACHE_HOME/jaxdae`, or `~/.cache/jaxdae`.

    Raises:
      InputError: the data set cannot be loaded.
    """
    kind, colon, place = name.partition(":")
    if crop is not None and kind not in ("folder", "pairs"):
        raise InputError(
            f"--crop {crop} makes patches of image files, and {name!r} has none: leave it out, or "
            "give folder:DIR"
        )
    if gray and kind not in ("folder", "pairs"):
        raise InputError(
            f"--gray makes image files gray, and {name!r} has none: leave it out, or give "
            "folder:DIR"
        )
    if name == "mnist":
        return load_mnist()
    if kind == "pairs" and place.strip():
        from jaxdae.data.pairs import load_pairs

        return load_pairs(name, place, crop, cache_dir, gray)
    loaders: dict[str, Callable[[str, Path], Dataset]] = {
        "idx": load_idx,
        "npz": load_npz,
        "folder": partial(_load_folder, crop=crop, cache_dir=cache_dir, gray=gray),
        "tfds": partial(_load_tfds, cache_dir=cache_dir),
    }
    if kind in loaders and place.strip():
        return loaders[kind](name, Path(os.path.expanduser(place)))
    if os.path.isdir(name):
        meant = f"folder:{name}"
    elif os.path.isfile(name) and name.endswith(".npz"):
        meant = f"npz:{name}"
    else:
        kinds = (*loaders, "pairs")
        known = {kind + ":": f"{kind}:{place.strip() or '...'}" for kind in kinds} | {
            "mnist": "mnist"
        }
        known |= {name: f"tfds:{name}" for name in ("fashion_mnist", "cifar10", "cifar100")}
        close = difflib.get_close_matches((kind + colon).lower(), known, n=1)
        meant = known[close[0]] if close else ""
    hint = f" (did you mean {meant!r}?)" if meant else ""
    raise InputError(f"{name!r} is no data set: give {FORMS}{hint}")


def _load_folder(
    name: str, root: Path, crop: int | None, cache_dir: Path | None, gray: bool
) -> Dataset:
    from jaxdae.data.folder import load_folder  # imports jax, for random patches

    return load_folder(name, root, crop, cache_dir, gray)


def _load_tfds(name: str, place: Path, cache_dir: Path | None) -> Dataset:
    from jaxdae.data.tfds import load_tfds  # imports what a download needs

    return load_tfds(name, cache_dir)
