"""What the tab for photographs computes: results, previews for the browser, files to download.

    photographs = Photographs(folder)
    shown = photographs.show(path, Settings(strength=0.7))      # before and after, as JPEG files
    file = photographs.write(path, Settings(strength=0.7))      # as `denoise` would write it

The engine is that of `denoise`: equal settings give equal pixels.
"""

import itertools
import math
import shutil
import threading
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Shaped
from PIL import Image

from jaxdae import pretrained
from jaxdae.errors import InputError, show
from jaxdae.image_io.limits import TooLarge
from jaxdae.image_io.picture import Picture
from jaxdae.image_io.pillow import encode, open_file, read, write

from ..restore.adapt import Images, Work, add_noise, bands, from_float, is_gray, to_float, to_uint8
from ..restore.arguments import Arguments
from ..restore.networks import Network
from .uploads import not_readable

COLOUR, GRAY = "photo", "photo-gray"  # the networks
MAX_PIXELS = 1 << 26  # of a photograph: the page keeps about 30 bytes of a pixel in colour
PREVIEW_PIXELS, PREVIEW_SIDE = 1 << 24, 1 << 14  # of a preview, at most
FLOAT = np.dtype(np.float32)
Progress = Callable[[float], Any]
Restored = Float[np.ndarray, "1 height width channels"]


class Settings(NamedTuple):
    """The controls of the tab.

    Fields:
      strength: multiplies the noise level that the network estimates.
      blend: the share of the input in the result, from 0 to 1.
      noise: the standard deviation of noise to add first, for images in [0, 1].
    """

    strength: float = 1.0
    blend: float = 0.0
    noise: float = 0.0


class Shown(NamedTuple):
    """What the tab shows.

    Fields:
      before, after: JPEG files of equal size.
      size: their (width, height).
      about: the photograph, and what was done, in a line.
    """

    before: Path
    after: Path
    size: tuple[int, int]
    about: str


class Photograph(NamedTuple):
    """A photograph that was read.

    Fields:
      name: of its file.
      picture: its pixels and metadata.
      images: its pixels as a batch of one; one channel if they are gray.
    """

    name: str
    picture: Picture
    images: Images

    @property
    def network(self) -> str:
        """The name of the network for it."""
        return COLOUR if self.images.shape[3] > 1 else GRAY

    @property
    def about(self) -> str:
        """It in words."""
        height, width, _ = self.picture.pixels.shape
        bits = 8 * self.picture.pixels.dtype.itemsize
        colours = "colour" if self.images.shape[3] > 1 else "gray"
        return f"{self.name}, {width}x{height}, {colours}, {bits} bits, {self.picture.format}"


def open_photograph(path: Path) -> Photograph:
    """Reads a photograph.

    Raises:
      InputError: it is no image, too large, or of a kind that could not be written again. The
        message names the file, without its folder.
    """
    try:
        with open_file(path) as image:
            width, height = image.size
    except TooLarge as error:
        raise _renamed(error, path) from None
    except Exception:  # damaged files raise many types
        raise not_readable() from None
    if width * height > MAX_PIXELS:
        raise InputError(
            f"{show(path.name)} is {width}x{height}, but this page takes up to {MAX_PIXELS:,} "
            "pixels: denoise it with jaxdae denoise"
        )
    try:
        picture = read(path)
        corner = picture.pixels[:1, :1], None if picture.alpha is None else picture.alpha[:1, :1]
        encode(picture._replace(pixels=corner[0], alpha=corner[1]))  # can its format hold it?
    except InputError as error:
        raise _renamed(error, path) from None
    images = picture.pixels[None]
    return Photograph(path.name, picture, images[..., :1] if is_gray(images) else images)


def _renamed(error: InputError, path: Path) -> InputError:
    """An error that names a file without its folder, a temporary one."""
    return InputError(str(error).replace(show(path), show(path.name)))


def missing() -> list[str]:
    """The networks that this version of jaxdae lacks."""
    return [name for name in (COLOUR, GRAY) if name not in pretrained.names()]


def missing_text(names: list[str]) -> str:
    """Says which photographs cannot be denoised."""
    kinds = {COLOUR: "photographs in colour", GRAY: "gray photographs"}
    return (
        f"this version of jaxdae has no network for {' or '.join(kinds[name] for name in names)}"
        f" ({', '.join(names)}): install a newer one"
    )


def blended(restored: Restored, source: Images, blend: float, dtype: np.dtype) -> Images:
    """The result with a share of the input, as another type. As `Work` does it."""
    result = np.empty(restored.shape, dtype)
    for rows in bands(result.shape[1]):
        part = restored[:, rows]
        if blend:
            part = (1 - blend) * part + blend * to_float(source[:, rows])
        result[:, rows] = from_float(part, dtype)
    return result


def reduced(image: Shaped[np.ndarray, "h w c"]) -> Image.Image:
    """A photograph as 8 bits, shrunk by a whole number if it is too large for a preview."""
    pixels = to_uint8(image)
    height, width, channels = pixels.shape
    times = math.ceil(
        max(math.sqrt(height * width / PREVIEW_PIXELS), max(height, width) / PREVIEW_SIDE)
    )
    shown = Image.fromarray(pixels[..., 0] if channels == 1 else pixels)
    return shown if times == 1 else shown.reduce(times)


class Photographs:
    """Denoises photographs, one at a time, and remembers the last one.

    Args:
      folder: for previews and files to download; the earlier ones are deleted.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._networks: dict[str, Network] = {}
        self._memory: dict[str, tuple[Hashable, Any]] = {}
        self._turns = itertools.count()

    def show(self, path: Path, settings: Settings, progress: Progress = bool) -> Shown:
        """Denoises a photograph, and makes its previews.

        Args:
          progress: called with the share that is done.

        Raises:
          InputError: see `open_photograph`; or there is no network for it.
        """
        with self._lock:
            photograph = self._photograph(path)
            result = self._result(photograph, path, settings, progress)
            seconds = self._memory["restored"][1][1]
            noisy = self._noisy(photograph, path, settings.noise)
            before, _ = self._last(
                "before", (path, settings.noise), lambda: self._preview("before", noisy[0])
            )
            after, size = self._last(
                "after", (path, settings), lambda: self._preview("after", result[0])
            )
        height, width, _ = photograph.picture.pixels.shape
        about = f"{photograph.about}. Denoised by {photograph.network} in {seconds:.1f} s."
        if size != (width, height):
            about += f" Shown at {size[0]}x{size[1]}; the download has the full size."
        return Shown(before, after, size, about)

    def write(self, path: Path, settings: Settings) -> Path:
        """Writes the result as a file of the photograph's format, with its metadata.

        Raises:
          InputError: see `show`; or its format cannot hold the result.
        """
        with self._lock:
            photograph = self._photograph(path)
            result = self._result(photograph, path, settings, bool)
            # A gray photograph in an RGB file stays in RGB.
            pixels = np.broadcast_to(result[0], photograph.picture.pixels.shape)
            folder = self._folder / "result"
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir(parents=True)
            target = folder / f"{path.stem}-denoised{path.suffix}"
            with target.open("wb") as file:
                write(photograph.picture._replace(pixels=pixels), file)
            return target

    def _photograph(self, path: Path) -> Photograph:
        """The photograph of a file, checked for its network."""
        if self._memory.get("photograph", (path,))[0] != path:
            self._memory.clear()  # before another one is read: it needs memory
        photograph = self._last("photograph", path, lambda: open_photograph(path))
        if photograph.network not in self._networks:
            if photograph.network in missing():
                raise InputError(missing_text([photograph.network]))
            arguments = Arguments((), self._folder, noise_sigma=0.0)  # for the noise's mean
            self._networks[photograph.network] = Network(photograph.network, arguments)
        return photograph

    def _noisy(self, photograph: Photograph, path: Path, noise: float) -> Images:
        def make() -> Images:
            mean = self._networks[photograph.network].mean or 0.0
            return add_noise(photograph.images, photograph.name, 0, noise, mean, 0)

        return self._last("noisy", (path, noise), make) if noise else photograph.images

    def _result(
        self, photograph: Photograph, path: Path, settings: Settings, progress: Progress
    ) -> Images:
        """The result in the photograph's type. Another blend needs no network."""
        strength, blend, noise = settings
        noisy = self._noisy(photograph, path, noise)
        network = self._networks[photograph.network]

        def restore() -> tuple[Restored, float]:
            begun = time.perf_counter()
            work = Work(network.rules, noisy, FLOAT)
            narrow = network.narrows(photograph.images.dtype)
            for done, inputs in enumerate(work.inputs(), 1):
                work.take(np.asarray(network.apply(inputs, narrow, strength)))
                progress(done / work.groups)
            return work.result, time.perf_counter() - begun

        def blend_in() -> Images:
            restored, _ = self._last("restored", (path, noise, strength), restore)
            return blended(restored, noisy, blend, photograph.images.dtype)

        return self._last("result", (path, settings), blend_in)

    def _preview(
        self, kind: str, image: Shaped[np.ndarray, "h w c"]
    ) -> tuple[Path, tuple[int, int]]:
        """Writes a preview; returns its file, and its (width, height)."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for old in self._folder.glob(f"{kind}-*.jpg"):
            old.unlink()
        path = self._folder / f"{kind}-{next(self._turns)}.jpg"
        preview = reduced(image)
        preview.save(path, "JPEG", quality=95, subsampling=0)
        return path, preview.size

    def _last(self, name: str, key: Hashable, make: Callable[[], Any]) -> Any:
        """What was made last under a name, made anew if its key has changed."""
        if name not in self._memory or self._memory[name][0] != key:
            self._memory.pop(name, None)  # frees memory
            self._memory[name] = key, make()
        return self._memory[name][1]
