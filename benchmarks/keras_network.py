"""The tutorials' network, built and trained by Keras, its weights written for jaxdae to evaluate.

    pip install tensorflow                        # an environment of its own; jaxdae is not needed
    python benchmarks/keras_network.py --sigma 0.5 --seed 0 --out keras-0.5-0.npz

Ten epochs of Adam at 0.001 on batches of 32, mean squared error, noise N(0.5, sigma^2) drawn once
for each image and clipped: what `--recipe classic` repeats. The arrays carry the names and the
layouts of jaxdae's `strided` network, so that both are measured on the same noisy test images.
With --each-epoch the weights after every epoch are kept too, with the seconds since the start of
the process.
"""

import argparse
import gzip
import os
import time
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

MNIST = Path(__file__).parents[1] / "jaxdae/data/mnist/train-images-idx3-ubyte.gz"
NAMES = [
    "encoder/conv_0",
    "encoder/conv_1",
    "encoder/latent",
    "decoder/dense",
    "decoder/conv_transpose_0",
    "decoder/conv_transpose_1",
    "decoder/output",
]


def network() -> keras.Model:
    """The strided autoencoder: 178,001 parameters."""
    return keras.Sequential(
        [
            layers.Input((28, 28, 1)),
            layers.Conv2D(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
            layers.Flatten(),
            layers.Dense(16),
            layers.Dense(7 * 7 * 64),
            layers.Reshape((7, 7, 64)),
            layers.Conv2DTranspose(64, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(32, 3, strides=2, padding="same", activation="relu"),
            layers.Conv2DTranspose(1, 3, padding="same", activation="sigmoid"),
        ]
    )


def arrays(model: keras.Model) -> dict[str, Any]:
    """The weights under jaxdae's names and in its layouts."""
    weighted = [layer for layer in model.layers if layer.weights]
    out: dict[str, Any] = {}
    for name, layer in zip(NAMES, weighted, strict=True):
        kernel, bias = layer.get_weights()
        if isinstance(layer, layers.Conv2DTranspose):  # rotated, and (out, in)
            kernel = kernel[::-1, ::-1].swapaxes(2, 3)
        out |= {f"{name}/kernel": kernel, f"{name}/bias": bias}
    return out


class EachEpoch(keras.callbacks.Callback):
    """Keeps the weights after every epoch."""

    def __init__(self, out: Path, start: float) -> None:
        super().__init__()
        self.out, self.start = out, start

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        seconds = time.time() - self.start
        path = self.out.with_name(f"{self.out.stem}-epoch{epoch + 1}.npz")
        np.savez(path, seconds=seconds, **arrays(self.model))


def _boot_seconds() -> float:
    """When this process began, in seconds since the machine did (Linux)."""
    ticks = Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19]
    return int(ticks) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sigma", type=float, default=0.5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--each-epoch", action="store_true")
    arguments = parser.parse_args()

    keras.utils.set_random_seed(arguments.seed)
    raw = np.frombuffer(gzip.decompress(MNIST.read_bytes()), np.uint8, offset=16)
    clean = raw.reshape(-1, 28, 28, 1).astype("float32") / 255
    noise = np.random.default_rng(arguments.seed).standard_normal(clean.shape, np.float32)
    noisy = np.clip(clean + 0.5 + arguments.sigma * noise, 0, 1)
    model = network()
    model.compile("adam", "mse")
    # The process began before Python could look at a clock.
    begun = time.time() - time.clock_gettime(time.CLOCK_BOOTTIME) + _boot_seconds()
    each = [EachEpoch(arguments.out, begun)] if arguments.each_epoch else []
    epochs = arguments.epochs
    model.fit(noisy, clean, batch_size=32, epochs=epochs, verbose=2, callbacks=each)
    np.savez(arguments.out, **arrays(model))


if __name__ == "__main__":
    main()
