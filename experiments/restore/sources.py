"""The files to denoise, and the files to write."""

import functools
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdae.errors import InputError, show
from jaxdae.image_io.numpy_stacks import SUFFIXES as STACKS
from jaxdae.image_io.pillow import SUFFIXES, find

from .arguments import METRICS, Arguments


class Source(NamedTuple):
    """A file to denoise.

    Fields:
      path: of the file.
      name: path of its result, relative to --out.
    """

    path: Path
    name: str

    @property
    def is_stack(self) -> bool:
        return self.name.lower().endswith(STACKS)


def sources(arguments: Arguments) -> list[Source]:
    """The files to denoise, in order, each once.

    Raises:
      InputError: an input does not exist or holds no images, or two results would have one name.
    """
    found: dict[str, Path] = {}
    outputs = [path for path in (arguments.out, arguments.side_by_side) if path is not None]
    roots = tuple(os.path.realpath(path) + os.sep for path in outputs)
    realpath = functools.cache(os.path.realpath)
    for given in arguments.inputs:
        count = seen = 0
        for name, path in _files(given):
            seen += 1
            if not (realpath(path.parent) + os.sep).startswith(roots):
                count += 1
                other = found.setdefault(name, path)
                if other is not path and os.path.realpath(other) != os.path.realpath(path):
                    raise InputError(
                        f"{show(other)} and {show(path)} would both be written to {show(name)} in "
                        "--out: denoise them into two folders"
                    )
        if seen and not count:
            raise InputError(
                f"{show(given)} lies in --out or --side-by-side, whose files are not denoised: "
                "choose another folder for the results"
            )
        if not count:
            raise InputError(
                f"{show(given)} holds no images: name files that end in "
                f"{', '.join((*SUFFIXES, *STACKS))}"
            )
    return [Source(path, name) for name, path in found.items()]


def _files(given: str) -> Iterator[tuple[str, Path]]:
    """The files that an input names, each with the path of its result relative to --out."""
    path, known = Path(os.path.expanduser(given)), (*SUFFIXES, *STACKS)
    if path.is_dir():
        for _, file in find(path, known):
            yield file.relative_to(path).as_posix(), file
    elif path.is_file():
        if not path.name.lower().endswith(known):
            raise InputError(
                f"{show(given)} is not an image or a stack: name a file that ends in "
                f"{', '.join(known)}"
            )
        yield path.name, path
    elif glob.has_magic(given) and not os.path.lexists(path):
        root = path
        while glob.has_magic(str(root)):
            root = root.parent
        for match in sorted(map(Path, glob.glob(str(path), recursive=True))):
            files = [file for _, file in find(match, known)] if match.is_dir() else [match]
            for file in files:
                if file.name.lower().endswith(known) and file.is_file():
                    yield file.relative_to(root).as_posix(), file
    else:
        rule = "is not a regular file" if os.path.lexists(path) else "does not exist"
        raise InputError(f"{show(given)} {rule}: give image files, folders, or patterns in quotes")


def left_to_do(arguments: Arguments, files: Sequence[Source]) -> list[Source]:
    """The files whose results are not written yet, or are to be written again.

    Raises:
      InputError: a result would replace an input, or an existing file without --overwrite.
    """
    out = arguments.out
    existing = [file for file in files if os.path.lexists(out / file.name)]
    if existing:
        inputs = {os.path.realpath(file.path) for file in files}
        if arguments.reference is not None:
            references = (reference_of(arguments.reference, file) for file in files)
            inputs |= {os.path.realpath(path) for path in references}
        for file in existing:
            if os.path.realpath(out / file.name) in inputs:
                raise InputError(
                    f"--out {show(out)} would replace {show(out / file.name)}, which is an input: "
                    "choose another folder"
                )
    if arguments.skip_existing:
        skipped = set(existing)
        return [file for file in files if file not in skipped]
    side = arguments.side_by_side
    if not arguments.overwrite:
        if existing:
            raise InputError(
                f"{len(existing):,} of {len(files):,} results exist, such as "
                f"{show(out / existing[0].name)}: give --overwrite to replace them, "
                "--skip-existing to keep them, or another --out"
            )
        if arguments.compares and os.path.lexists(out / METRICS):
            raise InputError(f"{show(out / METRICS)} exists: give --overwrite to replace it")
        if side is not None and side.is_dir() and any(side.iterdir()):
            raise InputError(
                f"--side-by-side {show(side)} is not empty: give --overwrite to write into it, or "
                "choose another folder"
            )
    return list(files)


def reference_of(reference: Path, file: Source) -> Path:
    """The clean image, or stack, of a file."""
    return reference / file.name if reference.is_dir() else reference


def check_references(arguments: Arguments, files: Sequence[Source]) -> None:
    """Raises an `InputError` if a file has no reference."""
    reference = arguments.reference
    if reference is None:
        return
    if not reference.exists():
        raise InputError(f"--reference {show(reference)} does not exist: give a file or a folder")
    if not reference.is_dir() and len(files) > 1:
        raise InputError(
            f"--reference {show(reference)} is one file for {len(files):,} inputs: give the folder "
            "of all references"
        )
    missing = [file for file in files if not reference_of(reference, file).is_file()]
    if missing:
        raise InputError(
            f"--reference {show(reference)} lacks {len(missing):,} of {len(files):,} files, such "
            f"as {show(missing[0].name)}: add them, under the names of the inputs"
        )
