"""Restores images by BM3D, as told line by line on stdin.

    python -m benchmarks.bm3d_worker bm3d:THREADS float32

Run by `benchmarks.photos` with the Python of an environment that has bm3d and numpy; nothing of
jaxdae is imported. THREADS 0 stands for all cores; only with 1 does the same image give the same
bits each time. A line is a task, {"task": "restore", "noisy": FILE, "sigma": S, "restored": FILE}:
files of NumPy, (height, width, channels) with 1 or 3 channels, in [0, 1], of which one is read and
one is written. Without "sigma" the noise level is estimated. The answer is {"sigma": S}, a line on
stdout. The task {"task": "about"} is answered with the versions.

The package `bm3d` is that of the method's authors, at its default profile ("np"): gray images by
`bm3d`, colour images by `bm3d_rgb`, which matches blocks in luminance (CBM3D). Its licence allows
informational and non-commercial use only.

  - Dabov, Foi, Katkovnik, Egiazarian, "Image denoising by sparse 3-D transform-domain collaborative
    filtering" (2007); Mäkinen, Azzari, Foi, "Collaborative filtering of correlated noise" (2020)
"""

import json
import os
import sys
from importlib.metadata import version
from typing import Any

import numpy as np


def restore(noisy: np.ndarray, sigma: float, threads: int) -> np.ndarray:
    """Both stages, with the noise's standard deviation: float64, as large as the image."""
    import bm3d

    profile = bm3d.BM3DProfile()
    profile.num_threads = threads
    image = noisy.astype(np.float64)
    if noisy.shape[2] == 3:
        return np.asarray(bm3d.bm3d_rgb(image, sigma, profile))
    return np.asarray(bm3d.bm3d(image[..., 0], sigma, profile))[..., None]


def noise_level(noisy: np.ndarray) -> float:
    """The noise's standard deviation: the median of the finest diagonal wavelet coefficients.

    Donoho and Johnstone, "Ideal spatial adaptation by wavelet shrinkage" (1994), averaged over the
    channels.
    """
    import pywt

    finest = [pywt.dwt2(channel, "db2")[1][2] for channel in np.moveaxis(noisy, 2, 0)]
    return float(np.mean([np.median(np.abs(part)) / 0.6744897501960817 for part in finest]))


def answer(task: dict[str, Any], threads: int) -> dict[str, Any]:
    """Does a task."""
    if task["task"] == "about":
        return {name: version(name) for name in ("bm3d", "bm4d", "numpy")}
    noisy = np.load(task["noisy"])
    sigma = task.get("sigma") or noise_level(noisy)
    np.save(task["restored"], restore(noisy, sigma, threads))
    return {"sigma": sigma}


def main() -> None:
    """Answers until stdin ends."""
    threads = int(sys.argv[1].partition(":")[2] or 1)
    replies = os.fdopen(os.dup(1), "w")  # stdout proper: what the package prints goes to stderr
    os.dup2(2, 1)
    for line in sys.stdin:
        print(json.dumps(answer(json.loads(line), threads)), file=replies, flush=True)


if __name__ == "__main__":
    main()
