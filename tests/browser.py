"""A headless Chromium for the tests of pages: `with chromium() as browser: see(browser, address)`.

Tests that need it are marked with `needs_chromium`, and skipped where there is none.
"""

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update"),
)


def find() -> str | None:
    """Where the binary is, if there is one."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    find() is None or importlib.util.find_spec("playwright") is None,
    reason="no chromium, or no playwright to drive it",
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A browser of playwright's, closed in the end."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find(), args=list(FLAGS))
        try:
            yield browser
        finally:
            browser.close()


class Seen(NamedTuple):
    """What a page was seen to do.

    Fields:
      complaints: errors and warnings of the console, and exceptions.
      requests: what was asked for, but for data: and blob: addresses.
      width: of all there is to scroll, in CSS pixels.
      background: of the body, (red, green, blue).
      ink: of its text, the same.
      images: how many there are, and how many of them could not be shown.
    """

    complaints: list[str]
    requests: list[str]
    width: int
    background: tuple[int, ...]
    ink: tuple[int, ...]
    images: tuple[int, int]


def see(browser: Any, address: str, width: int = 1280, dark: bool = False) -> Seen:
    """Opens a page in a window so wide, and says what it saw."""
    context = browser.new_context(
        viewport={"width": width, "height": 844}, color_scheme="dark" if dark else "light"
    )
    page, complaints, requests = context.new_page(), [], []
    page.on(
        "console",
        lambda said: complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on(
        "request",
        lambda asked: (
            None if asked.url.startswith(("data:", "blob:")) else requests.append(asked.url)
        ),
    )
    page.goto(address)
    page.wait_for_load_state()

    def color(name: str) -> tuple[int, ...]:
        text = page.evaluate(f"getComputedStyle(document.body).{name}")
        return tuple(int(part) for part in text[text.index("(") + 1 : -1].split(",")[:3])

    images = page.evaluate(
        "(() => { const all = [...document.images]; "
        "return [all.length, all.filter(i => !(i.complete && i.naturalWidth > 0)).length] })()"
    )
    seen = Seen(
        complaints,
        requests,
        page.evaluate("document.documentElement.scrollWidth"),
        color("backgroundColor"),
        color("color"),
        tuple(images),
    )
    context.close()
    return seen
