"""A page to play with: noise on a digit, what the network makes of it, its latent vector by hand.

    python -m experiments.demo
    python -m experiments.demo --model runs/default-sigma0.5

Opens in the browser, and is served by this machine to itself alone (127.0.0.1): nothing comes from
a network or goes to one. Draw or upload a digit, or take a test image; move the noise, and the
numbers that the encoder makes of the noisy image. Ctrl-C ends it.
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
from typing import Any

from jaxdae.errors import InputError

from . import program
from .common import cli
from .common.guard import Stopped
from .playground.page import CSS, MAX_UPLOAD, build

PROGRAM = program("demo")


HOST, PORT, PORTS = "127.0.0.1", 7860, 100  # the first port tried, and how many


GRADIO = (6, 31)  # the oldest that has all that is used here


@dataclass(frozen=True)
class Arguments:
    """What the command line takes."""

    model: str = "digits-blind"
    """A network that comes with the package (digits-blind, digits-unet, digits-sigma-0.5, digits-sigma-1.0), the folder of a
    finished run, or a model's .npz file."""
    port: int | None = None
    """Port of the page; the first free one from 7860 on if not given."""
    browser: bool = True
    """Open the page in the browser."""
    cache: bool = True
    """Keep compiled programs in the user's cache folder, so that the next start is sooner."""


def parse(argv: Sequence[str]) -> Arguments:
    """Parses the command line.

    Raises:
      InputError: what cannot be parsed, in one line.
    """
    return cli.parse(Arguments, argv, prog=PROGRAM, description=(__doc__ or "").strip())


def check_gradio() -> None:
    """Raises `InputError` if gradio is missing or too old."""
    try:
        found = importlib.metadata.version("gradio")
    except importlib.metadata.PackageNotFoundError:
        found = ""
    if not found or tuple(map(int, found.split(".")[:2])) < GRADIO:
        here = f", and {found} is here" if found else ""
        raise InputError(
            f"the page needs gradio {GRADIO[0]}.{GRADIO[1]} or newer{here}: pip install -U gradio"
        )


def free_port(wanted: int | None) -> int:
    """The port asked for, or the first free one from `PORT` on.

    Raises:
      InputError: the port asked for is taken or none, or all are taken.
    """
    if wanted is not None and not 1 <= wanted <= 65535:
        raise InputError(f"--port {wanted} must be from 1 to 65535, such as {PORT}")
    reason = None
    for port in range(PORT, PORT + PORTS) if wanted is None else (wanted,):
        with socket.socket() as probe:
            if os.name == "posix":  # as the server does: a port that was left a moment ago is free
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((HOST, port))
                return port
            except OSError as error:
                reason = error.strerror
    if wanted is None:
        raise InputError(f"ports {PORT} to {PORT + PORTS - 1} are taken: give another as --port")
    raise InputError(f"--port {wanted} cannot be had ({reason}): give another, or none")


def run(arguments: Arguments) -> None:
    """Serves the page until it is interrupted.

    Raises:
      InputError: gradio is missing, there is no such network, or the port is taken.
    """
    check_gradio()
    port = free_port(arguments.port)
    from .playground.playground import Playground

    play = Playground(arguments.model)
    if play.missing:
        print(f"no test images, for {play.missing}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="jaxdae-demo-") as folder:
        os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
        os.environ["GRADIO_TEMP_DIR"] = folder  # what is uploaded is gone at the end
        for name in ("NO_PROXY", "no_proxy"):  # gradio asks its own page whether it is there
            os.environ[name] = ",".join(filter(None, [os.environ.get(name), HOST]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            page = build(play)
            import gradio as gr

            page.launch(
                server_name=HOST,
                server_port=port,
                share=False,
                quiet=True,
                prevent_thread_lock=True,
                max_file_size=MAX_UPLOAD,
                ssr_mode=False,
                run_history=False,
                footer_links=[],
                css=CSS,
                # System fonts: gradio's own themes fetch theirs.
                theme=gr.themes.Default(
                    primary_hue="indigo",
                    font=("system-ui", "sans-serif"),
                    font_mono=("ui-monospace", "monospace"),
                ),
            )
        try:
            print(f"{arguments.model} is at http://{HOST}:{port} until Ctrl-C", flush=True)
            if arguments.browser:
                webbrowser.open(f"http://{HOST}:{port}")
            threading.Event().wait()
        finally:
            page.close(verbose=False)


def main(argv: Sequence[str] | None = None) -> int:
    """The command: 2 bad input, 130 ended by Ctrl-C, 143 by SIGTERM."""

    def terminated(number: int, frame: Any) -> None:
        raise Stopped(number)

    def work() -> None:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        signal.signal(signal.SIGTERM, terminated)
        cli.prepare_jax(1, arguments.cache)
        run(arguments)

    return cli.status(work, "mend that, and try again", interrupted="ended")


if __name__ == "__main__":
    sys.exit(main())
