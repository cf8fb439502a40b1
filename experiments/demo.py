"""Opens a page to try networks: denoise a digit or a photograph, and change a latent vector.

    python -m experiments.demo
    python -m experiments.demo --model runs/default-sigma0.5
    python -m experiments.demo --add-noise 0.1

The page opens in the browser. Only this computer can reach it (127.0.0.1), and it sends nothing to
the internet. Draw or upload a digit, or choose a test image; move the sliders of the noise and of
the latent vector. The second tab denoises a photograph: compare before and after, set the strength,
and download the result. Ctrl-C ends the command.
"""

import importlib.metadata
import os
import signal
import socket
import sys
import tempfile
import threading
import warnings
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jaxdae.errors import InputError

from . import program
from .common import cli
from .common.guard import Stopped
from .playground.page import CSS, MAX_UPLOAD, build
from .playground.photographs_page import NOISES

PROGRAM = program("demo")
HOST, PORT, PORTS = "127.0.0.1", 7860, 100  # the first port, and how many are tried
GRADIO = (6, 31)  # the oldest version that works


@dataclass(frozen=True)
class Arguments:
    """The flags."""

    model: str = "digits-blind"
    """A network that comes with jaxdae (digits-blind, digits-unet, digits-sigma-0.5,
    digits-sigma-1.0), the folder of a finished run, or a model's .npz or .safetensors file."""
    add_noise: float | None = None
    """Open the tab for photographs, and add noise of this standard deviation, where white is 1."""
    port: int | None = None
    """Port of the page. The default is the first free port from 7860 on."""
    browser: bool = True
    """Open the page in the browser."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder: the next start is sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: the command line is wrong.
    """
    arguments = cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())
    noise, (low, high) = arguments.add_noise, NOISES
    if noise is not None and not low <= noise <= high:
        raise InputError(
            f"--add-noise {noise} must be from {low:g} to {high:g}: give a number such as 0.1"
        )
    return arguments


def check_gradio() -> None:
    """Raises an `InputError` if gradio is not installed or too old."""
    try:
        found = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if not found or tuple(map(int, found.split(".")[:2])) < GRADIO:
        installed = f", but {found} is installed" if found else ", which is not installed"
        raise InputError(
            f"the page needs gradio {GRADIO[0]}.{GRADIO[1]} or newer{installed}: pip install -U "
            "gradio"
        )


def free_port(wanted: int | None) -> int:
    """The wanted port, or the first free one from `PORT` on.

    Raises:
      InputError: the port is not possible or not free, or no port is free.
    """
    if wanted is not None and not 1 <= wanted <= 65535:
        raise InputError(f"--port {wanted} must be from 1 to 65535: give one such as {PORT}")
    reason = None
    for port in range(PORT, PORT + PORTS) if wanted is None else (wanted,):
        with socket.socket() as probe:
            if os.name == "posix":  # like the server: a port that was closed a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return port
            except OSError as error:
                reason = error.strerror
    if wanted is None:
        raise InputError(f"ports {PORT} to {PORT + PORTS - 1} are in use: give another --port")
    raise InputError(f"--port {wanted} cannot be used ({reason}): choose another, or leave it out")


def run(arguments: Arguments) -> None:
    """Serves the page until it is interrupted.

    Raises:
      InputError: gradio is not installed, there is no such network, or the port is not free.
    """
    check_gradio()
    port = free_port(arguments.port)
    from .playground.backend import Playground
    from .playground.photographs import Photographs

    play = Playground(arguments.model)
    if play.missing:
        print(f"warning: there are no test images: {play.missing}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="jaxdae-demo-") as folder:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder  # uploads are deleted at the end
        for name in ("NO_PROXY", "no_proxy"):  # gradio requests its own page
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            photographs = Path(folder, "photographs")
            page = build(play, Photographs(photographs), arguments.add_noise)
            import gradio as gr

            page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_UPLOAD,
                allowed_paths=[str(photographs)],
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                css=CSS,
                # System fonts: those of gradio's themes are loaded from the internet.
                theme=gr.themes.Default(
                    primary_hue="indigo",
                    font=("system-ui", "sans-serif"),
                    font_mono=("ui-monospace", "monospace"),
                ),
            )
        try:
            print(f"{arguments.model} is at http://{HOST}:{port} (Ctrl-C ends it)", flush=True)
            if arguments.browser:
                webbrowser.open(f"http://{HOST}:{port}")
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 2 wrong input, 130 ended by Ctrl-C, 143 by SIGTERM."""

    def terminated(number: int, frame: Any) -> None:
        raise Stopped(number)

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        signal.signal(signal.SIGTERM, terminated)
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "fix this, and try again", interrupted="ended")


if __name__ == "__main__":
    sys.exit(main())
