"""Every source of images behind one call, as two arrays of bytes.

    dataset = load("mnist")
    dataset.train.images        # uint8 [60000 28 28 1]
    dataset.test.labels         # int32 [10000], or None where a source has no labels

| name         | source                                                                        |
| ------------ | ----------------------------------------------------------------------------- |
| `mnist`      | the copy inside this package: no network, nothing to prepare                  |
| `idx:DIR`    | four files in MNIST's own format, plain or gzipped; the labels are optional   |
| `npz:FILE`   | NumPy arrays: `x_train` and `x_test` (as Keras's `mnist.npz`), or `images`    |
| `folder:DIR` | image files, in `train/` and `test/` or split here; sub-folders are classes   |
| `pairs:A,B`  | two such folders with files of the same names: noisy images, and clean ones   |
| `tfds:NAME`  | any TensorFlow Datasets data set of images of one size: `tfds:cifar10`        |

All images of a data set have one shape; of image files of any sizes, `crop` makes patches. An array
that is read whole into memory may not exceed `MAX_BYTES`, and no file is believed about its size
before its bytes are there; image files that would take more than half a gigabyte, decoded, lie in
a file in the cache, which is read as training goes. Whatever is wrong with a source is an
`InputError`.
"""

import difflib
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

from jaxdae.data.dataset import Dataset, Split
from jaxdae.data.idx import load_idx, load_mnist
from jaxdae.data.npz import load_npz
from jaxdae.errors import InputError

__all__ = ["FORMS", "Dataset", "Split", "load"]

FORMS = "mnist, idx:DIR, npz:FILE, folder:DIR, pairs:NOISY_DIR,CLEAN_DIR or tfds:NAME"


def load(name: str, *, crop: int | None = None, cache_dir: Path | None = None) -> Dataset:
    """The data set called `name`: one of the forms in this module's table.

    The order of the images is the source's, and the same everywhere.

    Args:
      crop: of `folder:` and `pairs:`, make patches of so many pixels' sides of images of any size.
      cache_dir: where decoded images are kept, of `tfds:` and of large folders: by default
        `$XDG_CACHE_HOME/jaxdae`, or `~/.cache/jaxdae`.

    Raises `InputError`, in one line, for whatever keeps the data from being loaded.
    """
    kind, colon, place = name.partition(":")
    if crop is not None and kind not in ("folder", "pairs"):
        raise InputError(
            f"--crop {crop} makes patches of image files, and {name!r} has none: leave it out, or "
            "give folder:DIR"
        )
    if name == "mnist":
        return load_mnist()
    if kind == "pairs" and place.strip():
        from jaxdae.data.folder import load_pairs

        return load_pairs(name, place, crop, cache_dir)
    readers: dict[str, Callable[[str, Path], Dataset]] = {
        "idx": load_idx,
        "npz": load_npz,
        "folder": partial(_load_folder, crop=crop, cache_dir=cache_dir),
        "tfds": partial(_load_tfds, cache_dir=cache_dir),
    }
    if kind in readers and place.strip():
        return readers[kind](name, Path(os.path.expanduser(place)))
    if os.path.isdir(name):
        meant = f"folder:{name}"
    elif os.path.isfile(name) and name.endswith(".npz"):
        meant = f"npz:{name}"
    else:
        kinds = (*readers, "pairs")
        known = {kind + ":": f"{kind}:{place.strip() or '...'}" for kind in kinds} | {
            "mnist": "mnist"
        }
        known |= {name: f"tfds:{name}" for name in ("fashion_mnist", "cifar10", "cifar100")}
        close = difflib.get_close_matches((kind + colon).lower(), known, n=1)
        meant = known[close[0]] if close else ""
    hint = f" (did you mean {meant!r}?)" if meant else ""
    raise InputError(f"{name!r} is no data set; give {FORMS}{hint}")


def _load_folder(name: str, root: Path, crop: int | None, cache_dir: Path | None) -> Dataset:
    from jaxdae.data.folder import load_folder  # which reads images by what is above

    return load_folder(name, root, crop, cache_dir)


def _load_tfds(name: str, place: Path, cache_dir: Path | None) -> Dataset:
    from jaxdae.data.tfds import load_arrays  # the only reader with a cache and a network

    arrays = load_arrays(name, cache_dir)
    train, test = (
        Split(arrays[f"{part}_images"], arrays.get(f"{part}_labels")) for part in ("train", "test")
    )
    return Dataset(name, train, test)
