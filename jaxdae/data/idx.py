"""MNIST's own format, IDX: http://yann.lecun.com/exdb/mnist.

A big-endian magic number, the sizes, then the bytes.
"""

import hashlib
import os
import struct
import zlib
from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from jaxdae.data.dataset import Dataset, Split
from jaxdae.errors import InputError, explained, show
from jaxdae.image_io.stacks import DEFLATE_RATIO, MAX_BYTES

MNIST = Path(__file__).parent / "mnist"


MNIST_SHA256 = {  # of the unpacked files
    "train-images-idx3-ubyte": "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    "train-labels-idx1-ubyte": "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    "t10k-images-idx3-ubyte": "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    "t10k-labels-idx1-ubyte": "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
}


IDX_MAGIC = {"images": 0x0803, "labels": 0x0801}  # unsigned bytes (08) in three dimensions, or one


def load_mnist() -> Dataset:
    try:
        return load_idx("mnist", MNIST, MNIST_SHA256)
    except InputError as error:
        raise InputError(f"the package's own copy is damaged, reinstall jaxdae: {error}") from None


def load_idx(name: str, folder: Path, sha256: Mapping[str, str] | None = None) -> Dataset:
    """MNIST's four file names, each plain (which goes first) or with .gz; labels may be absent."""
    if not os.path.isdir(folder):
        raise InputError(f"{name!r}: {show(folder)} is no folder: name the one of the IDX files")

    def read(stem: str) -> np.ndarray | None:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if os.path.lexists(path):
                return _read_idx(path, sha256[stem] if sha256 else None)
        if "labels" in stem and not sha256:
            return None
        raise InputError(f"{name!r}: {show(folder)} holds no {stem} or {stem}.gz: add one")

    def split(part: str) -> Split:
        images, labels = read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte")
        assert images is not None
        return Split(images[..., None], None if labels is None else labels.astype(np.int32))

    return Dataset(name, split("train"), split("t10k"))


def _read_idx(path: Path, sha256: str | None = None) -> np.ndarray:
    """One IDX file, plain or gzipped: images uint8 [n h w], or labels uint8 [n], by its name."""
    kind, rank = ("images", 3) if "images" in path.name else ("labels", 1)
    what, again = show(path), "fetch the file again"
    if not os.path.isfile(path):
        raise InputError(f"{what} is no regular file: put the IDX file itself there")
    with explained(f"{what} cannot be read", again), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content, start = raw.read() if packed else b"", 4 + 4 * rank
        header = _inflated(content, start) if packed else raw.read(start)
        magic = int.from_bytes(header[:4], "big")
        if len(header) >= 4 and magic != IDX_MAGIC[kind]:
            other = "".join(f" ({k})" for k, m in IDX_MAGIC.items() if m == magic)
            right = f"{kind} in IDX form with {IDX_MAGIC[kind]}"
            raise InputError(f"{what} begins with {magic}{other}, but {right}: swap the file")
        if len(header) < start:
            raise InputError(f"{what} ends inside its IDX header: {again}")
        shape = struct.unpack(f">{rank}I", header[4:])
        promised, size = prod(shape), path.stat().st_size
        promise = f"{what} promises {promised} bytes ({'x'.join(map(str, shape))})"
        limit = min(MAX_BYTES, size * (DEFLATE_RATIO if packed else 1))
        if promised > limit:
            raise InputError(f"{promise}, but its {size} can hold {limit} at the most: {again}")
        most = promised + 1  # one byte past the promise
        body = _inflated(content, start + most) if packed else bytearray(raw.read(most))
        if packed:
            del body[:start]
    if len(body) != promised:
        found = "more" if len(body) > promised else f"only {len(body)}"
        raise InputError(f"{promise} but holds {found}: {again}")
    if sha256:
        (digest := hashlib.sha256(header)).update(body)
        if digest.hexdigest() != sha256:
            raise InputError(f"{what} has the SHA-256 {digest.hexdigest()}, not {sha256}")
    return np.frombuffer(body, np.uint8).reshape(shape)


def _inflated(content: bytes, most: int) -> bytearray:
    """The first `most` bytes of what was gzipped, or all of it, in one part or several.

    In a call of zlib's for each part, during which other threads run: `gzip` makes thousands.

    Raises:
      EOFError, zlib.error: it is damaged, as far as it was read.
    """
    made = bytearray()
    while content and len(made) < most:
        part = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # with the header and the sum
        made += part.decompress(content, most - len(made))
        if not part.eof and len(made) < most:
            raise EOFError("the file ends inside what was compressed")
        content = part.unused_data.lstrip(b"\0")
    return made
