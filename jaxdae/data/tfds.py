"""Data sets of TensorFlow Datasets (tfds): `tfds:NAME`.

tfds prepares a data set. Its images are decoded once, and kept in the cache as .npy files with
their SHA-256; a damaged cache entry is written again. Preparing needs TensorFlow, reading does not.
"""

import contextlib
import difflib
import hashlib
import importlib.util
import logging
import queue
import re
import socket
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from jaxdae.data.dataset import Dataset, Split
from jaxdae.errors import InputError, explained, show
from jaxdae.files import cache_folder, replacing, write_whole
from jaxdae.image_io.numpy_stacks import MAX_BYTES

PARTS = ("train", "test")
PROBE_SECONDS = 5.0  # the time that a download host has to answer


def load_tfds(name: str, cache_dir: Path | None = None) -> Dataset:
    """Loads a data set by its name in tfds.

    Its `validation` split is the test split if it has no `test`.

    Args:
      name: tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3.
      cache_dir: see `jaxdae.data.load`.

    Raises:
      InputError: tfds does not know it, its images differ in size or are not uint8, it is too
        large, or it is not prepared and cannot be prepared here.
    """
    arrays = _load_arrays(name, cache_dir)
    train, test = (Split(arrays[f"{part}_images"], arrays.get(f"{part}_labels")) for part in PARTS)
    return Dataset(name, train, test)


def _load_arrays(name: str, cache_dir: Path | None) -> dict[str, np.ndarray]:
    """`train_images`, `test_images`, and `train_labels`, `test_labels` if there are labels."""
    if importlib.util.find_spec("tensorflow_datasets") is None:
        raise InputError(f"{name!r} needs TensorFlow Datasets: pip install tensorflow-datasets")
    short = name.removeprefix("tfds:")
    if not re.fullmatch(r"\w+(/[\w.-]+)?(:\d+\.\d+\.\d+)?", short, re.ASCII):
        raise InputError(
            f"{name!r} is no name: give tfds:NAME, tfds:NAME/CONFIG or tfds:NAME:1.2.3"
        )
    cache = cache_folder(cache_dir)
    with _quiet_tfds():
        import tensorflow_datasets as tfds

        with explained(
            f"tfds cannot build {name!r}", "name a version it has, or install what it needs"
        ):
            try:
                builder: Any = tfds.builder(short, file_format="array_record")
            except tfds.core.registered.DatasetNotFoundError:
                known = tfds.list_builders(with_community_datasets=False)
                close = difflib.get_close_matches(re.split("[/:]", short)[0], known, n=1)
                hint = f"tfds:{close[0]}" if close else "one of https://tensorflow.org/datasets"
                raise InputError(f"{name!r} is unknown to tfds: try {hint}") from None
        folder = cache / "tfds" / builder.info.full_name
        arrays = _read_cache(folder)
        if arrays is None:
            arrays = _decode(name, builder)
            mend = "free disk space, or choose another cache folder (XDG_CACHE_HOME)"
            with explained(f"{show(folder)} cannot be written", mend):
                _write_cache(folder, arrays)
    return arrays


@contextlib.contextmanager
def _quiet_tfds() -> Iterator[None]:
    """Hides tfds's warnings, and sends its progress bars to stderr."""
    logger = logging.getLogger("absl")

    def is_error(record: logging.LogRecord) -> bool:
        return record.levelno >= logging.ERROR

    logger.addFilter(is_error)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        logger.removeFilter(is_error)


def _decode(name: str, builder: Any) -> dict[str, np.ndarray]:
    """The arrays of a data set, which is prepared first if it is not."""
    features = builder.info.features
    shape = getattr(features["image"], "shape", None) if "image" in features else None
    if not shape or None in shape or len(shape) != 3 or features["image"].np_dtype != np.uint8:
        rule = f"its 'image' is {shape or 'absent'}, but must be uint8 of one size [h w c]"
        raise InputError(f"{name!r}: {rule}: choose another data set")
    if not builder.is_prepared():
        _prepare(name, builder)
    splits = builder.info.splits
    names = ("train", "test" if "test" in splits else "validation")
    if not {*names} <= {*splits}:
        rule = f"its splits are {', '.join(splits) or 'none'}, but must include train, and test or"
        raise InputError(f"{name!r}: {rule} validation: choose another data set")
    labelled = "label" in features and features["label"].shape == ()
    labelled = labelled and np.issubdtype(features["label"].np_dtype, np.integer)
    arrays: dict[str, np.ndarray] = {}
    place = Path(builder.data_path)
    with explained(f"{name!r}: {show(place)} cannot be read", "delete it and load again"):
        for part, split in zip(PARTS, names, strict=True):
            source = builder.as_data_source(split=split)
            n = len(source)
            if n * prod(shape) > MAX_BYTES:
                rule = f"{n} images {list(shape)} exceed the limit of {MAX_BYTES} bytes"
                raise InputError(f"{name!r}: {rule}: choose a smaller data set")
            images, labels = np.empty((n, *shape), np.uint8), np.empty(n, np.int32)
            for start in range(0, n, 1024):  # several times faster than one at a time
                rows = source.__getitems__(range(start, min(start + 1024, n)))
                images[start : start + 1024] = [row["image"] for row in rows]
                if labelled:
                    labels[start : start + 1024] = [row["label"] for row in rows]
            arrays[f"{part}_images"] = images
            if labelled:
                arrays[f"{part}_labels"] = labels
    return arrays


def _prepare(name: str, builder: Any) -> None:
    """Lets tfds download and convert a data set.

    Raises:
      InputError: TensorFlow is not installed, no download host answers, or tfds fails.
    """
    what = f"{name!r} is not prepared in {show(builder.data_path)}"
    needs = ("tensorflow", "importlib_resources")
    if missing := [module for module in needs if importlib.util.find_spec(module) is None]:
        mend = "pip install tensorflow importlib_resources"
        raise InputError(f"{what}, and preparing it needs {' and '.join(missing)}: {mend}")
    with explained(f"{what}, and preparing it failed", "solve that and load it again"):
        if not _reachable(_download_hosts(builder)):
            mend = "connect to the network, or copy that folder from another machine"
            raise InputError(f"{what}, and its download host does not answer: {mend}")
        full = builder.info.full_name
        root = Path(builder.data_path).parents[full.count("/")]
        builder.download_and_prepare(download_dir=root / "downloads" / full)  # its own


def _download_hosts(builder: Any) -> list[tuple[str, int]]:
    """(host, port) of each server or proxy that the download needs; at most eight."""
    proxies, hosts = urllib.request.getproxies(), set()
    for url in list(builder.url_infos or ()) or ["https://storage.googleapis.com"]:
        place = urllib.parse.urlsplit(url)
        proxy = proxies.get(place.scheme) or proxies.get("all")
        if proxy and not urllib.request.proxy_bypass(place.hostname or ""):
            place = urllib.parse.urlsplit(proxy if "//" in proxy else f"//{proxy}")
        default = {"https": 443, "ftp": 21}.get(place.scheme, 80)
        hosts.add((place.hostname or "", place.port or default))
    return sorted(hosts)[:8]


def _reachable(hosts: Sequence[tuple[str, int]]) -> bool:
    """True if a host accepts a connection within `PROBE_SECONDS`, name look-up included."""
    answers: queue.Queue[bool] = queue.Queue()

    def probe(host: tuple[str, int]) -> None:
        with contextlib.suppress(Exception):  # unknown name, no route, refused
            socket.create_connection(host, timeout=PROBE_SECONDS).close()
            answers.put(True)
            return
        answers.put(False)

    for host in hosts:  # in threads, because a name look-up has no timeout
        threading.Thread(target=probe, args=(host,), daemon=True).start()
    deadline = time.monotonic() + PROBE_SECONDS
    with contextlib.suppress(queue.Empty):
        return any(answers.get(timeout=max(0, deadline - time.monotonic())) for _ in hosts)
    return False


def _read_cache(folder: Path) -> dict[str, np.ndarray] | None:
    """The arrays in `folder`; None if one is missing or differs from its SHA-256."""
    arrays = {}
    try:
        for line in (folder / "SHA256SUMS").read_text("ascii").splitlines():
            digest, file = line.split("  ")
            with (folder / file).open("rb") as stream:
                if hashlib.file_digest(stream, "sha256").hexdigest() != digest:
                    return None
            arrays[file.removesuffix(".npy")] = np.load(folder / file, allow_pickle=False)
    except (OSError, ValueError):
        return None
    return arrays if {"train_images", "test_images"} <= arrays.keys() else None


def _write_cache(folder: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes each file whole or not at all, and `SHA256SUMS` (as sha256sum's) last."""
    lines = []
    for key, x in arrays.items():
        with replacing(folder / f"{key}.npy") as path:
            np.save(path, x)
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        lines.append(f"{digest}  {key}.npy\n")
    write_whole(folder / "SHA256SUMS", "".join(lines))
