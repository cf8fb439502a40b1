"""How well photographs are denoised: by the networks of jaxdae, by BM3D, and as published.

    python -m benchmarks.photos                                          # write docs/photos.md
    python -m benchmarks.photos --photos DIR --measure quality           # first measure what is new
    python -m benchmarks.photos --photos DIR --measure quality --model runs/mine --json mine.json
    python -m benchmarks.photos --photos DIR --measure bm3d --sets Set12 --minutes 30
    python -m benchmarks.photos --photos DIR --measure strips
    python -m benchmarks.photos --photos DIR --measure levels
    python -m benchmarks.photos --measure speed --envs .peers            # nothing else may run

DIR holds a folder for each test set: Set12, BSD68, CBSD68, Kodak24, McMaster and CC15. The figures
lie in docs/results/photos.json, a row for each method, set and noise level, and the page is written
from them. `benchmarks/photo_protocol.py` says what noise the images get and how they are measured.

`quality` measures the noisy images and the networks that come with jaxdae, or those of --model. A
network that was trained with noise levels is told the noise level. `photo` is told nothing, and
neither is a network of --model with --blind: they estimate it. CC15 is real noise of cameras, whose
level nobody knows; a network that must be told one is told 15. Each network also gets the clean
images, without a noise level: they should come back as they were.

`levels` gives the networks noise levels of several sources (`benchmarks/photo_levels.py`).

`bm3d` runs BM3D (CBM3D for colour) on the same noisy images, in an environment of its own, which is
made from benchmarks/requirements/bm3d.txt. It takes seconds to half a minute an image, so its
outputs are kept in --cache, and the same command continues where it stopped. Its licence allows
non-commercial use only.

`strips` draws crops of three images: noisy, by BM3D if `bm3d` has restored them, by each network,
and clean. Only those of Kodak24 may be published; of other sets --images names a folder for them.

`speed` times jaxdae's network, the same network in PyTorch and onnxruntime, DnCNN and BM3D, each in
its own process and environment, in turn (`benchmarks/photo_worker.py` says how), and takes the
memory of each. Every part replaces its own figures only.

A row that is there is measured again only if the network has other parameters or the set more
images, or with --again.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks import photo_levels, photo_speed, photo_strips
from benchmarks.peers import environment
from benchmarks.photo_bm3d import Bm3d, kept
from benchmarks.photo_protocol import (
    REAL,
    SETS,
    Bytes,
    Case,
    Image,
    Photo,
    measure,
    names,
    read,
    summary,
    to_bytes,
)
from experiments.common import cli
from jaxdae.errors import InputError, show
from jaxdae.files import write_whole

PROGRAM = "python -m benchmarks.photos"
FIGURES, PAGE = Path("docs/results/photos.json"), Path("docs/photos.md")
IMAGES = Path("docs/images")
PARTS = ("quality", "levels", "bm3d", "strips", "speed")

# The networks of jaxdae, and if they are told the noise level.
NETWORKS = {
    "photo-gaussian": True,
    "photo-gaussian-gray": True,
    "photo": False,
    "photo-gray": False,
}
LEVEL_NETWORKS = ("photo-gaussian", "photo")
SIGMAS = (15.0, 25.0, 50.0)
BLIND_SIGMAS = (5.0, *SIGMAS)
REAL_LEVEL = 15.0  # what a network is told of real noise if it must be told a level
FREE = "Kodak24"  # the set whose images may be published
SHOWN = {FREE: ("kodim08", "kodim19", "kodim23")}  # in strips; of other sets the first three
STRIP_SIGMA = 25.0


class Method(NamedTuple):
    """A denoiser.

    Fields:
      name: of its rows.
      about: what its results depend on, beside the images: the row has it, too.
      restore: maps a noisy image and its sigma (in 8-bit levels, or None) to the restored one.
      channels: of its images; None for any.
      told: True if it is told the noise level.
    """

    name: str
    about: dict[str, Any]
    restore: Callable[[Image, float | None], Image]
    channels: int | None = None
    told: bool = True


def network(name: str, told: bool, label: str) -> Method:
    """A network, by its name, its run's folder or its file.

    Args:
      told: True to tell it the noise level.
      label: of its rows.

    Raises:
      InputError: there is no such network, or it takes images of one size only.
    """
    import jax

    from experiments.runs.models import load_model
    from jaxdae.inference import denoise

    model, params, card = load_model(name)
    if model.image_size is not None:
        raise InputError(f"--model {name} takes images of one size only: give another network")
    apply = jax.jit(lambda images, sigma: denoise(model, params, images, sigma))

    def restore(noisy: Image, sigma: float | None) -> Image:
        level = None if sigma is None else np.float32(sigma / 255)
        return np.asarray(apply(noisy[None], level)[0])

    about = {"parameters": card["parameters"], "params_sha256": card["params_sha256"]}
    return Method(label, {**about, "told": told}, restore, model.channels, told)


NOISY = Method("noisy", {}, lambda noisy, sigma: noisy)


def cases(method: Method, sets: Sequence[str], sigmas: Sequence[float] | None) -> Iterator[Case]:
    """What a method is measured on."""
    for name in sets:
        if method.channels not in (None, SETS[name].channels):
            continue
        if name == REAL:
            yield Case(name, None)
            continue
        levels = sigmas or (SIGMAS if method.told and method.channels else BLIND_SIGMAS)
        yield from (Case(name, sigma) for sigma in levels)
        if method.channels:
            yield Case(name, 0)


def given(method: Method, case: Case) -> float | None:
    """The noise level that a method is told; None for none."""
    if not method.told or case.sigma == 0:
        return None
    return REAL_LEVEL if case.sigma is None else case.sigma


def restored(method: Method, root: Path, case: Case) -> Iterator[tuple[Photo, Bytes]]:
    """Each image of a case, and what a method makes of it."""
    for name in names(root, case.name):
        photo = read(root, case, name)
        yield photo, to_bytes(method.restore(photo.noisy, given(method, case)))


class Figures:
    """The file of all figures, read and written whole after every change.

    Fields:
      all: part to method to case to row.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.all: dict[str, Any] = {}
        if path.exists():
            try:
                self.all = json.loads(path.read_text())
            except ValueError as error:
                mend = "restore or delete it"
                raise InputError(f"{show(path)} is damaged ({error}): {mend}") from None

    def row(self, method: str, case: Case) -> dict[str, Any] | None:
        """A row of "quality", or None."""
        return self.all.get("quality", {}).get(method, {}).get(case.key)

    def add(self, method: str, case: Case, row: dict[str, Any]) -> None:
        """Adds a row, or replaces it, and writes the file."""
        self.all.setdefault("quality", {}).setdefault(method, {})[case.key] = row
        self.write()

    def write(self) -> None:
        """Writes the file."""
        write_whole(self.path, json.dumps(self.all, indent=1, allow_nan=False) + "\n")


def is_new(row: dict[str, Any] | None, about: dict[str, Any], images: int) -> bool:
    """True if a row is missing, or is of another network or of fewer images."""
    return row is None or row["images"] < images or any(row.get(k) != v for k, v in about.items())


def quality(figures: Figures, method: Method, flags: argparse.Namespace, command: str) -> None:
    """Measures a method on all its cases."""
    from benchmarks.timing import machine

    for case in cases(method, flags.sets, flags.sigmas):
        images = len(names(flags.photos, case.name))
        if flags.again or is_new(figures.row(method.name, case), method.about, images):
            pairs = restored(method, flags.photos, case)
            found = summary(measure(photo, image) for photo, image in pairs)
            row = {**found, **method.about, "command": command, "machine": machine()}
            figures.add(method.name, case, row)
            report(method.name, case, row)


def report(method: str, case: Case, row: dict[str, Any]) -> None:
    """Prints a row as it comes."""
    psnr = "equal" if row["psnr"] is None else f"{row['psnr']:.2f} dB"
    print(f"{method} on {case.key}, {row['images']} images: {psnr}", flush=True)


def bm3d(figures: Figures, flags: argparse.Namespace, command: str) -> None:
    """Runs BM3D on images that it has not restored; adds a row for each case that is complete.

    Raises:
      RuntimeError: its process has stopped.
    """
    from benchmarks.timing import machine

    peer = Bm3d(environment(flags.envs, "bm3d"), flags.cache, flags.threads)
    end = time.monotonic() + 60 * flags.minutes
    todo = [
        Case(name, sigma)
        for name in flags.sets
        for sigma in ([None] if name == REAL else flags.sigmas or SIGMAS)
    ]
    try:
        for case in todo:
            images = names(flags.photos, case.name)
            if not (flags.again or is_new(figures.row("bm3d", case), peer.about, len(images))):
                continue
            for name in images:
                if time.monotonic() > end:
                    print(f"stopped in {case.key}, after --minutes: the same command continues")
                    return
                peer.restore(flags.photos, case, name)
            done = ((name, kept(peer.folder, case, name)) for name in images)
            pairs = ((read(flags.photos, case, name), pixels) for name, pixels in done)
            found = summary(measure(photo, image) for photo, image in pairs if image is not None)
            row = {**found, **peer.about, "command": command, "machine": machine()}
            figures.add("bm3d", case, row)
            report("bm3d", case, row)
    finally:
        peer.worker.close()


def strips(flags: argparse.Namespace, methods: Sequence[Method]) -> list[str]:
    """Draws crops of some images of each set, before and after; returns the files' names."""
    drawn = []
    folders = sorted(flags.cache.glob("bm3d-*"))
    for name in flags.strip_sets:
        case = Case(name, None if name == REAL else (flags.sigmas or [STRIP_SIGMA])[0])
        channels, rows = SETS[name].channels, []
        for image in SHOWN.get(name, names(flags.photos, name)[:3]):
            photo = read(flags.photos, case, image)
            row = {"noisy": to_bytes(photo.noisy)}
            if folders and (restored := kept(folders[-1], case, image)) is not None:
                row["BM3D" if channels == 1 else "CBM3D"] = restored
            for method in methods:
                if method.channels == channels:
                    row[method.name] = to_bytes(method.restore(photo.noisy, given(method, case)))
            rows.append({**row, "clean": photo.clean})
        path = flags.images / f"photos-{case.key.lower()}.png"
        photo_strips.draw(path, rows)
        print(f"wrote {path}")
        drawn.append(path.name)
    return drawn


def speed(flags: argparse.Namespace) -> dict[str, Any]:
    """The figures of speed and memory, of the first network for colour or of a random one.

    Raises:
      InputError: there is no such network, or onnx is not installed.
      RuntimeError: a peer has stopped, or gives another image.
    """
    from benchmarks.exported import random_params
    from benchmarks.timing import machine
    from experiments.runs.models import load_model
    from jaxdae import pretrained
    from jaxdae.model import build

    here = [name for name in NETWORKS if name in pretrained.names()]
    if chosen := flags.model or here:
        name, (model, params, card) = Path(chosen[0]).stem, load_model(chosen[0])
    else:
        model, name = build("photo", channels=3), "photo, random parameters"
        params, card = random_params(model), {}
    options = {name: getattr(flags, name) for name in ("envs", "side", "memory_sides", "repeats")}
    peers = [photo_speed.OURS, *(name for name in flags.peers if name != photo_speed.OURS)]
    report = photo_speed.run(model, params, card, names=peers, **options)
    return {
        **report,
        "network": name,
        "command": command_line(flags, "speed"),
        "machine": machine(),
    }


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
      InputError: it asks for what cannot be.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(PROGRAM, description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--photos", type=Path, metavar="DIR", help="folder of the test sets")
    add("--measure", nargs="+", default=[], choices=PARTS, metavar="PART",
        help=f"first measure some of {', '.join(PARTS)}")  # fmt: skip
    add("--model", nargs="+", metavar="NAME",
        help="networks: names, run folders or .npz files (default: those of jaxdae)")  # fmt: skip
    add("--blind", action="store_true", help="tell the networks of --model no noise level")
    add("--sets", nargs="+", choices=SETS, metavar="SET",
        help=f"some of {', '.join(SETS)} (default: all; for strips {FREE})")  # fmt: skip
    add("--sigmas", type=float, nargs="+", metavar="SIGMA",
        help="in 8-bit levels (default: 15 25 50, and 5 for blind networks)")  # fmt: skip
    add("--again", action="store_true", help="measure rows that are there, too")
    add("--minutes", type=float, default=float("inf"), help="stop BM3D after so long")
    add("--threads", type=int, default=1, help="of BM3D: 0 for all cores; 1 repeats its bits")
    add("--envs", type=Path, default=Path(".peers"), help="folder of the environments")
    add("--cache", type=Path, default=Path("runs/photos"), help="folder of BM3D's results")
    add("--peers", nargs="+", default=list(photo_speed.PEERS), choices=photo_speed.PEERS,
        metavar="NAME", help="whose speed (default: all)")  # fmt: skip
    add("--side", type=int, default=512, help="of the images that are timed, in pixels")
    add("--memory-sides", type=int, nargs=2, default=[256, 1024], metavar="N",
        help="of two images whose memory is compared (default: 256 1024)")  # fmt: skip
    add("--repeats", type=int, default=5, help="timed turns")
    add("--images", type=Path, default=IMAGES, metavar="DIR",
        help=f"folder of the strips (default: {IMAGES}, for {FREE} alone)")  # fmt: skip
    add("--json", type=Path, default=FIGURES, metavar="FILE", help=f"figures (default: {FIGURES})")
    add("--page", type=Path, metavar="FILE",
        help=f"the page to write (default: {PAGE}, and none with another --json)")  # fmt: skip
    flags = parser.parse_args(argv)
    if set(flags.measure) - {"speed"} and flags.photos is None:
        raise InputError("--measure needs --photos DIR, the folder of the test sets")
    small, large = flags.memory_sides
    if min(flags.side, flags.repeats) < 1 or not 8 <= small < large:
        raise InputError("--side and --repeats must be at least 1, --memory-sides two rising sizes")
    if flags.sigmas and not all(0 < sigma <= 255 for sigma in flags.sigmas):
        raise InputError(f"--sigmas {flags.sigmas} must be above 0 and at most 255")
    flags.sets, flags.strip_sets = flags.sets or list(SETS), flags.sets or [FREE]
    if "strips" in flags.measure and flags.images == IMAGES and flags.strip_sets != [FREE]:
        raise InputError(f"only images of {FREE} may be published: give --images DIR for others")
    if flags.page is None and flags.json == FIGURES:
        flags.page = PAGE
    return flags


def networks(flags: argparse.Namespace) -> list[Method]:
    """The networks that the flags name; those of jaxdae that are there if they name none.

    Raises:
      InputError: there is no such network.
    """
    from jaxdae import pretrained

    if flags.model:
        told = {name: NETWORKS.get(name, True) and not flags.blind for name in flags.model}
        return [network(name, told[name], _label(name, flags.blind)) for name in flags.model]
    here = [name for name in NETWORKS if name in pretrained.names()]
    return [network(name, NETWORKS[name], name) for name in here]


def _label(name: str, blind: bool) -> str:
    """The name of a network's rows; those of one told the noise level are not to be replaced."""
    stem = Path(name).stem
    return f"{stem}, not told" if blind and NETWORKS.get(name, True) else stem


def command_line(flags: argparse.Namespace, part: str) -> str:
    """The command that measures a part; folders of this machine are left out."""
    words = [PROGRAM, *(["--photos DIR"] if part != "speed" else []), "--measure", part]
    if flags.model:
        words += ["--model", *(Path(name).name for name in flags.model)]
        words += ["--blind"] * flags.blind
    if flags.sigmas:
        words += ["--sigmas", *(f"{sigma:g}" for sigma in flags.sigmas)]
    return " ".join(words)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 1 a peer failed, 2 bad input."""

    def work() -> int:
        from benchmarks.photo_page import page
        from benchmarks.timing import machine
        from jaxdae import pretrained

        flags = parse(argv)
        figures = Figures(flags.json)
        try:
            cli.prepare_jax()
            methods = networks(flags) if set(flags.measure) & {"quality", "strips"} else []
            if "quality" in flags.measure:
                quality(figures, NOISY, flags, f"{PROGRAM} --photos DIR --measure quality")
                for method in methods:
                    quality(figures, method, flags, command_line(flags, "quality"))
            if "levels" in flags.measure:
                named = flags.model or [
                    name for name in LEVEL_NETWORKS if name in pretrained.names()
                ]
                found = photo_levels.run(flags.photos, named)
                about = {"command": command_line(flags, "levels"), "machine": machine()}
                figures.all["levels"] = {"networks": found, **about}
                figures.write()
            if "bm3d" in flags.measure:
                bm3d(figures, flags, command_line(flags, "bm3d"))
            if "strips" in flags.measure:
                drawn = strips(flags, methods)
                if flags.images == IMAGES:
                    figures.all["strips"] = drawn
                    figures.write()
            if "speed" in flags.measure:
                figures.all["speed"] = speed(flags)
                figures.write()
        except RuntimeError as error:
            print(f"stopped: {error}", file=sys.stderr)
            return 1
        if flags.page:
            write_whole(flags.page, page(figures.all))
            print(f"wrote {flags.page}")
        return 0

    return cli.status(work, "fix that", "interrupted: the same command continues")


if __name__ == "__main__":
    sys.exit(main())
