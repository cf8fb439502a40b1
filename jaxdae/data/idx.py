"""The file format of MNIST, IDX: http://yann.lecun.com/exdb/mnist.

A file is a magic number and the length of each axis, big-endian uint32, then the bytes.
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
from jaxdae.image_io.numpy_stacks import DEFLATE_RATIO, MAX_BYTES

MAGIC = {"images": 0x0803, "labels": 0x0801}  # 08: unsigned bytes; the last digit: axes


def load_idx(name: str, folder: Path, sha256: Mapping[str, str] | None = None) -> Dataset:
    """The data set in a folder of four files with MNIST's names.

    A file may be gzipped, with the suffix .gz; the plain one is preferred. Labels are optional.

    Args:
      name: for `Dataset.name` and for messages.
      sha256: file name to the SHA-256 of the unpacked file. If given, all four files must be there
        and match.

    Raises:
      InputError: a file is missing, damaged, too large or not the one that its name says.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{name!r}: {show(folder)} is no folder: name the folder of the IDX files")

    def read(stem: str) -> np.ndarray | None:
        for path in (folder / stem, folder / f"{stem}.gz"):
            if os.path.lexists(path):
                return _read_file(path, sha256[stem] if sha256 else None)
        if "labels" in stem and not sha256:
            return None
        raise InputError(f"{name!r}: {show(folder)} holds no {stem} or {stem}.gz: add one")

    def split(part: str) -> Split:
        images, labels = read(f"{part}-images-idx3-ubyte"), read(f"{part}-labels-idx1-ubyte")
        assert images is not None
        return Split(images[..., None], None if labels is None else labels.astype(np.int32))

    return Dataset(name, split("train"), split("t10k"))


def _read_file(path: Path, sha256: str | None = None) -> np.ndarray:
    """One IDX file, plain or gzipped: images uint8 [n h w] or labels uint8 [n], by its name."""
    kind, rank = ("images", 3) if "images" in path.name else ("labels", 1)
    what, again = show(path), "fetch the file again"
    if not os.path.isfile(path):
        raise InputError(f"{what} is no regular file: put the IDX file itself there")
    with explained(f"{what} cannot be read", again), path.open("rb") as raw:
        packed = raw.read(2) == b"\x1f\x8b"
        raw.seek(0)
        content, start = raw.read() if packed else b"", 4 + 4 * rank
        header = _gunzip(content, start) if packed else raw.read(start)
        magic = int.from_bytes(header[:4], "big")
        if len(header) >= 4 and magic != MAGIC[kind]:
            other = "".join(f" ({k})" for k, m in MAGIC.items() if m == magic)
            right = f"IDX {kind} begin with {MAGIC[kind]}"
            raise InputError(f"{what} begins with {magic}{other}, but {right}: replace the file")
        if len(header) < start:
            raise InputError(f"{what} ends inside its IDX header: {again}")
        shape = struct.unpack(f">{rank}I", header[4:])
        promised, size = prod(shape), path.stat().st_size
        promise = f"{what} promises {promised} bytes ({'x'.join(map(str, shape))})"
        limit = min(MAX_BYTES, size * (DEFLATE_RATIO if packed else 1))
        if promised > limit:
            raise InputError(f"{promise}, but its {size} bytes hold at most {limit}: {again}")
        most = promised + 1  # the extra byte shows that there are too many
        body = _gunzip(content, start + most) if packed else bytearray(raw.read(most))
        if packed:
            del body[:start]
    if len(body) != promised:
        found = "more" if len(body) > promised else f"only {len(body)}"
        raise InputError(f"{promise} but holds {found}: {again}")
    if sha256:
        (digest := hashlib.sha256(header)).update(body)
        if digest.hexdigest() != sha256:
            raise InputError(
                f"{what} has the SHA-256 {digest.hexdigest()}, but must have {sha256}: {again}"
            )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _gunzip(content: bytes, most: int) -> bytearray:
    """The first `most` bytes of a gzip file of one or several members, or all if it has fewer.

    One call of zlib a member lets other threads run; `gzip` makes thousands of calls.

    Raises:
      EOFError, zlib.error: the part that was read is damaged.
    """
    out = bytearray()
    while content and len(out) < most:
        member = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)  # 16: a gzip header and checksum
        out += member.decompress(content, most - len(out))
        if not member.eof and len(out) < most:
            raise EOFError("the file ends inside its compressed data")
        content = member.unused_data.lstrip(b"\0")  # zeros may pad a gzip file
    return out
