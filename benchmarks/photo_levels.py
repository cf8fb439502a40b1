"""Where the noise level comes from: told, estimated by the network, or by scikit-image.

Each network denoises the first `IMAGES` of Kodak24 with white noise, and of CC15, with the level of
each source. scikit-image's `estimate_sigma` is the median of the finest wavelet coefficients
(Donoho and Johnstone, 1994), of each channel; the network gets their mean.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.photo_protocol import REAL, Case, measure, names, read, to_bytes
from benchmarks.timing import markdown

IMAGES = 8
SET, SIGMAS = "Kodak24", (5.0, 10.0, 15.0, 25.0, 35.0, 50.0)
SOURCES = ("told", "estimated by the network", "estimate_sigma")


def run(photos: Path, networks: Sequence[str]) -> dict[str, Any]:
    """Measures networks with the noise level of each source.

    Returns:
      network to source to case to {"psnr", "level"}, means over the images; "level" is that of the
      image in 8-bit levels.
    """
    import jax
    from skimage.restoration import estimate_sigma

    from experiments.runs.models import load_model
    from jaxdae.inference import denoise

    report: dict[str, Any] = {}
    for name in networks:
        model, params, _ = load_model(name)
        variables = {"params": params}

        @jax.jit
        def apply(image: Any, level: Any, model: Any = model, params: Any = params) -> Any:
            return denoise(model, params, image, level)

        @jax.jit
        def estimate(image: Any, model: Any = model, variables: Any = variables) -> Any:
            return model.apply(variables, image, method="noise_level")

        for case in [*(Case(SET, sigma) for sigma in SIGMAS), Case(REAL, None)]:
            found: dict[str, list[tuple[float, float]]] = {source: [] for source in SOURCES}
            for image in names(photos, case.name)[:IMAGES]:
                photo = read(photos, case, image)
                noisy = photo.noisy[None]
                sigma = float(np.mean(estimate_sigma(photo.noisy, channel_axis=-1)))
                levels = dict(zip(SOURCES, (case.sigma, estimate(noisy), sigma), strict=True))
                for source, level in levels.items():
                    if level is None:
                        continue
                    level = level / 255 if source == "told" else level
                    restored = to_bytes(np.asarray(apply(noisy, level))[0])
                    mean = 255 * float(np.mean(level))
                    found[source].append((measure(photo, restored)["psnr"], mean))
            for source, values in found.items():
                if values:
                    psnr, level = (float(np.mean(part)) for part in zip(*values, strict=True))
                    row = {"psnr": psnr, "level": level}
                    report.setdefault(name, {}).setdefault(source, {})[case.key] = row
    return report


def table(report: Mapping[str, Any]) -> str:
    """PSNR, and the mean level in brackets, of each network and source."""
    keys = [*(Case(SET, sigma).key for sigma in SIGMAS), REAL]
    lines = []
    for name, sources in report.items():
        for source, row in sources.items():
            cells = [
                f"{row[key]['psnr']:.2f} ({row[key]['level']:.1f})" if key in row else "–"
                for key in keys
            ]
            lines.append([f"`{name}`", source, *cells])
    heads = [*(f"sigma {sigma:g}" for sigma in SIGMAS), REAL]
    return markdown(["network", "noise level", *heads], lines)
