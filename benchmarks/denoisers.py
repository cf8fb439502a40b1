"""Classical denoisers on the noisy test images of MNIST that the networks are evaluated on.

    python -m benchmarks.denoisers
    python -m benchmarks.denoisers --methods tv bm3d --sigmas 0.5 --json FILE --arrays FILE

The noise is N(0.5, sigma^2), clipped to [0, 1], so black comes out gray and white is cut off: what
no classical method expects. To handicap none, each has the choice of

  - its parameters, from a grid: strengths are in units of the noise's standard deviation;
  - its input: as it is, or with every clipped value replaced by what it was before clipping, in
    expectation;
  - what maps its estimate back to [0, 1]: the exact inverse of the mean that noise and clipping
    make of a pixel, or the monotone curve that fits the clean images best,

and takes the combination with the lowest mean squared error on training images (with noise other
than the test images'). `noisy` is the input itself, `pixelwise` the input mapped back.

Non-local means and BM3D, slow, are tuned on the first 50 training images and evaluated on the first
1,000 test images at most. Every row says on how many it is; in JSON all have the figures of the
first 1,000 too.

The package of BM3D is free for non-commercial use only, and so in no extra but `peers`. A method
whose package is missing is left out with a note.

  - Chambolle, "An algorithm for total variation minimization and applications" (2004)
  - Chang, Yu, Vetterli, "Adaptive wavelet thresholding for image denoising" (2000)
  - Buades, Coll, Morel, "A non-local algorithm for image denoising" (2005)
  - Dabov, Foi, Katkovnik, Egiazarian, "Image denoising by sparse 3-D transform-domain collaborative
    filtering" (2007); Mäkinen, Azzari, Foi, "Collaborative filtering of correlated noise" (2020)
"""

import argparse
import json
import multiprocessing
import platform
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int
from rich.console import Console
from rich.table import Table
from scipy import ndimage, optimize, special

from jaxdae import metrics
from jaxdae.corruption import gaussian
from jaxdae.data import load
from jaxdae.errors import InputError
from jaxdae.evaluation import corrupted
from jaxdae.files import write_whole
from jaxdae.train_step import to_float

MEAN = 0.5  # of the noise
SLOW_TRAIN, SLOW_TEST = 50, 1000  # the most images that a slow method is given
SHOWN = 10  # test images in --arrays
BINS = 256  # of the monotone curve
METRICS = ("mse", "psnr", "ssim")

Image = Float[np.ndarray, "height width"]
Images = Float[np.ndarray, "n height width"]
Parameters = dict[str, Any]
Curve = tuple[np.ndarray, np.ndarray]  # what `np.interp` takes: estimates, and what they become
Map = Callable[..., Iterator[tuple[Image, float]]]


class Ends(NamedTuple):
    """What stands for the values that were clipped to 0 and to 1."""

    low: float = 0.0
    high: float = 1.0


def expected_ends(clean: Images, sigma: float) -> Ends:
    """What clipped values were before clipping, in expectation over pixels such as these."""
    levels, count = np.unique(clean, return_counts=True)
    mean, below, above, a, b = _tails(levels, sigma)
    low = count @ (mean * below - sigma * _density(a)) / (count @ below)
    high = count @ (mean * above + sigma * _density(b)) / (count @ above)
    return Ends(float(low), float(high))


def declip(noisy: Images, ends: Ends) -> Images:
    """The images with other values at the ends; with 0 and 1 as they are."""
    return np.where(noisy <= 0, ends.low, np.where(noisy >= 1, ends.high, noisy))


def response(clean: Float[np.ndarray, " n"], sigma: float, ends: Ends) -> np.ndarray:
    """E[declip(clip(x + N(MEAN, sigma^2), 0, 1))] of each clean value x: it grows with x."""
    mean, below, above, a, b = _tails(np.asarray(clean, float), sigma)
    inside = mean * (1 - below - above) + sigma * (_density(a) - _density(b))
    return inside + ends.low * below + ends.high * above


def noise_deviation(sigma: float, ends: Ends) -> float:
    """The standard deviation of `declip`'s values where the clean image is black."""
    quantiles = MEAN + sigma * special.ndtri((np.arange(10_000) + 0.5) / 10_000)
    return float(declip(quantiles, ends).std())


def _tails(x: np.ndarray, sigma: float) -> tuple[np.ndarray, ...]:
    """Means with noise, P(clipped to 0), P(clipped to 1), and the standardised ends."""
    a, b = (0 - x - MEAN) / sigma, (1 - x - MEAN) / sigma
    return x + MEAN, special.ndtr(a), special.ndtr(-b), a, b


def _density(z: np.ndarray) -> np.ndarray:
    return np.exp(-z * z / 2) / np.sqrt(2 * np.pi)


def inverse_curve(sigma: float, ends: Ends) -> Curve:
    """From estimates of the noisy values' mean to clean values: the inverse of `response`."""
    clean = np.linspace(0, 1, 2001)
    return response(clean, sigma, ends), clean


def monotone_curve(estimates: Images, clean: Images) -> Curve:
    """The curve that never falls and, over bins of equal count, has the least squared error."""
    edges = np.unique(np.quantile(estimates, np.linspace(0, 1, BINS + 1)[1:-1]))
    bins = np.searchsorted(edges, estimates.ravel(), side="right")
    count, x, y = (
        np.bincount(bins, weights)
        for weights in (None, estimates.ravel().astype(float), clean.ravel().astype(float))
    )
    used = count > 0
    count, x, y = count[used], x[used], y[used]
    return x / count, optimize.isotonic_regression(y / count, weights=count).x


def unchanged(noisy: Image) -> Image:
    """No denoising."""
    return noisy


def gaussian_filter(noisy: Image, width: float) -> Image:
    """A Gaussian average."""
    return ndimage.gaussian_filter(noisy, width)


def median_filter(noisy: Image, radius: int, shape: str) -> Image:
    """The median in a square of 2 radius + 1 pixels, or in the diamond within."""
    cross = ndimage.generate_binary_structure(2, 2 if shape == "square" else 1)
    return ndimage.median_filter(noisy, footprint=ndimage.iterate_structure(cross, radius))


def total_variation(noisy: Image, weight: float) -> Image:
    """Chambolle's algorithm for least squares with a penalty on the total variation."""
    from skimage.restoration import denoise_tv_chambolle

    return denoise_tv_chambolle(noisy, weight)


def wavelets(noisy: Image, sigma: float, wavelet: str, method: str, levels: int) -> Image:
    """Soft thresholding of wavelet coefficients, averaged over 4 x 4 shifts of the image."""
    from skimage.restoration import denoise_wavelet

    total = np.zeros_like(noisy)
    for shift in product(range(4), repeat=2):
        shrunk = denoise_wavelet(
            np.roll(noisy, shift, (0, 1)),
            sigma,
            wavelet,
            wavelet_levels=levels,
            method=method,
            rescale_sigma=False,
        )
        total += np.roll(shrunk, (-shift[0], -shift[1]), (0, 1))
    return total / 16


def nonlocal_means(
    noisy: Image, h: float, sigma: float, patch_size: int, patch_distance: int
) -> Image:
    """Non-local means, with Gaussian weights in a patch."""
    from skimage.restoration import denoise_nl_means

    return denoise_nl_means(noisy, patch_size, patch_distance, h, fast_mode=False, sigma=sigma)


def bm3d(noisy: Image, sigma: float, profile: str) -> Image:
    """Block matching and 3-D filtering, both stages, with a profile of the authors'."""
    import bm3d

    chosen = {"np": bm3d.BM3DProfile, "high": bm3d.BM3DProfileHigh}[profile]()
    chosen.num_threads = 1  # more add up in another order each time
    chosen.nf = 16  # as good on such small images as the default of 32, and four times as fast
    return bm3d.bm3d(noisy, sigma, chosen)


def choices(**values: Sequence[Any]) -> list[Parameters]:
    """Every combination."""
    return [
        dict(zip(values, combination, strict=True)) for combination in product(*values.values())
    ]


def times(noise: float, *factors: float) -> list[float]:
    """Strengths relative to the noise."""
    return [round(noise * factor, 4) for factor in factors]


@dataclass(frozen=True)
class Denoiser:
    """A method, its grid at a standard deviation of the noise, and the modules it needs."""

    function: Callable[..., Image]
    grid: Callable[[float], list[Parameters]]
    needs: tuple[str, ...] = ()
    slow: bool = False


DENOISERS: dict[str, Denoiser] = {
    "pixelwise": Denoiser(unchanged, lambda noise: [{}]),
    "median": Denoiser(
        median_filter, lambda noise: choices(radius=[1, 2, 3], shape=["diamond", "square"])
    ),
    "gaussian": Denoiser(
        gaussian_filter, lambda noise: choices(width=[tenth / 10 for tenth in range(5, 24)])
    ),
    "tv": Denoiser(
        total_variation,
        lambda noise: choices(weight=times(noise, 0.3, 0.4, 0.5, 0.6, 0.7, 0.85, 1, 1.2, 1.4, 1.7)),
        ("skimage",),
    ),
    "wavelets": Denoiser(
        wavelets,
        lambda noise: choices(
            sigma=times(noise, 0.3, 0.4, 0.5, 0.6, 0.8, 1, 1.25),
            wavelet=["haar", "db2", "sym4"],
            method=["VisuShrink", "BayesShrink"],
            levels=[1, 2],
        ),
        ("skimage", "pywt"),
    ),
    "nl-means": Denoiser(
        nonlocal_means,
        lambda noise: choices(
            h=times(noise, 0.3, 0.6, 1, 1.4),
            sigma=times(noise, 0, 1),
            patch_size=[5, 7],
            patch_distance=[5, 11],
        ),
        ("skimage",),
        slow=True,
    ),
    "bm3d": Denoiser(
        bm3d,
        lambda noise: choices(
            sigma=times(noise, 0.6, 0.7, 0.8, 0.9, 1, 1.15), profile=["np", "high"]
        ),
        ("bm3d",),
        slow=True,
    ),
}
PACKAGES = {"skimage": "scikit-image", "pywt": "PyWavelets", "bm3d": "bm3d"}  # by module


def _timed(function: Callable[..., Image], parameters: Parameters, image: Image):
    start = time.process_time()
    output = function(image, **parameters)
    return output, time.process_time() - start


def denoise(
    function: Callable[..., Image], parameters: Parameters, images: Images, run: Map = map
) -> tuple[Images, float]:
    """Each image's estimate, and the processor seconds that an image took."""
    outputs, seconds = zip(*run(partial(_timed, function, parameters), images), strict=True)
    return np.stack(outputs), float(np.mean(seconds))


@dataclass(frozen=True)
class Choice:
    """What a method has chosen, and its mean squared error on the training images."""

    parameters: Parameters
    ends: Ends
    calibration: str
    curve: Curve
    error: float


def tune(
    denoiser: Denoiser, noisy: Images, clean: Images, sigma: float, run: Map = map
) -> dict[str, Choice]:
    """The best choice for each calibration, "inverse" and "monotone", on training images."""
    best: dict[str, Choice] = {}
    for ends in (Ends(), expected_ends(clean, sigma)):
        inputs = declip(noisy, ends)
        for parameters in denoiser.grid(noise_deviation(sigma, ends)):
            estimates, _ = denoise(denoiser.function, parameters, inputs, run)
            for calibration, curve in (
                ("inverse", inverse_curve(sigma, ends)),
                ("monotone", monotone_curve(estimates, clean)),
            ):
                error = float(np.mean((np.interp(estimates, *curve) - clean) ** 2))
                if calibration not in best or error < best[calibration].error:
                    best[calibration] = Choice(parameters, ends, calibration, curve, error)
    return best


def restore(
    denoiser: Denoiser, choice: Choice, noisy: Images, run: Map = map
) -> tuple[Images, float]:
    """What a tuned method makes of noisy images, float32 in [0, 1]; processor seconds an image."""
    estimates, seconds = denoise(
        denoiser.function, choice.parameters, declip(noisy, choice.ends), run
    )
    return np.interp(estimates, *choice.curve).clip(0, 1).astype(np.float32), seconds


def measure(restored: Images, clean: Images, labels: Int[np.ndarray, " n"]) -> dict[str, Any]:
    """The mean of each metric and the accuracy of the classifier of clean digits.

    Of all images, and under "first" of those that slow methods get.
    """
    from jaxdae.recognition import digit_recovery

    output, target = (jnp.asarray(x[..., None], jnp.float32) for x in (restored, clean))
    each = {name: np.asarray(getattr(metrics, name)(output, target), float) for name in METRICS}

    def figures(count: int) -> dict[str, Any]:
        means = {name: float(values[:count].mean()) for name, values in each.items()}
        recovery = digit_recovery(np.asarray(output[:count]), labels[:count])
        return {"images": count, **means, "accuracy": recovery}

    return figures(len(restored)) | {"first": figures(min(SLOW_TEST, len(restored)))}


def compare(
    methods: Sequence[str], sigmas: Sequence[float], train_images: int, test_images: int, run: Map
) -> Iterator[tuple[dict[str, Any], dict[str, Images]]]:
    """A row of figures for each sigma and method, and the images to show, by name."""
    data = load("mnist")
    training = to_float(jnp.asarray(data.train.images[:train_images]))
    labels = data.test.labels
    assert labels is not None
    for sigma in sigmas:
        # Another key than the test images' has.
        noisy_training = jax.jit(gaussian(sigma, MEAN))(jax.random.key(0), training)
        seen, truth = (np.asarray(x[..., 0], float) for x in (noisy_training, training))
        pair = corrupted(gaussian(sigma, MEAN), data.test.images[:test_images])
        clean, noisy = (np.asarray(x[..., 0], float) for x in pair)
        shown = {"clean": clean[:SHOWN], f"noisy_sigma{sigma:g}": noisy[:SHOWN]}
        row = {"method": "noisy", "sigma": sigma}
        yield row | measure(noisy, clean, labels[: len(noisy)]), shown
        for method in methods:
            denoiser = DENOISERS[method]
            tuned_on = min(len(truth), SLOW_TRAIN if denoiser.slow else len(truth))
            count = min(len(noisy), SLOW_TEST if denoiser.slow else len(noisy))
            best = tune(denoiser, seen[:tuned_on], truth[:tuned_on], sigma, run)
            choice = min(best.values(), key=lambda choice: choice.error)
            restored, seconds = restore(denoiser, choice, noisy[:count], run)
            row = {
                "method": method,
                "sigma": sigma,
                **measure(restored, clean[:count], labels[:count]),
                "parameters": choice.parameters,
                "input": "clipped" if choice.ends == Ends() else "declipped",
                "ends": choice.ends,
                "calibration": choice.calibration,
                "train_images": tuned_on,
                "train_mse": {name: choice.error for name, choice in best.items()},
                "seconds_per_image": seconds,
            }
            yield row, {f"{method}_sigma{sigma:g}": restored[:SHOWN]}


def table(rows: Sequence[Mapping[str, Any]]) -> Table:
    """The rows, a section for each sigma."""
    shown = Table("sigma", "method", "MSE", "PSNR", "SSIM", "accuracy", "images", "ms/image")
    for column in shown.columns[2:]:
        column.justify = "right"
    for i, row in enumerate(rows):
        if i and row["sigma"] != rows[i - 1]["sigma"]:
            shown.add_section()
        seconds = row.get("seconds_per_image")
        shown.add_row(
            f"{row['sigma']:g}",
            row["method"],
            f"{row['mse']:.4f}",
            f"{row['psnr']:.2f}",
            f"{row['ssim']:.3f}",
            f"{row['accuracy']:.2%}",
            f"{row['images']:,}",
            "" if seconds is None else f"{seconds * 1000:.2f}",
        )
    return shown


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise InputError(f"{message}: see --help")


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line.

    Raises:
      InputError: what is wrong with it, in one line.
    """
    parser = _Parser(
        prog="python -m benchmarks.denoisers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--sigmas", type=float, nargs="+", default=[0.25, 0.5, 0.75, 1.0], metavar="SIGMA")
    add("--methods", nargs="+", default=list(DENOISERS), choices=list(DENOISERS), metavar="METHOD",
        help=f"some of {', '.join(DENOISERS)} (default: all)")  # fmt: skip
    add("--train-images", type=int, default=200, metavar="N", help="to tune on (default: 200)")
    add("--test-images", type=int, default=10_000, metavar="N", help="default: 10000, all")
    add("--workers", type=int, default=1, metavar="N", help="processes (default: 1)")
    add("--json", type=Path, metavar="FILE", help="write every figure and choice to FILE")
    add("--arrays", type=Path, metavar="FILE", help=f"write the first {SHOWN} images as npz")
    flags = parser.parse_args(argv)
    if min(flags.train_images, flags.test_images, flags.workers) < 1:
        raise InputError("--train-images, --test-images and --workers must be at least 1")
    for sigma in flags.sigmas:
        if not 0.05 <= sigma <= 10:
            raise InputError(f"--sigmas {sigma:g} must be at least 0.05 and at most 10")
    for name, path in (("json", flags.json), ("arrays", flags.arrays)):
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            raise InputError(f"--{name} {path} must be a file in a folder that exists")
    return flags


@contextmanager
def workers(count: int) -> Iterator[Map]:
    """A `map` over so many processes."""
    if count == 1:
        yield map
    else:  # spawned, as JAX's threads do not survive a fork
        with ProcessPoolExecutor(count, multiprocessing.get_context("spawn")) as pool:
            yield partial(pool.map, chunksize=8)


def available(methods: Sequence[str]) -> list[str]:
    """The methods whose packages are here; says on stderr what is left out."""
    here = []
    for method in dict.fromkeys(methods):
        missing = [name for name in DENOISERS[method].needs if not find_spec(name)]
        if missing:
            wanted = " and ".join(PACKAGES[name] for name in missing)
            mend = "pip install -e '.[peers]'"
            print(f"{method} is left out, for want of {wanted}: {mend}", file=sys.stderr)
        else:
            here.append(method)
    return here


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 0 done, 2 bad input."""
    try:
        flags = parse(argv)
        methods = available(flags.methods)
        rows: list[dict[str, Any]] = []
        arrays: dict[str, Any] = {}
        packages = [name for module, name in PACKAGES.items() if find_spec(module)]
        versions = {name: version(name) for name in ("jax", "numpy", "scipy", *packages)}
        report = {"versions": {"python": platform.python_version()} | versions, "rows": rows}
        counts = flags.train_images, flags.test_images
        with workers(flags.workers) as run:
            for row, shown in compare(methods, list(dict.fromkeys(flags.sigmas)), *counts, run):
                rows.append(row)
                arrays |= {name: images.astype(np.float32) for name, images in shown.items()}
                print(f"{row['method']} at {row['sigma']:g}: {row['mse']:.4f}", file=sys.stderr)
                # After every row: the whole takes long.
                if flags.json:
                    write_whole(flags.json, json.dumps(report, indent=2) + "\n")
                if flags.arrays:
                    with open(flags.arrays, "wb") as file:  # savez would add .npz to a name
                        np.savez_compressed(file, **arrays)
    except (InputError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console().print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
