"""The tab for photographs of `demo`: what it computes, its errors, and the tab in a browser."""

import contextlib
import io
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageCms

from experiments import demo, denoise
from experiments.playground import page, photographs
from experiments.playground.photographs import Photographs, Settings
from experiments.restore.networks import Network
from jaxdae import pretrained, tiling
from jaxdae.errors import InputError
from tests import browser
from tests.experiments.denoising import save, shipped_networks
from tests.experiments.test_demo import Session, ids, needs_gradio

RNG = np.random.default_rng(0)
PHOTO = RNG.integers(0, 256, (45, 70, 3), np.uint8)

jax.devices()  # all of them, before a command asks for one


@pytest.fixture(scope="module")
def shipped(tmp_path_factory):
    """The folder of the networks that come with the package, with small ones for photographs."""
    return shipped_networks(tmp_path_factory.mktemp("weights"), 100)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch, shipped):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrained, "FOLDER", shipped)
    return tmp_path


@pytest.fixture
def tab(tmp_path):
    return Photographs(tmp_path / "tab")


def metadata():
    exif = Image.Exif()
    exif[0x0110], exif[0x0112] = "a camera", 6  # to be turned by a quarter
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    return {"exif": exif, "icc_profile": profile, "dpi": (300, 300)}


KINDS = {
    "colour.png": lambda name: save(name, PHOTO),
    "gray.png": lambda name: save(name, PHOTO[..., 0]),
    "wide.png": lambda name: save(name, RNG.integers(0, 65536, (40, 31), np.uint16)),
    "clear.png": lambda name: save(name, np.dstack([PHOTO, PHOTO[..., 0]])),
    "equal.tif": lambda name: save(name, PHOTO[..., :1].repeat(3, 2)),
    "camera.jpg": lambda name: save(name, PHOTO, quality=80, **metadata()),
}


def command(path, settings):
    """The file that `denoise` writes."""
    flags = [("--strength", settings.strength), ("--blend", settings.blend)]
    flags += [("--noise-sigma", settings.noise)] * bool(settings.noise)
    words = [str(word) for flag in flags for word in flag]
    assert denoise.main([str(path), "--out", "out", "--overwrite", "--no-progress", *words]) == 0
    return Path("out", path.name)


@pytest.mark.parametrize("name", KINDS)
def test_writes_what_the_command_writes(tab, name):
    path = KINDS[name](name)
    for settings in (Settings(), Settings(0.7), Settings(1.3, 0.25), Settings(2, 0.5, 0.1)):
        found = tab.write(path, settings)
        assert found.name == f"{path.stem}-denoised{path.suffix}"
        assert found.read_bytes() == command(path, settings).read_bytes(), settings
    with Image.open(found) as image, Image.open(path) as before:
        assert image.mode == before.mode and image.format == before.format
        if name == "camera.jpg":
            assert image.getexif()[0x0110] == "a camera"
            assert image.info["icc_profile"] == before.info["icc_profile"]


def test_strength_and_noise_change_the_result(tab):
    path = KINDS["colour.png"]("a.png")

    def difference(**settings):
        with Image.open(tab.write(path, Settings(**settings))) as image:
            return np.abs(np.asarray(image).astype(int) - PHOTO).mean()

    assert len({difference(strength=strength) for strength in (0.5, 1.0, 2.0)} - {0}) == 3
    assert difference(blend=1) == 0
    assert difference(blend=1, noise=0.2) > 10


def test_large_photographs_are_denoised_in_windows(tab, monkeypatch):
    path = save("a.png", RNG.integers(0, 256, (211, 333, 3), np.uint8))
    settings, windows, seen = Settings(1.3, 0.25, 0.1), tiling.windows, []
    whole = tab.write(path, settings).read_bytes()
    monkeypatch.setattr(tiling, "windows", lambda *given: windows(*given, most=80 * 90))
    tab.show(path, Settings(0.9), seen.append)
    assert len(seen) > 8 and seen == sorted(seen) and seen[-1] == 1
    found, expected = (
        np.asarray(Image.open(io.BytesIO(file))).astype(int)
        for file in (tab.write(path, settings).read_bytes(), whole)
    )
    assert np.abs(found - expected).max() <= 1


def test_computes_only_what_has_changed(tab, monkeypatch):
    path, other, calls, apply = *(KINDS[name](name) for name in list(KINDS)[:2]), [], Network.apply
    monkeypatch.setattr(Network, "apply", lambda *given: calls.append(given[3]) or apply(*given))
    first = tab.show(path, Settings())
    assert tab.show(path, Settings()) == first and calls == [1]
    tab.write(path, Settings())
    blended = tab.show(path, Settings(blend=0.5))
    assert calls == [1] and blended.before == first.before and blended.after != first.after
    assert not first.after.exists() and blended.after.exists()
    tab.show(path, Settings(0.7))
    tab.show(path, Settings(0.7, noise=0.1))
    tab.show(other, Settings(0.7))
    tab.show(path, Settings(0.7))
    assert calls == [1, 0.7, 0.7, 0.7, 0.7]


def test_previews_are_the_photographs_and_shrink(tab, monkeypatch):
    smooth = np.add.outer(np.arange(60), np.arange(90)).astype(np.uint8)
    path = save("a.png", smooth)
    shown = tab.show(path, Settings(0.5))
    assert shown.size == (90, 60)
    assert shown.about.startswith("a.png, 90x60, gray, 8 bits, PNG. Denoised by photo-gray in ")
    with Image.open(shown.before) as before:
        assert np.abs(np.asarray(before).astype(int) - smooth).max() < 4
    monkeypatch.setattr(photographs, "PREVIEW_PIXELS", 60 * 90 // 4)
    small = Photographs(tab._folder).show(path, Settings())
    assert small.size == (45, 30) and "the download has the full size" in small.about
    monkeypatch.setattr(photographs, "PREVIEW_SIDE", 30)
    assert Photographs(tab._folder).show(path, Settings()).size == (30, 20)


def damaged(name):
    path = save(name, PHOTO)
    path.write_bytes(path.read_bytes()[:2000])
    return path


def text(name):
    Path(name).write_text("no image")
    return Path(name)


def cmyk(name):
    Image.fromarray(PHOTO).convert("CMYK").save(name)
    return Path(name)


def frames(name):
    first = Image.fromarray(PHOTO)
    first.save(name, save_all=True, append_images=[first])
    return Path(name)


def palette(name):
    Image.fromarray(PHOTO).quantize(20).save(name)
    return Path(name)


@pytest.mark.parametrize(
    ("make", "name", "message"),
    [
        (text, "a.png", "this file is not a readable image: give a PNG"),
        (damaged, "a.png", "'a.png' is no readable image"),
        (cmyk, "a.jpg", "'a.jpg' has CMYK colours: save it in gray or RGB"),
        (frames, "a.tif", "'a.tif' holds several frames"),
        (palette, "a.gif", "a GIF holds only 256 colours"),
        (lambda name: save(name, PHOTO), "a.png", "'a.png' is 70x45, but this page takes up to"),
    ],
)
def test_says_what_it_cannot_take(here, tab, monkeypatch, make, name, message):
    path = make(here / name)
    good = KINDS["gray.png"]("b.png")
    tab.show(good, Settings())
    with monkeypatch.context() as patch:
        if "takes up to" in message:
            patch.setattr(photographs, "MAX_PIXELS", 3000)
        with pytest.raises(InputError, match=message) as caught:
            tab.show(path, Settings())
    assert str(here) not in str(caught.value) and "\n" not in str(caught.value)
    tab.show(good, Settings())


def test_refuses_bombs(here, tab):
    Image.new("1", (1 << 13, (1 << 12) + 1)).save(here / "huge.png")
    with pytest.raises(InputError, match=r"'huge\.png' is 8192x4097, 4,195,328 bytes from"):
        tab.show(here / "huge.png", Settings())


def test_takes_only_values_of_its_ranges():
    checked = page.photographs_page.checked
    assert checked([0.7, 0.2, 0.1]) == Settings(0.7, 0.2, 0.1)
    assert checked([0, 2, -1]) == Settings(0.5, 1, 0)
    assert checked([3, -1, 1]) == Settings(2, 0, 0.5)


def shown_text(built):
    return " ".join(str(c["props"].get("value")) for c in built.get_config_file()["components"])


@needs_gradio
def test_says_which_network_is_missing(here, tab, monkeypatch, shipped):
    import gradio as gr

    def built():
        with gr.Blocks() as blocks:
            page.photographs_page.tab(tab, 0.0)
        return blocks

    controls = {"photo-file", "photo-view", "photo-controls", "photo-save"}
    assert ids(built()) >= controls and "lacking" not in ids(built())
    few = shutil.copytree(shipped, here / "few", ignore=shutil.ignore_patterns("photo.*"))
    monkeypatch.setattr(pretrained, "FOLDER", few)
    assert ids(built()) >= controls | {"lacking"}
    assert "no network for photographs in colour (photo): install" in shown_text(built())
    tab.show(KINDS["gray.png"]("a.png"), Settings())
    with pytest.raises(InputError, match="no network for photographs in colour"):
        tab.show(KINDS["colour.png"]("b.png"), Settings())
    for path in few.glob("photo*"):
        path.unlink()
    assert not ids(built()) & controls
    assert "photographs in colour or gray photographs (photo, photo-gray)" in shown_text(built())


@pytest.mark.parametrize("noise", ["-0.1", "0.6", "nan"])
@needs_gradio
def test_says_that_the_noise_is_out_of_range(capsys, noise):
    assert demo.main(["--add-noise", noise]) == 2
    said = capsys.readouterr().err
    assert f"--add-noise {float(noise)} must be from 0 to 0.5" in said and said.count("\n") == 1


# --- the tab in a browser ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def playwright():
    if browser.find() is None:
        pytest.skip("Chromium is not installed")
    pytest.importorskip("gradio")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        yield playwright


@contextlib.contextmanager
def opened(playwright, *arguments, **options):
    """The page, open."""
    session = Session(*arguments, **options)
    try:
        session.begin(playwright)
        yield session
    finally:  # the browser ends with playwright
        session.process.kill()
        session.process.communicate()


@pytest.fixture(scope="module")
def session(playwright, tmp_path_factory, shipped):
    with opened(playwright, tmp_path_factory.mktemp("page"), weights=shipped) as session:
        session.tab("Photographs")
        yield session


def upload(session, path):
    session.page.locator("#photo-file input[type=file]").set_input_files(path)


def control(session, name):
    return session.page.locator("#photo-controls").get_by_label(name)


def settings(session):
    """What the controls say."""
    outputs = session.page.locator("#photo-controls output").all_inner_texts()
    return Settings(*map(float, outputs))


def downloaded(session, path):
    with session.page.expect_download() as download:
        session.page.locator("#photo-save").click()
    download.value.save_as(path)
    return download.value.suggested_filename


@pytest.mark.slow
def test_page_denoises_a_photograph_and_hands_it_back(session, here):
    assert session.page.locator("#photo-save").is_disabled()
    path = KINDS["camera.jpg"]("camera.jpg")
    upload(session, path)
    session.page.wait_for_selector("#after")
    assert "camera.jpg, 45x70, colour, 8 bits, JPEG" in session.page.inner_text("#photo-about")
    sizes = "['before', 'after'].map(name => document.getElementById(name).naturalWidth)"
    session.page.wait_for_function(f"{sizes}.every(width => width === 45)")
    assert downloaded(session, "first.jpg") == "camera-denoised.jpg"
    assert Path("first.jpg").read_bytes() == command(path, Settings()).read_bytes()
    for name, value, expected in (
        ("Strength", -0.5, Settings(0.71)),
        ("Blend", 0.25, Settings(0.71, 0.25)),
        ("Add noise", 0.1, Settings(0.71, 0.25, 0.1)),
    ):
        range_ = control(session, name)
        session.after("after", lambda range_=range_, value=value: range_.fill(str(value)))
        assert settings(session) == expected
        downloaded(session, "next.jpg")
        assert Path("next.jpg").read_bytes() == command(path, expected).read_bytes(), expected


@pytest.mark.slow
def test_page_listens_to_the_keyboard(session):
    upload(session, KINDS["gray.png"]("gray.png"))
    session.page.wait_for_function(
        "document.querySelector('#photo-about').innerText.includes('photo-gray')"
    )
    strength = control(session, "Strength")
    session.after("after", lambda: strength.press("End"))
    assert settings(session).strength == 2
    session.after("after", lambda: strength.press("Home"))
    assert settings(session).strength == 0.5
    downloaded(session, "gray-denoised.png")
    expected = command(Path("gray.png"), settings(session)).read_bytes()
    assert Path("gray-denoised.png").read_bytes() == expected


@pytest.mark.slow
def test_page_moves_the_line(session):
    def cut():
        return float(
            session.page.evaluate(
                "getComputedStyle(document.getElementById('after')).clipPath"
                ".match(/([\\d.]+)px\\)$/)[1]"
            )
        )

    box = session.page.locator(".compare").bounding_box()
    assert cut() == pytest.approx(box["width"] / 2, abs=1)
    mouse, middle = session.page.mouse, box["y"] + box["height"] / 4
    mouse.move(box["x"] + box["width"] / 2, middle)
    mouse.down()
    mouse.move(box["x"] + box["width"] * 0.9, middle, steps=5)
    line = session.page.locator(".compare input")
    for act, at in (
        (mouse.up, 0.9),
        (lambda: line.press("Home"), 0),
        (lambda: line.press("End"), 1),
    ):
        act()
        session.page.wait_for_timeout(300)  # the browser gathers the mouse's moves
        assert cut() == pytest.approx(at * box["width"], abs=0.03 * box["width"])
    session.page.get_by_label("Pixel by pixel").check()
    assert session.page.locator("#after").bounding_box()["width"] == 70
    session.page.get_by_label("Pixel by pixel").uncheck()


@pytest.mark.slow
def test_page_says_what_is_wrong(session, here):
    before = session.source("after")
    for make, name, message in (
        (text, "text.png", "This file is not a readable image"),
        (cmyk, "cmyk.jpg", "'cmyk.jpg' has CMYK colours"),
    ):
        upload(session, make(here / name))
        session.page.wait_for_function(
            "text => document.querySelector('#photo-error').innerText.includes(text)", arg=message
        )
        assert session.source("after") == before
    session.after("after", lambda: control(session, "Strength").press("ArrowRight"))
    assert session.page.inner_text("#photo-error") == ""


@pytest.mark.slow
def test_page_asks_nobody_else_and_deletes_the_photographs(session):
    session.end()


@pytest.mark.slow
def test_page_opens_the_tab_with_noise_and_fits_a_phone(playwright, tmp_path, shipped):
    words, options = ["--add-noise", "0.15"], {"weights": shipped, "ready": "#photo-in"}
    with opened(playwright, tmp_path, *words, **options) as session:
        assert settings(session) == Settings(noise=0.15)
        session.page = session.open(
            viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True
        )
        upload(session, save(tmp_path / "wide.png", PHOTO.repeat(9, 1)))
        session.page.wait_for_selector("#after")
        session.page.get_by_label("Pixel by pixel").check()
        wide = session.page.evaluate("[document.documentElement.scrollWidth, innerWidth]")
        assert wide[0] <= wide[1] == 360
