"""The page of `demo`: pictures made into digits, what the page shows, and the page in a browser."""

import base64
import importlib.metadata
import importlib.util
import io
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image, ImageDraw

from experiments import demo
from experiments.playground import backend, page, uploads
from jaxdae import corruption, data, model, pretrained
from jaxdae.errors import InputError
from jaxdae.recognition import read_digits
from tests import browser

TEST = data.load("mnist").test
SEVEN = [[(20, 20), (75, 20), (45, 85)]]

needs_gradio = pytest.mark.skipif(
    importlib.util.find_spec("gradio") is None, reason="gradio is not installed"
)


# --- pictures made into digits -----------------------------------------------------------------


def picture(image, size=280, paper=215, ink=50, noise=5.0):
    """A digit as ink on paper, with the grain and the shade of a photograph, RGB."""
    rng = np.random.default_rng(0)
    large = np.asarray(Image.fromarray(image[..., 0]).resize((size, size), Image.BICUBIC)) / 255
    page = np.pad(large, ((size // 4, size // 6), (size // 8, size)))
    page = paper + (ink - paper) * page + np.linspace(-15, 15, page.shape[1])
    page += rng.normal(0, noise, page.shape)
    return np.repeat(page.clip(0, 255).astype(np.uint8)[..., None], 3, 2)


def opened(path, pixels, **options):
    Image.fromarray(pixels).save(path, **options)
    return uploads.open_image(path)


def test_a_digit_of_mnist_stays_as_it_is(tmp_path):
    for image in TEST.images[:50]:
        found = uploads.digit(opened(tmp_path / "a.png", image[..., 0]))
        np.testing.assert_array_equal(found, image)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_ink_on_paper_becomes_the_digit_that_it_was(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    found = np.stack([uploads.digit(opened(path, picture(x))) for x in TEST.images[:12]])
    assert found.dtype == np.uint8 and found.shape == (12, 28, 28, 1)
    truth = TEST.images[:12] / 255
    assert (read_digits(found / 255) == TEST.labels[:12]).mean() >= 0.95
    assert np.mean((found / 255 - truth) ** 2) < 0.02 < np.mean(truth**2)


def test_is_laid_out_as_mnist_is(tmp_path):
    for image in TEST.images[:12]:
        found = uploads.digit(opened(tmp_path / "a.png", picture(image)))[..., 0] / 255
        rows, columns = np.nonzero(found)
        assert max(np.ptp(rows), np.ptp(columns)) + 1 == uploads.BOX
        centre = np.array([found.sum(1) @ np.arange(28), found.sum(0) @ np.arange(28)])
        np.testing.assert_allclose(centre / found.sum(), 14, atol=0.51)
        assert found.max() == 1 and found[0].max() == 0


def test_light_or_dark_transparent_or_turned_is_one_digit(tmp_path):
    page = picture(TEST.images[0], noise=0)
    upright = uploads.digit(opened(tmp_path / "a.png", page)).astype(int)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter, clockwise
    alpha = np.zeros((*page.shape[:2], 4), np.uint8)
    alpha[..., 3] = picture(TEST.images[0], paper=0, ink=255, noise=0)[..., 0]
    white = alpha.copy()
    white[..., :3] = 255
    wide = page[..., 0].astype(np.uint16) * 100  # of 16 bits, and dark
    for name, pixels, options in [
        ("light.png", 255 - page, {}),
        ("turned.png", np.rot90(page), {"exif": exif}),
        ("black.png", alpha, {}),
        ("white.png", white, {}),
        ("deep.png", wide, {}),
    ]:
        found = uploads.digit(opened(tmp_path / name, np.ascontiguousarray(pixels), **options))
        assert np.abs(found - upright).mean() < 4, name
    blue = np.stack([page[..., 0] // 2, page[..., 0] // 2, page[..., 0]], -1)
    assert np.abs(uploads.digit(opened(tmp_path / "b.png", blue)) - upright).mean() < 4


def test_a_thin_stroke_is_thickened_and_a_thick_one_is_not():
    def line(width):
        sheet = Image.new("RGBA", (600, 600), "white")
        ImageDraw.Draw(sheet).line([(300, 60), (300, 540)], "black", width)
        return uploads.digit(sheet)[14, :, 0].sum() / 255  # its width in pixels of 28

    assert line(3) == pytest.approx(uploads.THIN, abs=0.4)
    assert line(20) == pytest.approx(uploads.THIN, abs=0.4)
    assert line(120) == pytest.approx(5, abs=0.4)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("text.png", b"no image", "is not a readable image"),
        ("empty.png", b"", "is not a readable image"),
        ("cut.png", None, "is not a readable image"),
        ("vector.svg", b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a readable image"),
    ],
)
def test_says_what_is_no_image(tmp_path, name, content, message):
    if content is None:
        file = io.BytesIO()
        Image.fromarray(picture(TEST.images[0])).save(file, "PNG")
        content = file.getvalue()[:5000]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        uploads.open_image(tmp_path / name)
    assert str(tmp_path) not in str(caught.value) and "\n" not in str(caught.value)


def test_says_that_an_image_is_blank_or_too_large(tmp_path):
    for pixels in (np.full((90, 70), 128), np.zeros((28, 28)), np.full((1, 1), 255)):
        with pytest.raises(InputError, match="shows no digit"):
            uploads.digit(opened(tmp_path / "blank.png", pixels.astype(np.uint8)))
    Image.new("1", (1 << 13, (1 << 12) + 1)).save(tmp_path / "huge.png")
    with pytest.raises(InputError, match="this image is 8192x4097, 4,195,328 bytes from"):
        uploads.open_image(tmp_path / "huge.png")


def test_other_images_are_scaled(tmp_path):
    pixels = np.zeros((60, 90, 3), np.uint8)
    pixels[:, 15:75, 0] = 255  # the square in the middle is red
    image = opened(tmp_path / "a.png", pixels)
    found = uploads.scaled(image, (32, 32, 3))
    assert found.shape == (32, 32, 3) and found.dtype == np.uint8
    # Pixels at the edge know a little of what was cut off.
    np.testing.assert_allclose(found, np.broadcast_to([255, 0, 0], (32, 32, 3)), atol=20)
    assert uploads.scaled(image, (16, 24, 1)).shape == (16, 24, 1)


# --- drawings ----------------------------------------------------------------------------------

DRAWN = {
    7: SEVEN,
    1: [[(50, 10), (50, 90)]],
    4: [[(60, 10), (20, 60), (80, 60)], [(60, 30), (60, 95)]],
    0: [[(50 + 25 * np.sin(t), 50 - 35 * np.cos(t)) for t in np.linspace(0, 6.3, 40)]],
    5: [[(75, 12), (35, 12), (32, 45), (60, 42), (72, 62), (60, 85), (28, 82)]],
}


def test_a_drawing_looks_like_mnist_however_large_it_is():
    found = np.stack([uploads.drawing(strokes) for strokes in DRAWN.values()])
    assert read_digits(found / 255).tolist() == list(DRAWN)
    half = [[[(x / 2, y / 2) for x, y in stroke] for stroke in s] for s in DRAWN.values()]
    small = np.stack([uploads.drawing(strokes) for strokes in half])
    assert np.abs(small.astype(int) - found).mean() < 5
    ink, usual = found.mean((1, 2, 3)), TEST.images.reshape(len(TEST.images), -1).mean(1)
    assert (ink > np.percentile(usual, 5)).all() and (ink < np.percentile(usual, 95)).all()


def test_a_dot_stays_one():
    dot = uploads.drawing([[(5, 90)]])
    rows, columns, _ = np.nonzero(dot)
    assert np.ptp(rows) < 5 and np.ptp(columns) < 5 and dot[14, 14] == 255


@pytest.mark.parametrize(
    "strokes", [[], [[]], [[(1, 2, 3)]], [[("a", 1)]], [[(float("nan"), 1)]], None, [[(1e9, 0)]]]
)
def test_refuses_what_is_no_drawing(strokes):
    with pytest.raises(InputError, match="strokes must"):
        uploads.drawing(strokes)


# --- what the page shows -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind():
    return backend.Playground("digits-blind")


def test_restores_and_redraws_as_the_library_does(blind):
    clean, (network, params) = TEST.images[3], pretrained.load("digits-blind")
    found = blind.restore(clean, 5, 0.4)

    @jax.jit
    def expected(clean):
        noisy = corruption.gaussian(0.4)(jax.random.key(5), clean[None])
        latent = network.apply({"params": params}, noisy, method="encode")
        return noisy[0], network.apply({"params": params}, noisy)[0], latent[0]

    for value, name in zip(expected(clean / np.float32(255)), found._fields, strict=False):
        np.testing.assert_allclose(getattr(found, name), value, atol=1e-3)
    image, prediction = blind.decode(found.latent)
    np.testing.assert_allclose(image, found.denoised, atol=1e-4)
    assert prediction[0] == found.predictions[2][0] == TEST.labels[3]
    assert found.predictions[0][1] > 0.9 and 0 <= found.predictions[1][1] <= 1
    changed = found.latent.copy()
    changed[2] += 3
    assert np.abs(blind.decode(changed)[0] - image).max() > 0.1


def test_noise_grows_with_its_strength_and_changes_with_its_seed(blind):
    clean = TEST.images[0]
    weak, strong, other = (
        blind.restore(clean, seed, strength).noisy
        for seed, strength in [(0, 0.1), (0, 0.2), (1, 0.2)]
    )
    inside = (weak > 0) & (weak < 1) & (strong > 0) & (strong < 1) & (clean == 0)
    np.testing.assert_allclose((strong - 0.5)[inside], 2 * (weak - 0.5)[inside], atol=1e-5)
    assert not np.allclose(other, strong)
    np.testing.assert_array_equal(
        blind.restore(clean, 0, 99).noisy, blind.restore(clean, 0, 1.5)[0]
    )


def test_sliders_span_what_test_digits_have(blind):
    assert blind.sliders == 16 and blind.ranges.shape == (16, 2)
    latents = np.stack([blind.restore(x, 1, blind.noise.start).latent for x in TEST.images[:200]])
    inside = (latents > blind.ranges[:, 0]) & (latents < blind.ranges[:, 1])
    assert inside.mean() > 0.95
    widths = np.ptp(blind.ranges, 1)
    assert (widths < 3 * np.ptp(latents, 0)).all()
    low, high = backend.latent_ranges(np.ones((5, 3))).T
    np.testing.assert_allclose([low, high], [[0.5] * 3, [1.5] * 3])
    ranges = np.array([[-1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0]])
    wider = backend.widened(ranges, np.array([0.0, 2.0, -3.0]))
    np.testing.assert_array_equal(wider, [[-1, 1], [-1, 2], [-3, 1]])


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        ({}, ("gaussian", 0.5, (), 0.75)),
        ({"sigma": [0.15, 1.05], "mean": 0.5}, ("gaussian", 0.5, (0.15, 1.05), 0.6)),
        ({"corruption": "masking", "strength": [0.3]}, ("masking", 0.5, (0.3,), 0.3)),
        ({"corruption": "identity", "sigma": [0.5]}, ("gaussian", 0.0, (0.0,), 0.0)),
        ({"sigma": [7.0]}, ("gaussian", 0.5, (7.0,), 1.5)),
    ],
)
def test_knows_the_noise_from_the_card(recipe, expected):
    assert backend.noise_of(recipe) == expected


def test_knows_mnist_by_its_name():
    for name in ("mnist", "tfds:mnist", "idx:/data/MNIST", "npz:mnist.npz"):
        assert backend.is_mnist(name), name
    for name in ("tfds:fashion_mnist", "idx:fashion-mnist", "tfds:kmnist", "folder:faces"):
        assert not backend.is_mnist(name), name


def card(folder, recipe, **fields):
    """A network that has learnt nothing, in files."""
    network = model.build(fields.pop("architecture", "strided"), **fields)
    images, rng = np.zeros((1, *network.example.shape[1:])), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)["params"]
    params = jax.tree.map(lambda x: rng.normal(0, 0.1, x.shape).astype(np.float32), shapes)
    pretrained.save("net", network, params, {"recipe": recipe}, folder)
    return str(folder / "net.npz")


@pytest.fixture(scope="module")
def colour(tmp_path_factory):
    folder = tmp_path_factory.mktemp("colour")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), np.uint8)
    np.savez(folder / "images.npz", x_train=images, x_test=images[:5])
    recipe = {"dataset": f"npz:{folder / 'images.npz'}", "corruption": "masking", "strength": [0.2]}
    return card(folder, recipe, image_size=(32, 32), channels=3, features=(4, 8), latent_dim=6)


@pytest.mark.slow
@needs_gradio
def test_shows_other_images_without_a_sheet_to_draw_on(colour):
    play = backend.Playground(colour)
    assert (play.shape, play.digits, play.sliders, len(play.test)) == ((32, 32, 3), False, 6, 5)
    restored = play.restore(play.test.images[0], 0, 0.5)
    assert restored.denoised.shape == (32, 32, 3) and restored.predictions is None
    assert np.mean((restored.noisy == 0).all(-1)) == pytest.approx(0.5, abs=0.1)
    assert "32x32 pixels" in page.upload_text(play)
    assert ids(page.build(play)) >= {"upload", "strength", "surprise", "latent"}
    assert "sheet" not in ids(page.build(play))


@needs_gradio
def test_shows_no_sliders_without_a_latent_of_that_size(tmp_path, blind):
    assert {"latent", "back", "sheet"} <= ids(page.build(blind))
    play = backend.Playground("digits-unet")
    assert play.sliders == 0 and play.digits
    assert ids(page.build(play)) & {"latent", "back", "sheet"} == {"sheet"}
    restored = play.restore(TEST.images[0], 0, 0.5)
    clean = TEST.images[0] / 255
    assert np.mean((restored.denoised - clean) ** 2) < np.mean((restored.noisy - clean) ** 2) / 5
    path = card(tmp_path, {}, architecture="dense", features=(4,), latent_dim=65)
    assert backend.Playground(path).sliders == 0


@needs_gradio
def test_shows_what_it_can_without_the_data_set(tmp_path):
    path = card(tmp_path, {"dataset": f"npz:{tmp_path / 'mnist'}"}, features=(4,), latent_dim=3)
    play = backend.Playground(path)
    assert play.test is None and "is no file" in play.missing
    assert play.sliders == 3 and play.digits
    assert "surprise" not in ids(page.build(play))


def ids(page):
    return {c["props"].get("elem_id") for c in page.get_config_file()["components"]} - {None, ""}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--model", "none"], "--model none is no model"),
        (["--model", "digit-classifier"], "is not a denoiser"),
        (["--model", "{colorize}"], "cannot be shown, because it removes grayscale"),
        (["--model", "{damaged}"], '"recipe" in its model card is damaged'),
        (["--model", "{channels}"], "its images have 2 channels"),
        (["--port", "{taken}"], "--port {taken} cannot be used (Address already in use)"),
        (["--port", "0"], "--port 0 must be from 1 to 65535"),
        (["--port", "many"], "--port"),
        (["--what"], "--what"),
    ],
)
@needs_gradio
def test_says_what_is_wrong_in_one_line(tmp_path, capsys, words, message):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        small = {"features": (4,), "latent_dim": 3}
        places = {
            "taken": other.getsockname()[1],
            "colorize": lambda: card(tmp_path, {"corruption": "grayscale"}, **small),
            "damaged": lambda: card(tmp_path, {"sigma": "high"}, **small),
            "channels": lambda: card(tmp_path, {}, image_size=(8, 8), channels=2, **small),
        }
        made = {k: v() if callable(v) and "{" + k in str(words) else v for k, v in places.items()}
        assert demo.main([*(word.format(**made) for word in words), "--no-browser"]) == 2
    said = capsys.readouterr()
    assert message.format(**made) in said.err
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.out == ""


def test_says_what_to_install(monkeypatch, capsys):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    for found, here in (
        (missing, ", which is not installed"),
        (lambda name: "5.49.1", ", but 5.49.1 is installed"),
    ):
        monkeypatch.setattr(importlib.metadata, "version", found)
        assert demo.main([]) == 2
        said = capsys.readouterr().err
        assert said == (
            f"error: the page needs gradio 6.31 or newer{here}: pip install -U gradio\n"
        )


def test_takes_the_next_free_port():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken = other.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(demo, "PORT", taken)
            assert taken < demo.free_port(None) < taken + demo.PORTS
            patch.setattr(demo, "PORTS", 1)
            with pytest.raises(InputError, match="are in use"):
                demo.free_port(None)


def test_helps():
    words = [sys.executable, "-m", "experiments.demo", "--help"]
    helped = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert "python -m experiments.demo" in helped.stdout


# --- the page in a browser ---------------------------------------------------------------------


# The command with the networks of another folder, its first word.
WITH_NETWORKS = """
import sys
from pathlib import Path
from jaxdae import pretrained
pretrained.FOLDER = Path(sys.argv.pop(1))
from experiments import demo
sys.exit(demo.main())
"""


class Session:
    """The command as a user has it, and a browser on its page.

    Args:
      folder: for its temporary files.
      flags: of the command.
      weights: the folder of the networks that come with the package, if it is another one.
      ready: what is on the page when it is complete.
    """

    def __init__(self, folder, *flags, weights=None, ready="#latent input"):
        environment = os.environ | {"HTTP_PROXY": "http://127.0.0.1:9", "TMPDIR": str(folder)}
        self.port = demo.free_port(None)
        words = ["--no-browser", "--no-cache", "--port", str(self.port), *flags]
        command = ["-m", "experiments.demo"]
        if weights is not None:
            command = ["-c", WITH_NETWORKS, str(weights)]
        # As from a terminal, even where the tests run in the background, deaf to Ctrl-C.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        self.process = subprocess.Popen(
            [sys.executable, *command, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
            cwd=Path(__file__).parents[2],  # where the commands are, wherever the tests are
        )
        signal.signal(signal.SIGINT, before)
        self.folder, self.complaints, self.asked = folder, [], []
        self.ready = ready

    def begin(self, playwright):
        self.line = self.process.stdout.readline()
        self.chromium = playwright.chromium.launch(
            executable_path=browser.find(), args=list(browser.FLAGS)
        )
        self.page = self.open(viewport={"width": 1180, "height": 900})

    def open(self, **options):
        page = self.chromium.new_context(**options).new_page()
        page.set_default_timeout(60_000)
        page.on(
            "console",
            lambda said: said.type == "error" and self.complaints.append(said.text),
        )
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))
        page.on("websocket", lambda socket: self.asked.append(socket.url))
        page.goto(f"http://127.0.0.1:{self.port}")
        page.wait_for_selector(self.ready)
        page.wait_for_timeout(500)  # until it listens
        return page

    def end(self):
        """Ctrl-C: it has asked nobody else, complained of nothing, and leaves nothing behind."""
        home = f"//127.0.0.1:{self.port}/"
        for url in self.asked:
            assert url.startswith(("data:", "blob:")) or url.split(":", 1)[1].startswith(home), url
        assert self.complaints == []
        self.process.send_signal(signal.SIGINT)
        out, err = self.process.communicate(timeout=30)
        assert (self.process.returncode, out, err) == (130, "", "ended\n")
        assert [path.name for path in self.folder.iterdir() if "jaxdae" in path.name] == []

    def source(self, name):
        return self.page.locator(f"#{name}").get_attribute("src")

    def image(self, name):
        """The image that is on the page, in [0, 1]."""
        encoded = self.source(name).removeprefix("data:image/png;base64,")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(encoded)))) / 255

    def after(self, name, act):
        """Acts, and waits for an image to change."""
        before = self.source(name)
        act()
        self.page.wait_for_function(
            "([name, before]) => document.getElementById(name).src !== before", arg=[name, before]
        )
        self.page.wait_for_timeout(200)  # what came last is there

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def upload(self, path):
        self.tab("Upload")
        self.page.locator("#upload input[type=file]").set_input_files(path)

    def errors(self):
        clean = self.image("clean")
        return [np.mean((self.image(name) - clean) ** 2) for name in ("noisy", "denoised")]


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    """The page, open; closed with all that was said."""
    if importlib.util.find_spec("gradio") is None or browser.find() is None:
        pytest.skip("gradio or Chromium is not installed")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        session = Session(tmp_path_factory.mktemp("page"))
        try:
            session.begin(playwright)
            yield session
        finally:  # the browser ends with playwright
            session.process.kill()
            session.process.communicate()


@pytest.mark.slow
def test_page_denoises_an_uploaded_digit_at_any_noise(session, tmp_path):
    assert session.line == f"digits-blind is at http://127.0.0.1:{session.port} (Ctrl-C ends it)\n"
    Image.fromarray(picture(TEST.images[1])).save(tmp_path / "two.jpg")
    session.after("clean", lambda: session.upload(tmp_path / "two.jpg"))
    expected = uploads.digit(uploads.open_image(tmp_path / "two.jpg"))
    np.testing.assert_array_equal(session.image("clean"), expected[..., 0] / 255)
    noisy, denoised = session.errors()
    assert denoised < 0.05 < noisy
    number = session.page.locator("#strength input[type=number]")
    for sigma in ("0.3", "1.1"):
        before = session.source("denoised")

        def enter(sigma=sigma):
            number.fill(sigma)
            number.press("Enter")

        session.after("noisy", enter)
        assert session.source("denoised") != before
        noisy, denoised = session.errors()
        assert denoised < noisy / 2
    thumb = session.page.locator("#strength input[type=range]")
    thumb.focus()
    session.after("denoised", lambda: thumb.press("ArrowLeft"))
    clean = session.source("clean")
    session.after("noisy", session.page.locator("#again").click)
    assert session.source("clean") == clean


@pytest.mark.slow
def test_page_says_that_an_upload_is_no_image(session, tmp_path):
    shown = [session.source(name) for name in ("clean", "noisy", "denoised")]
    (tmp_path / "broken.png").write_bytes(b"no image")
    session.upload(tmp_path / "broken.png")
    alert = session.page.get_by_role("alert")
    assert "This file is not a readable image" in alert.inner_text()
    assert str(tmp_path) not in alert.inner_text()
    assert [session.source(name) for name in ("clean", "noisy", "denoised")] == shown
    session.after("noisy", session.page.locator("#again").click)
    assert alert.count() == 0


@pytest.mark.slow
def test_page_redraws_from_the_sliders(session):
    assert session.source("decoded") == session.source("denoised")
    first, shown = session.source("decoded"), session.source("denoised")
    sliders = session.page.locator("#latent input")
    assert sliders.count() == 16
    session.after("decoded", lambda: sliders.nth(4).press("End"))
    third = session.source("decoded")
    session.after("decoded", lambda: sliders.nth(9).press("Home"))
    assert len({first, third, session.source("decoded")}) == 3
    assert session.source("denoised") == shown
    outputs = session.page.locator("#latent output")
    high = float(sliders.nth(4).get_attribute("max"))
    assert float(outputs.nth(4).inner_text()) == pytest.approx(high, abs=0.01)
    session.after("decoded", session.page.locator("#back").click)
    assert session.source("decoded") == first
    assert float(sliders.nth(4).input_value()) < high
    session.after("decoded", lambda: sliders.nth(4).press("End"))
    session.tab("Test images")
    thumb = session.page.locator(".thumbs button").first
    for _ in range(2):  # another image sets them to its own, and so does the same once more
        session.after("decoded", thumb.click)
        assert session.source("decoded") == session.source("denoised")
        shown = float(sliders.nth(4).input_value())
        assert shown < high and float(outputs.nth(4).inner_text()) == round(shown, 2)
        session.after("decoded", lambda: sliders.nth(4).press("End"))


@pytest.mark.slow
def test_page_takes_a_drawing(session):
    session.tab("Draw")
    sheet = session.page.locator("#sheet canvas")
    sheet.wait_for(state="visible")
    box = sheet.bounding_box()

    def draw():
        mouse = session.page.mouse
        for stroke in SEVEN:
            places = [
                (box["x"] + x * box["width"] / 100, box["y"] + y * box["height"] / 100)
                for x, y in stroke
            ]
            mouse.move(*places[0])
            mouse.down()
            for place in places[1:]:
                mouse.move(*place, steps=10)
            mouse.up()

    session.after("clean", draw)
    session.page.wait_for_timeout(500)
    drawn = session.image("clean")
    assert np.abs(drawn - uploads.drawing(SEVEN)[..., 0] / 255).mean() < 0.02
    assert (
        "classified as 7"
        in session.page.locator("figure", has=session.page.locator("#clean")).inner_text()
    )
    noisy, denoised = session.errors()
    assert denoised < noisy / 2
    before = sheet.evaluate("canvas => canvas.toDataURL()")
    session.page.get_by_role("button", name="Clear").click()
    assert sheet.evaluate("canvas => canvas.toDataURL()") != before


@pytest.mark.slow
def test_page_takes_test_images(session):
    session.tab("Test images")
    session.after("clean", session.page.locator(".thumbs button").nth(4).click)
    first = np.flatnonzero(TEST.labels == 4)[0]
    np.testing.assert_array_equal(session.image("clean"), TEST.images[first, ..., 0] / 255)
    session.after("clean", session.page.get_by_role("button", name="Random image").click)
    surprise = np.rint(255 * session.image("clean")).astype(np.uint8)
    assert (TEST.images[..., 0] == surprise).all((1, 2)).any()


@pytest.mark.slow
def test_page_fits_a_phone_and_the_dark(session):
    phone = session.open(
        viewport={"width": 360, "height": 740}, is_mobile=True, has_touch=True, color_scheme="dark"
    )
    wide = phone.evaluate("[document.documentElement.scrollWidth, innerWidth]")
    assert wide[0] <= wide[1]
    colour = phone.evaluate("getComputedStyle(document.querySelector('h1')).color")
    light = [int(value) for value in re.findall(r"\d+", colour)[:3]]
    ground = phone.evaluate("getComputedStyle(document.body).backgroundColor")
    assert min(light) > 180 and max(map(int, re.findall(r"\d+", ground)[:3])) < 60
    phone.context.close()


@pytest.mark.slow
def test_page_asks_nobody_else_and_ends_cleanly(session):
    assert len(session.asked) > 20
    session.end()
