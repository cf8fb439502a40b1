"""Denoises photographs in one framework, as told line by line on stdin: speed, memory, results.

    python -m benchmarks.photo_worker FRAMEWORK:SETTING float32|bfloat16

Run by `benchmarks.photo_speed` with the Python of the framework's own environment; nothing of
jaxdae is imported for the others. The first line is {"task": "load", "folder": F}. F holds the
network, a `PhotoDenoiser`: network.npz (its parameters), network.json (its fields) and
network.onnx. Then come any of

    {"task": "about"}                                  the versions
    {"task": "time", "side": N}                        seconds for an image of N x N pixels
    {"task": "once", "side": N}                        nothing; the image is denoised once
    {"task": "run", "noisy": FILE, "sigma": S, "restored": FILE}
    {"task": "peak"}                                   the process's largest memory yet, in MB

and each is answered by a line on stdout. FILE is NumPy's, (height, width, channels). Without S the
network estimates the noise level, as it does in all that is timed; BM3D is told it. Before a size
is timed, it is compiled and run once.

  jaxdae         the network as `jaxdae.inference` applies it, compiled with its parameters
  torch          the same network in PyTorch, eager or compiled, by its own mixed precision
  onnxruntime    the same network from jaxdae's ONNX file
  dncnn-torch, dncnn-flax, dncnn-jaxdae    DnCNN, 17 layers of 64 channels with random parameters,
                 batch normalisation folded in: in PyTorch, in Flax, and in jaxdae's layers
  bm3d           BM3D, on as many threads as SETTING says (0: all cores)

All take the cores that they find.
"""

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.peer_worker import TURN_SECONDS, at_once

SIGMA = 25 / 255
DEPTH, WIDTH = 17, 64  # of DnCNN
Work = Callable[[], np.ndarray]  # gives (height, width, channels)


def read_network(folder: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The fields and the parameters, by path, of the network in a folder."""
    with np.load(folder / "network.npz") as file:
        params = {path: file[path] for path in file.files}
    return json.loads((folder / "network.json").read_text()), params


class Jaxdae:
    """`jaxdae.inference.denoise`, jitted."""

    def __init__(self, setting: str, dtype: str) -> None:
        import jax

        at_once()
        self.jax, self.dtype = jax, jax.numpy.dtype(dtype)

    def load(self, folder: Path) -> int:
        from flax.traverse_util import unflatten_dict

        from jaxdae.inference import denoise
        from jaxdae.model import build

        fields, flat = read_network(folder)
        model = build("photo", **{**fields, "dtype": self.dtype})
        params = unflatten_dict(flat, sep="/")
        self.apply = self.jax.jit(lambda images, sigma: denoise(model, params, images, sigma))
        return model.channels

    def work(self, noisy: np.ndarray, sigma: float | None) -> Work:
        level = None if sigma is None else np.float32(sigma)
        return lambda: np.asarray(self.apply(noisy[None], level)[0])

    def about(self) -> dict[str, str]:
        return {"jax": self.jax.__version__}


class DnCnn(Jaxdae):
    """DnCNN in JAX: in Flax's convolutions, or in jaxdae's."""

    def __init__(self, setting: str, dtype: str, conv: str = "flax") -> None:
        super().__init__(setting, dtype)
        self.conv = conv

    def load(self, folder: Path) -> int:
        from flax import linen as nn

        from jaxdae.model.layers import Conv

        channels, conv, dtype = read_network(folder)[0]["channels"], self.conv, self.dtype

        class Network(nn.Module):
            @nn.compact
            def __call__(self, images: Any) -> Any:
                x = images
                for i in range(DEPTH):
                    out = channels if i == DEPTH - 1 else WIDTH
                    if conv == "flax":
                        x = nn.Conv(out, (3, 3), dtype=dtype)(nn.relu(x) if i else x)
                    else:
                        x = Conv(x.shape[-1], out, dtype)(x, rectify=i > 0)
                return images - x

        network = Network()
        images = np.zeros((1, 16, 16, channels), np.float32)
        params = self.jax.jit(network.init)(self.jax.random.key(0), images)
        self.apply = self.jax.jit(lambda images, sigma: network.apply(params, images))
        return channels


def torch_network(fields: dict[str, Any], params: dict[str, np.ndarray]) -> Any:
    """A `PhotoDenoiser` in PyTorch: (images, sigma or None) to images, all NCHW."""
    import torch
    from torch import nn
    from torch.nn import functional as F

    features, level_features = fields["features"], fields["level_features"]
    multiple = 2 ** max(len(features), len(level_features))

    def conv(path: str) -> nn.Module:
        """3x3, or 2x2 with stride 2."""
        kernel = params[f"{path}/kernel"]  # HWIO
        window = kernel.shape[0]
        layer = nn.Conv2d(
            *kernel.shape[2:], window, 1 if window == 3 else 2, padding=window // 3, bias=False
        )
        layer.weight.data = torch.tensor(kernel.transpose(3, 2, 0, 1))
        return layer

    def first(path: str) -> nn.Module:
        """What takes 2x2 pixels: jaxdae has them channel by channel, PyTorch pixel by pixel."""
        layer = conv(path)
        weight = layer.weight.data.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        layer.weight.data = weight.contiguous()
        return layer

    def last(path: str) -> nn.Module:
        layer = conv(path)
        weight = layer.weight.data.unflatten(0, (4, -1)).transpose(0, 1).flatten(0, 1)
        layer.weight.data = weight.contiguous()
        return layer

    def up(path: str) -> nn.Module:
        kernel = params[f"{path}/kernel"]
        layer = nn.ConvTranspose2d(*kernel.shape[2:], 2, stride=2, bias=False)
        layer.weight.data = torch.tensor(kernel[::-1, ::-1].transpose(2, 3, 0, 1).copy())
        return layer

    class Block(nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.first, self.second = conv(f"{path}/conv_0"), conv(f"{path}/conv_1")

        def forward(self, x: Any) -> Any:
            return x + self.second(F.relu(self.first(x)))

    def stack(name: str) -> nn.Module:
        return nn.Sequential(*(Block(f"{name}_{i}") for i in range(fields["blocks"])))

    class Estimator(nn.Sequential):
        def __init__(self) -> None:
            layers = []
            for i in range(len(level_features)):
                down = f"level/down_{i}"
                layers += [conv(down) if i else first(down), nn.ReLU(), conv(f"level/conv_{i}")]
                layers += [nn.ReLU()]
            super().__init__(*layers, conv("level/output"))

        def forward(self, images: Any) -> Any:
            level = super().forward(F.pixel_unshuffle(images, 2)).abs().float()
            return F.interpolate(level, scale_factor=2 ** len(level_features))

    def pad(images: Any) -> Any:
        below, right = (-side % multiple for side in images.shape[2:])
        return F.pad(images, (0, right, 0, below), mode="reflect") if below or right else images

    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            levels = range(len(features) - 1)
            self.level = Estimator() if level_features else None
            self.stem, self.middle, self.output = first("stem"), stack("middle"), last("output")
            self.encode = nn.ModuleList(stack(f"encode_{i}") for i in levels)
            self.down = nn.ModuleList(conv(f"down_{i}") for i in levels)
            self.up = nn.ModuleList(up(f"up_{i}") for i in levels)
            self.decode = nn.ModuleList(stack(f"decode_{i}") for i in levels)

        def forward(self, images: Any, sigma: Any = None) -> Any:
            height, width = images.shape[2:]
            padded = pad(images)
            if sigma is None and self.level is not None:
                level = pad(self.level(padded)[:, :, :height, :width])
            else:
                level = torch.zeros(1) if sigma is None else sigma
                level = level.reshape(-1, 1, 1, 1).expand(len(images), 1, *padded.shape[2:])
            x, skips = self.stem(F.pixel_unshuffle(torch.cat([padded, level], 1), 2)), []
            for encode, down in zip(self.encode, self.down, strict=True):
                skips.append(encode(x))
                x = down(skips[-1])
            x = self.middle(x)
            for i, skip in reversed(list(enumerate(skips))):
                x = self.decode[i](self.up[i](x) + skip)
            noise = F.pixel_shuffle(self.output(x), 2)
            return images - noise[:, :, :height, :width].float()

    return Network().eval()


class Torch:
    """Channels last; eager, or under `torch.compile` at max-autotune with frozen parameters."""

    def __init__(self, setting: str, dtype: str) -> None:
        import torch

        self.torch, self.setting, self.dtype = torch, setting, getattr(torch, dtype)
        torch.set_float32_matmul_precision("high")

    def load(self, folder: Path) -> int:
        fields, params = read_network(folder)
        self.ready(self.network(fields, params))
        return fields["channels"]

    def network(self, fields: dict[str, Any], params: dict[str, np.ndarray]) -> Any:
        return torch_network(fields, params)

    def ready(self, network: Any) -> None:
        self.model = network.to(memory_format=self.torch.channels_last)
        if self.setting == "compile":
            import torch._inductor.config as inductor

            inductor.freezing = True
            mode = "max-autotune-no-cudagraphs"
            self.model = self.torch.compile(self.model, mode=mode, dynamic=False)

    def work(self, noisy: np.ndarray, sigma: float | None) -> Work:
        torch = self.torch
        images = torch.from_numpy(noisy.transpose(2, 0, 1)[None].copy())
        images = images.to(memory_format=torch.channels_last)
        level = None if sigma is None else torch.tensor([sigma], dtype=torch.float32)
        mixed = self.dtype != torch.float32

        def work() -> np.ndarray:
            with torch.inference_mode(), torch.autocast("cpu", self.dtype, enabled=mixed):
                return self.model(images, level).float().numpy()[0].transpose(1, 2, 0)

        return work

    def about(self) -> dict[str, str]:
        return {"torch": self.torch.__version__}


class DnCnnTorch(Torch):
    """DnCNN in PyTorch."""

    def network(self, fields: dict[str, Any], params: dict[str, np.ndarray]) -> Any:
        from torch import nn

        ends = [fields["channels"], *[WIDTH] * (DEPTH - 1), fields["channels"]]
        layers: list[Any] = []
        for i in range(DEPTH):
            layers += [nn.ReLU()] * (i > 0) + [nn.Conv2d(ends[i], ends[i + 1], 3, padding=1)]

        class Network(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.layers = nn.Sequential(*layers)

            def forward(self, images: Any, sigma: Any = None) -> Any:
                return images - self.layers(images)

        return Network().eval()


class OnnxRuntime:
    """jaxdae's ONNX file."""

    def __init__(self, setting: str, dtype: str) -> None:
        import onnxruntime

        self.onnxruntime = onnxruntime

    def load(self, folder: Path) -> int:
        providers = ["CPUExecutionProvider"]
        path = folder / "network.onnx"
        self.session = self.onnxruntime.InferenceSession(path, providers=providers)
        return read_network(folder)[0]["channels"]

    def work(self, noisy: np.ndarray, sigma: float | None) -> Work:
        level = {} if sigma is None else {"sigma": np.array([sigma], np.float32)}
        given = {"images": noisy[None], **level}
        return lambda: self.session.run(None, given)[0][0]

    def about(self) -> dict[str, str]:
        return {"onnxruntime": self.onnxruntime.__version__}


class Bm3d:
    """BM3D; its environment has neither JAX nor PyTorch."""

    def __init__(self, setting: str, dtype: str) -> None:
        self.threads = int(setting or 0)

    def load(self, folder: Path) -> int:
        return read_network(folder)[0]["channels"]

    def work(self, noisy: np.ndarray, sigma: float | None) -> Work:
        from benchmarks.bm3d_worker import restore

        return lambda: restore(noisy, SIGMA if sigma is None else sigma, self.threads)

    def about(self) -> dict[str, str]:
        from importlib.metadata import version

        return {"bm3d": version("bm3d")}


FRAMEWORKS: dict[str, Callable[[str, str], Any]] = {
    "jaxdae": Jaxdae,
    "torch": Torch,
    "onnxruntime": OnnxRuntime,
    "dncnn-torch": DnCnnTorch,
    "dncnn-flax": DnCnn,
    "dncnn-jaxdae": lambda setting, dtype: DnCnn(setting, dtype, "jaxdae"),
    "bm3d": Bm3d,
}


def image(side: int, channels: int) -> np.ndarray:
    """A noisy image of so many pixels: a smooth one and white Gaussian noise."""
    wave = np.sin(np.linspace(0, 20, side, dtype=np.float32))
    clean = 0.5 + 0.2 * wave[:, None, None] * wave[None, :, None]
    noise = np.random.default_rng(0).standard_normal((side, side, channels), np.float32)
    return clean + np.float32(SIGMA) * noise


def peak() -> float:
    """The largest resident memory of this process yet, in MB, on Linux.

    `getrusage` is of no use: it begins with the memory of the process that started this one.
    """
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:"))


def main() -> None:
    """Answers until stdin ends."""
    framework, _, setting = sys.argv[1].partition(":")
    replies = os.fdopen(os.dup(1), "w")  # stdout proper: what a framework prints goes to stderr
    os.dup2(2, 1)
    worker = FRAMEWORKS[framework](setting, sys.argv[2])
    channels, ready = 0, {}
    for line in sys.stdin:
        task = json.loads(line)
        answer: dict[str, Any] = {}
        if task["task"] == "about":
            answer = worker.about()
        elif task["task"] == "load":
            channels = worker.load(Path(task["folder"]))
        elif task["task"] == "peak":
            answer = {"megabytes": peak()}
        elif task["task"] == "run":
            np.save(task["restored"], worker.work(np.load(task["noisy"]), task.get("sigma"))())
        elif task["task"] == "once":
            worker.work(image(task["side"], channels), None)()
        else:
            side = task["side"]
            if side not in ready:
                ready[side] = worker.work(image(side, channels), None)
                ready[side]()
            calls, start = 0, time.perf_counter()
            while calls == 0 or time.perf_counter() - start < TURN_SECONDS:
                ready[side]()
                calls += 1
            answer = {"seconds": (time.perf_counter() - start) / calls}
        print(json.dumps(answer), file=replies, flush=True)


if __name__ == "__main__":
    main()
