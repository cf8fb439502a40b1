"""Trains and applies the `strided` network in one framework, as told line by line on stdin.

    python -m benchmarks.peer_worker FRAMEWORK:SETTING float32|bfloat16

Run by `benchmarks.peers`, with the Python of the framework's own environment; nothing of jaxdae is
imported for the others. A line is a task, {"task": "train" or "infer", "batch_size": N, "images":
N}; the answer is {"seconds": S}, a line on stdout. The first time a task is met it is compiled and
run twice before it is timed. The task {"task": "about"} is answered with the versions and device.

All have the same layers, mean squared error, and Adam at 0.001, in float32; in bfloat16 Keras and
PyTorch by their own mixed precision. The peers train on noisy images that were made beforehand, as
the tutorials do; jaxdae draws fresh noise at every step. On a GPU float32 products are in TF32 for
all, as is JAX's default, and PyTorch's images lie on it already. Padding is even on both sides in
PyTorch, which has no other without a copy.
"""

import gzip
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

MNIST = Path(__file__).parents[1] / "jaxdae/data/mnist/train-images-idx3-ubyte.gz"
Work = Callable[[], Any]


def at_once() -> None:
    """JAX's calls run in the thread that makes them: here nobody does anything beside them.

    On a CPU another thread would take them, and with small ones that takes longer than the work.
    """
    import jax

    jax.config.update("jax_cpu_enable_async_dispatch", False)


def digits(count: int) -> tuple[np.ndarray, np.ndarray]:
    """Noisy and clean training images, float32 (count, 28, 28, 1)."""
    raw = np.frombuffer(gzip.decompress(MNIST.read_bytes()), np.uint8, offset=16)
    clean = raw.reshape(-1, 28, 28, 1)[:count].astype(np.float32) / 255
    noise = np.random.default_rng(0).standard_normal(clean.shape, np.float32)
    return np.clip(clean + 0.5 + 0.5 * noise, 0, 1), clean


class Jaxdae:
    """The package itself, as `experiments.run` trains and as `jaxdae.inference` applies."""

    def __init__(self, setting: str, dtype: str) -> None:
        import jax
        import optax

        from jaxdae.corruption import gaussian
        from jaxdae.model import DenoisingAutoencoder
        from jaxdae.objectives import Supervised
        from jaxdae.optimizers import make_optimizer
        from jaxdae.train_step import create_state, make_train_step
        from jaxdae.training import AXIS

        at_once()
        self.jax = jax
        self.model: Any = DenoisingAutoencoder(dtype=jax.numpy.dtype(dtype))
        self.optimizer = make_optimizer("adam", optax.constant_schedule(1e-3))
        self.state = create_state(self.model, self.optimizer, 0)
        self.step = make_train_step(
            self.model, Supervised(gaussian(0.5)), self.optimizer, axis_name=AXIS
        )

    def about(self) -> dict[str, str]:
        return {"jax": self.jax.__version__, "device": self.jax.devices()[0].platform}

    def train(self, images: int, batch_size: int) -> Work:
        from jaxdae.training import train

        clean = np.round(digits(images)[1] * 255).astype(np.uint8)
        chunks = train(
            self.step,
            self.state,
            clean,
            seed=0,
            epochs=range(1_000_000),
            batch_size=batch_size,
            devices=self.jax.devices()[:1],
            chunk_steps=images // batch_size,
            chunk_seconds=float("inf"),
        )
        return lambda: next(chunks)

    def infer(self, images: int, batch_size: int) -> Work:
        from jaxdae.inference import denoise

        noisy, params, model = digits(images)[0], self.state.params, self.model
        apply = self.jax.jit(lambda images: denoise(model, params, images))
        batches = np.array_split(noisy, images // batch_size)
        return lambda: [np.asarray(apply(batch)) for batch in batches]


class PlainFlax(Jaxdae):
    """The same layers from `flax.linen`, in a Python loop over a compiled step."""

    def __init__(self, setting: str, dtype: str) -> None:
        super().__init__(setting, dtype)
        import optax

        from benchmarks.throughput import PlainFlax as Network
        from jaxdae.corruption import gaussian
        from jaxdae.objectives import Supervised
        from jaxdae.train_step import create_state, make_train_step

        self.model = Network(dtype=self.jax.numpy.dtype(dtype))
        optimizer = optax.adam(1e-3)
        self.state = create_state(self.model, optimizer, 0)
        step = make_train_step(self.model, Supervised(gaussian(0.5)), optimizer)
        self.step = self.jax.jit(step)

    def train(self, images: int, batch_size: int) -> Work:
        batches = np.array_split(digits(images)[1], images // batch_size)
        key = self.jax.random.key(0)

        def work() -> None:
            state = self.state
            for batch in batches:
                state, _ = self.step(state, batch, key)
            self.jax.block_until_ready(state)

        return work

    def infer(self, images: int, batch_size: int) -> Work:
        batches = np.array_split(digits(images)[0], images // batch_size)
        apply = self.jax.jit(lambda x: self.model.apply({"params": self.state.params}, x))
        return lambda: [np.asarray(apply(batch)) for batch in batches]


class Keras:
    """`fit`, many steps an execution; applied by the backend's compiled function."""

    def __init__(self, setting: str, dtype: str) -> None:
        os.environ["KERAS_BACKEND"] = setting
        os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
        import keras

        from benchmarks.keras_network import network

        if setting == "jax":
            at_once()
        if dtype != "float32":
            keras.config.set_dtype_policy(f"mixed_{dtype}")
        self.setting = setting
        self.model = network()

    def about(self) -> dict[str, str]:
        import keras

        backend = __import__(self.setting)
        if self.setting == "jax":
            device = backend.devices()[0].platform
        else:
            device = "gpu" if backend.config.list_physical_devices("GPU") else "cpu"
        return {"keras": keras.__version__, self.setting: backend.__version__, "device": device}

    def train(self, images: int, batch_size: int) -> Work:
        noisy, clean = digits(images)
        steps = min(50, images // batch_size)
        self.model.compile("adam", "mse", steps_per_execution=steps)
        return lambda: self.model.fit(noisy, clean, batch_size=batch_size, verbose=0)

    def infer(self, images: int, batch_size: int) -> Work:
        batches = np.array_split(digits(images)[0], images // batch_size)
        if self.setting == "tensorflow":
            import tensorflow as tf

            apply = tf.function(lambda x: self.model(x, training=False), reduce_retracing=True)
            return lambda: [apply(tf.constant(batch)).numpy() for batch in batches]
        import jax

        values = [
            [variable.value for variable in variables]
            for variables in (self.model.trainable_variables, self.model.non_trainable_variables)
        ]
        apply = jax.jit(lambda x: self.model.stateless_call(*values, x, training=False)[0])
        return lambda: [np.asarray(apply(batch)) for batch in batches]


class Torch:
    """Eager or under `torch.compile`, with channels last or CUDA graphs where the setting says."""

    def __init__(self, setting: str, dtype: str) -> None:
        import torch
        from torch import nn

        self.torch = torch
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.dtype = getattr(torch, dtype)
        torch.set_float32_matmul_precision("high")  # TF32 on a GPU
        torch.backends.cudnn.benchmark = True
        self.model: Any = nn.Sequential(
            *(nn.Conv2d(1, 32, 3, 2, 1), nn.ReLU(), nn.Conv2d(32, 64, 3, 2, 1), nn.ReLU()),
            *(nn.Flatten(), nn.Linear(3136, 16), nn.Linear(16, 3136), nn.Unflatten(1, (64, 7, 7))),
            *(nn.ConvTranspose2d(64, 64, 3, 2, 1, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(64, 32, 3, 2, 1, 1), nn.ReLU()),
            *(nn.ConvTranspose2d(32, 1, 3, 1, 1), nn.Sigmoid()),
        )
        last = "channels-last" in setting
        self.format = torch.channels_last if last else torch.contiguous_format
        self.model = self.model.to(self.device, memory_format=self.format)
        self.optimizer = torch.optim.Adam(self.model.parameters(), 1e-3, **self._fastest())
        # A program for each batch size; and one that only restores has its weights for constants,
        # laid out for it beforehand.
        if "compile" in setting:
            import torch._inductor.config as inductor

            inductor.freezing = True
            mode = "max-autotune-no-cudagraphs"
            self.model = torch.compile(self.model, mode=mode, dynamic=False)
        if "cudagraphs" in setting:
            self.model = torch.compile(self.model, mode="max-autotune", dynamic=False)

    def _fastest(self) -> dict[str, bool]:
        return {"fused": True} if self.device == "cuda" else {"foreach": True}

    def about(self) -> dict[str, str]:
        return {"torch": self.torch.__version__, "device": self.device}

    def _batches(self, images: np.ndarray, batch_size: int) -> Any:
        tensor = self.torch.from_numpy(images.transpose(0, 3, 1, 2).copy())
        return tensor.to(self.device, memory_format=self.format).split(batch_size)

    def _mixed(self) -> Any:
        mixed = self.dtype != self.torch.float32
        return self.torch.autocast(self.device, self.dtype, enabled=mixed)

    def _wait(self) -> None:
        if self.device == "cuda":
            self.torch.cuda.synchronize()

    def train(self, images: int, batch_size: int) -> Work:
        torch, model, optimizer = self.torch, self.model, self.optimizer
        pairs = [self._batches(part, batch_size) for part in digits(images)]

        def work() -> None:
            model.train()
            for noisy, clean in zip(*pairs, strict=True):
                optimizer.zero_grad(set_to_none=True)
                with self._mixed():
                    loss = torch.nn.functional.mse_loss(model(noisy).float(), clean)
                loss.backward()
                optimizer.step()
            self._wait()

        return work

    def infer(self, images: int, batch_size: int) -> Work:
        batches = self._batches(digits(images)[0], batch_size)

        def work() -> None:
            self.model.eval()
            with self.torch.inference_mode(), self._mixed():
                for batch in batches:
                    self.model(batch).float().cpu().numpy()

        return work


# Whoever is fast would else be timed mostly while the processor wakes up for it.
TURN_SECONDS = 1.0

FRAMEWORKS: dict[str, Any] = {
    "jaxdae": Jaxdae,
    "flax": PlainFlax,
    "keras": Keras,
    "torch": Torch,
}


def main() -> None:
    framework, _, setting = sys.argv[1].partition(":")
    dtype = sys.argv[2]
    replies = os.fdopen(os.dup(1), "w")  # stdout proper: what a framework prints goes to stderr
    os.dup2(2, 1)
    worker = FRAMEWORKS[framework](setting, dtype)
    ready: dict[tuple[str, int, int], Work] = {}
    for line in sys.stdin:
        task = json.loads(line)
        if task["task"] == "about":
            print(json.dumps(worker.about()), file=replies, flush=True)
            continue
        name, images, batch_size = task["task"], task["images"], task["batch_size"]
        if (name, images, batch_size) not in ready:
            work = getattr(worker, name)(images, batch_size)
            work()
            work()
            ready[name, images, batch_size] = work
        work, calls, start = ready[name, images, batch_size], 0, time.perf_counter()
        while calls == 0 or time.perf_counter() - start < TURN_SECONDS:
            work()
            calls += 1
        seconds = (time.perf_counter() - start) / calls
        print(json.dumps({"seconds": seconds}), file=replies, flush=True)


if __name__ == "__main__":
    main()
