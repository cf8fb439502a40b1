"""Pairs of noisy and clean image files as a data set: `pairs:NOISY_DIR,CLEAN_DIR`."""

import os
from pathlib import Path

from jaxdae.data.dataset import Dataset
from jaxdae.data.folder import ImageFiles, build_dataset
from jaxdae.errors import InputError, show
from jaxdae.image_io.pillow import find


def load_pairs(
    name: str,
    place: str,
    crop: int | None = None,
    cache_dir: Path | None = None,
    gray: bool = False,
) -> Dataset:
    """Two folders of files with the same names: noisy images, and the same scenes without noise.

    Names are compared without their suffixes. The clean files decide the split and the labels, as
    in `load_folder`. All images become RGB if one file is in colour.

    Args:
      place: NOISY_DIR,CLEAN_DIR.
      crop, cache_dir, gray: see `load_folder`. The images of a pair are cut at the same position.

    Raises:
      InputError: a folder or a file cannot be used, a file has no partner, or the images of a pair
        differ in size.
    """
    commas = [i for i, letter in enumerate(place) if letter == ","]
    candidates = [(place[:i], place[i + 1 :]) for i in commas]  # a folder's name may hold a comma
    if not candidates:
        raise InputError(f"{name!r} must name two folders: pairs:NOISY_DIR,CLEAN_DIR")
    noisy_root, clean_root = (
        Path(os.path.expanduser(part))
        for part in next((c for c in candidates if all(map(os.path.isdir, c))), candidates[0])
    )
    if not os.path.isdir(noisy_root):
        raise InputError(
            f"{name!r}: {show(noisy_root)} is no folder: name the folder of the noisy images"
        )
    files = ImageFiles(name, clean_root)
    noisy = {_stem(relative): path for relative, path in find(noisy_root)}
    stems = [_stem(relative) for relative in files.names]
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise InputError(
            f"{name!r}: {show(clean_root)} holds {twice!r} with two suffixes: remove one"
        )
    for unpaired, root, other_root in (
        (set(stems) - set(noisy), clean_root, noisy_root),
        (set(noisy) - set(stems), noisy_root, clean_root),
    ):
        if unpaired:
            raise InputError(
                f"{name!r}: {len(unpaired)} images in {show(root)} have no partner in "
                f"{show(other_root)}, such as {min(unpaired)!r}: give both of a pair one name"
            )
    partner = {path: noisy[stem] for path, stem in zip(files.paths, stems, strict=True)}

    return build_dataset(files, [partner[path] for path in files.paths], crop, cache_dir, gray)


def _stem(relative: str) -> str:
    return relative.rpartition(".")[0]
