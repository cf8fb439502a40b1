"""Which files are restored, and which are written."""

import functools
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from jaxdae.errors import InputError, show
from jaxdae.image_io.pillow import SUFFIXES, find
from jaxdae.image_io.stacks import SUFFIXES as STACKS

from .arguments import METRICS, Arguments, compares


class Source(NamedTuple):
    """A file to restore.

    Fields:
      path: where it is.
      name: its path below --out.
    """

    path: Path
    name: str

    @property
    def stack(self) -> bool:
        return self.name.lower().endswith(STACKS)


# What there is to do
def sources(arguments: Arguments) -> list[Source]:
    """The files to restore, in order, each once.

    Raises:
      InputError: a place that does not exist or holds nothing, or two files of one name.
    """
    found: dict[str, Path] = {}
    ours = [path for path in (arguments.out, arguments.side_by_side) if path is not None]
    roots = tuple(os.path.realpath(path) + os.sep for path in ours)
    folder = functools.cache(os.path.realpath)
    for place in arguments.inputs:
        count = seen = 0
        for name, path in _places(place):
            seen += 1
            if not (folder(path.parent) + os.sep).startswith(roots):
                count += 1
                other = found.setdefault(name, path)
                if other is not path and os.path.realpath(other) != os.path.realpath(path):
                    raise InputError(
                        f"{show(other)} and {show(path)} would both be {show(name)} in --out: "
                        "restore them into two folders"
                    )
        if seen and not count:
            raise InputError(
                f"{show(place)} lies in --out or --side-by-side, and what lies there is no input: "
                "choose another folder for the results"
            )
        if not count:
            raise InputError(
                f"nothing to restore in {show(place)}: it must hold files that end in "
                f"{', '.join((*SUFFIXES, *STACKS))}"
            )
    return [Source(path, name) for name, path in found.items()]


def _places(place: str) -> Iterator[tuple[str, Path]]:
    """What an argument names: paths below --out, and the files."""
    path, known = Path(os.path.expanduser(place)), (*SUFFIXES, *STACKS)
    if path.is_dir():
        for _, file in find(path, known):
            yield file.relative_to(path).as_posix(), file
    elif path.is_file():
        if not path.name.lower().endswith(known):
            raise InputError(f"{show(place)} is no image or stack: name one of {', '.join(known)}")
        yield path.name, path
    elif glob.has_magic(place) and not os.path.lexists(path):
        root = path
        while glob.has_magic(str(root)):
            root = root.parent
        for match in sorted(map(Path, glob.glob(str(path), recursive=True))):
            files = [file for _, file in find(match, known)] if match.is_dir() else [match]
            for file in files:
                if file.name.lower().endswith(known) and file.is_file():
                    yield file.relative_to(root).as_posix(), file
    else:
        rule = "is no regular file" if os.path.lexists(path) else "does not exist"
        raise InputError(
            f"{show(place)} {rule}: name image files, folders of them, or patterns in quotes"
        )


def left_to_do(arguments: Arguments, files: Sequence[Source]) -> list[Source]:
    """Those of the files that are to be written.

    Raises:
      InputError: a result would take the place of an input, or of another file that is to stay.
    """
    out = arguments.out
    there = [file for file in files if os.path.lexists(out / file.name)]
    if there:
        inputs = {os.path.realpath(file.path) for file in files}
        if arguments.reference is not None:
            references = (reference_of(arguments.reference, file) for file in files)
            inputs |= {os.path.realpath(path) for path in references}
        for file in there:
            if os.path.realpath(out / file.name) in inputs:
                raise InputError(
                    f"--out {show(out)} would replace {show(out / file.name)}, which is an input: "
                    "choose another folder"
                )
    if arguments.skip_existing:
        skipped = set(there)
        return [file for file in files if file not in skipped]
    side = arguments.side_by_side
    if not arguments.overwrite:
        if there:
            raise InputError(
                f"{len(there):,} of {len(files):,} results exist, such as "
                f"{show(out / there[0].name)}: --overwrite replaces them, --skip-existing leaves "
                "them; or choose another --out"
            )
        if compares(arguments) and os.path.lexists(out / METRICS):
            raise InputError(f"{show(out / METRICS)} exists: --overwrite replaces it")
        if side is not None and side.is_dir() and any(side.iterdir()):
            raise InputError(
                f"--side-by-side {show(side)} is not empty: --overwrite writes into it"
            )
    return list(files)


def reference_of(reference: Path, file: Source) -> Path:
    return reference / file.name if reference.is_dir() else reference


def check_references(arguments: Arguments, files: Sequence[Source]) -> None:
    """Raises an `InputError` if there is not a reference for each file."""
    place = arguments.reference
    if place is None:
        return
    if not place.exists():
        raise InputError(f"--reference {show(place)} does not exist: name a file or a folder")
    if not place.is_dir() and len(files) > 1:
        raise InputError(
            f"--reference {show(place)} is one file for {len(files):,} inputs: name the folder of "
            "all references"
        )
    missing = [file for file in files if not reference_of(place, file).is_file()]
    if missing:
        raise InputError(
            f"--reference {show(place)} lacks {len(missing):,} of {len(files):,} files, such as "
            f"{show(missing[0].name)}: add them, with the names that the inputs have"
        )
