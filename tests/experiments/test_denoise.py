"""The command that restores images of one's own, on a network whose results are known."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import denoise_files
from experiments import denoise
from experiments.restore import adapt, job, sources
from jaxdae import metrics, pretrained
from jaxdae.data import load
from jaxdae.errors import InputError
from jaxdae.image_io import numpy_stacks as stacks
from jaxdae.inference import denoise as restore
from jaxdae.model import build
from tests.experiments.denoising import command, pixels, save

FIT = ["--model", "digits-blind", "--fit"]
DIGITS = load("mnist").test.images[:40]
PHOTO = np.random.default_rng(0).integers(0, 256, (45, 70, 3), np.uint8)

jax.devices()  # all of them, before a command asks for one


@pytest.fixture(scope="module")
def blind():
    """What the network makes of images in [0, 1]."""
    model, params = pretrained.load("digits-blind")
    network = jax.jit(lambda images: restore(model, params, images))
    return lambda images: np.asarray(network(jnp.asarray(images, jnp.float32)))


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """Networks untrained: RGB to RGB, and RGB of gray, of 8x8 pixels."""
    folder = tmp_path_factory.mktemp("networks")
    for name, shape, outputs in (("rgb", (8, 8, 3), None), ("colour", (8, 8, 1), 3)):
        model = build(
            "dense",
            image_size=shape[:2],
            channels=shape[2],
            out_channels=outputs,
            features=(6,),
            latent_dim=5,
        )
        params = jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, *shape)))["params"]
        about = {"about": "Nothing.", "recipe": {"corruption": "grayscale", "mean": 0.5}}
        pretrained.save(name, model, jax.tree.map(np.asarray, params), about, folder)
    return folder


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def said(capsys, *words):
    """The one line that it ends with, having done nothing."""
    assert command(*words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("error: ") and printed.err.count("\n") == 1, printed.err
    assert printed.out == ""
    return printed.err


def tree(folder):
    return sorted(path.relative_to(folder).as_posix() for path in Path(folder).rglob("*.*"))


# What comes out


def test_folders_are_restored_file_by_file(here, blind, capsys):
    for i, digit in enumerate(DIGITS):
        save(f"in/{i % 3}/deep/{i}.png", digit[..., 0])
    save("in/.hidden.png", DIGITS[0, ..., 0])
    Path("in/notes.txt").write_text("no image")
    assert command("in", "--out", "out/new") == 0
    assert tree("out/new") == sorted(f"{i % 3}/deep/{i}.png" for i in range(40))
    expected = np.rint(blind(DIGITS / 255) * 255)
    for i in range(40):
        found = pixels(f"out/new/{i % 3}/deep/{i}.png").astype(int)
        assert np.abs(found - expected[i, ..., 0]).max() <= 1
    printed = capsys.readouterr()
    assert printed.out.splitlines()[0].startswith("digits-blind: Removes noise")
    assert "40 files denoised in" in printed.out.splitlines()[1] and printed.err == ""
    before = {name: Path("out/new", name).read_bytes() for name in tree("out/new")}
    assert command("in", "--out", "again") == 0
    assert {name: Path("again", name).read_bytes() for name in tree("again")} == before


def test_stacks_keep_their_type_and_shape(here, blind, monkeypatch):
    monkeypatch.setattr(stacks, "CHUNK_IMAGES", 7)
    x = DIGITS / 255
    np.save("a.npy", DIGITS[..., 0])
    np.save("b.npy", np.rint(x * 65535).astype(">u2"))
    np.savez("c.npz", x_train=x[:30], x_test=np.float16(x[30:]), y=np.arange(3))
    assert command("a.npy", "b.npy", "c.npz", "--out", "out") == 0
    expected = blind(x)
    a, b, c = (np.load(f"out/{name}") for name in ("a.npy", "b.npy", "c.npz"))
    assert a.dtype == np.uint8 and b.dtype == np.dtype(">u2")
    assert {key: (c[key].dtype, c[key].shape) for key in c.files} == {
        "x_train": (np.float64, (30, 28, 28, 1)),
        "x_test": (np.float16, (10, 28, 28, 1)),
        "y": (np.int64, (3,)),
    }
    np.testing.assert_allclose(a / 255, expected[..., 0], atol=0.5 / 255 + 1e-5)
    np.testing.assert_allclose(b / 65535, expected, atol=0.5 / 65535 + 1e-5)
    np.testing.assert_allclose(c["x_train"], expected[:30], atol=1e-5)
    np.testing.assert_allclose(c["x_test"], blind(np.float16(x[30:])), atol=1e-3)


def test_other_sizes_in_tiles_and_fitted(here, blind, capsys):
    from jaxdae import tiling

    gray = np.rint(PHOTO @ [0.3, 0.6, 0.1]).astype(np.uint8)
    save("in/a.png", PHOTO)
    save("in/b.png", gray.astype(np.uint16) * 257)
    save("in/small.png", gray[:5, :9])
    for flag in ("tile", "fit"):
        assert command("in", "--model", "digits-blind", f"--{flag}", "--out", flag) == 0
        assert "draws a digit whatever it is shown" in capsys.readouterr().out
    for name in ("a.png", "b.png", "small.png"):
        image = pixels(f"in/{name}")
        scale = 65535 if name == "b.png" else 255
        x = (image / scale).astype(np.float32).reshape(1, *image.shape[:2], -1)
        apart = x.transpose(3, 1, 2, 0)  # each colour an image
        tiled = tiling.tiled(blind, apart, (28, 28))
        fitted = tiling.unfit(blind(tiling.fit(apart, (28, 28))), image.shape[:2])
        for flag, expected in (("tile", tiled), ("fit", fitted)):
            found = pixels(f"{flag}/{name}")
            assert found.dtype == image.dtype and found.shape == image.shape
            expected = expected.transpose(3, 1, 2, 0).reshape(image.shape)
            np.testing.assert_allclose(found / scale, expected, atol=0.6 / scale + 1e-5)


def test_colours_and_gray_with_either_network(here, networks):
    """The rules that --help states, against the network itself."""
    colour, gray = PHOTO[:8, :8], PHOTO[:8, :8, 1]
    save("rgb.png", colour)
    save("gray.png", gray)

    def apply(name, images):
        model, params = pretrained.load(name, networks)
        return np.asarray(model.apply({"params": params}, jnp.asarray(images, jnp.float32)))

    luma = colour / 255 @ [[0.299], [0.587], [0.114]]
    equal = np.repeat(gray[..., None], 3, 2) / 255
    expected = {
        "rgb/rgb.png": apply("rgb", colour[None] / 255)[0],
        "rgb/gray.png": apply("rgb", equal[None])[0].mean(-1),
        "colour/rgb.png": apply("colour", luma[None])[0],
        "colour/gray.png": apply("colour", gray[None, ..., None] / 255)[0],
    }
    for name in ("rgb", "colour"):
        network = networks / f"{name}.npz"
        assert command("rgb.png", "gray.png", "--model", network, "--out", name) == 0
    for name, values in expected.items():
        np.testing.assert_allclose(pixels(name) / 255, values, atol=0.5 / 255 + 1e-5)


def test_what_cannot_be_kept_is_refused_and_the_rest_goes_on(here, networks, capsys):
    save("in/a.gif", PHOTO[:8, :8, 0])
    save("in/b.png", PHOTO[:8, :8, 0])
    save("in/c.png", PHOTO[:8, :8, 0].astype(np.uint16) * 257)
    save("in/d.png", PHOTO)
    (here / "in" / "e.png").write_bytes(b"no image")
    np.save("in/f.npy", np.zeros((2, 8, 8, 2), np.uint8))
    np.save("in/g.npy", np.full((2, 8, 8), 2.0))
    np.save("in/h.npy", np.zeros((2, 9, 8), np.uint8))
    assert command("in", "--model", networks / "colour.npz", "--out", "out") == 2
    printed = capsys.readouterr()
    assert tree("out") == ["b.png"]
    assert "1 file denoised" in printed.out
    lines = printed.err.splitlines()
    for file, words in (
        ("a.gif", "256 colours"),
        ("c.png", "16 bits in colour cannot be written"),
        ("d.png", "is 70x45"),
        ("e.png", "no readable image"),
        ("f.npy", "has 2 channels"),
        ("g.npy", "in [2, 2]"),
        ("h.npy", "is 8x9"),
    ):
        (line,) = (line for line in lines if file in line)
        assert line.startswith("error: ") and words in line
    assert lines[-1].startswith("error: 7 of 8 files could not be denoised: ")
    assert len(lines) == 8


def test_many_errors_are_counted(here, capsys):
    for i in range(job.MAX_ERRORS + 5):
        save(f"in/{i}.png", PHOTO)
    assert command("in", "--out", "out", "--model", "digits-blind") == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == job.MAX_ERRORS + 1
    assert (
        f"15 of 15 files could not be denoised, the first {job.MAX_ERRORS} are named" in lines[-1]
    )


def test_a_stack_that_ends_early_leaves_nothing(here, monkeypatch, capsys):
    monkeypatch.setattr(stacks, "CHUNK_IMAGES", 2)
    x = np.repeat(DIGITS[..., 0], 40, 0) / 255
    x[-1] = 7  # found long after the first are written
    np.save("a.npy", x)
    np.savez("b.npz", x=DIGITS)
    damaged = bytearray(Path("b.npz").read_bytes())
    damaged[damaged.index(b"NUMPY") + 20_000] ^= 1
    Path("b.npz").write_bytes(damaged)
    save("c.png", DIGITS[0, ..., 0])
    assert command("a.npy", "b.npz", "c.png", "--out", "out") == 2
    assert os.listdir("out") == ["c.png"]
    errors = capsys.readouterr().err
    assert "a.npy' is float64" in errors and "CRC-32" in errors


# Noise, references, pictures


def rows(folder):
    with open(Path(folder) / "metrics.csv", newline="") as file:
        return {
            row.pop("image"): {k: float(v) for k, v in row.items()} for row in csv.DictReader(file)
        }


def test_noise_depends_on_the_files_path_and_the_seed_alone(here, capsys):
    for i in range(6):
        save(f"in/sub/{i}.png", DIGITS[i, ..., 0])
    np.save("in/s.npy", DIGITS[:5, ..., 0])
    noisy = ["--noise-sigma", 0.5, "--side-by-side"]
    assert command("in", *noisy, "side", "--out", "out") == 0
    after = capsys.readouterr().out.splitlines()[1]
    Path("in/sub/2.png").unlink()
    Path("in/s.npy").unlink()
    save("in/0.png", DIGITS[9, ..., 0])
    assert command("in", *noisy, "side2", "--out", "out2") == 0
    assert command("in", *noisy, "side3", "--out", "out3", "--seed", 1) == 0
    for i in (0, 1, 3, 4, 5):
        same = [pixels(f"{side}/sub/{i}.png.png") for side in ("side", "side2", "side3")]
        np.testing.assert_array_equal(same[0], same[1])
        assert (same[0] != same[2]).mean() > 0.1
    # An image of a stack has noise of its own, and the noise has the model's mean.
    left = [pixels(f"side/s.npy/{i:05}.png")[::3, : 3 * 28 : 3] for i in range(5)]
    added = [
        noisy.astype(float) - clean[..., 0] for noisy, clean in zip(left, DIGITS, strict=False)
    ]
    dark = DIGITS[:5, ..., 0] == 0
    values = np.concatenate([a[d] for a, d in zip(added, dark, strict=True)]) / 255
    assert np.median(values) == pytest.approx(0.5, abs=0.05)
    assert np.quantile(values, 0.7) - 0.5 == pytest.approx(0.5 * 0.524, abs=0.06)
    assert len({a.tobytes() for a in added}) == 5
    # The clean images are the reference.
    found = rows("out")
    assert len(found) == 11 and {"sub/0.png", "s.npy[4]"} <= set(found)
    for row in found.values():
        assert row["mse_after"] < 0.05 < 0.1 < row["mse_before"]
    mean = np.mean([row["mse_after"] for row in found.values()])
    assert f"-> {mean:.5f}, psnr" in after


def test_references_by_name(here, capsys):
    noisy = np.clip(DIGITS[:3, ..., 0].astype(int) + 60, 0, 255).astype(np.uint8)
    for i in range(3):
        save(f"in/sub/{i}.png", noisy[i])
        save(f"clean/sub/{i}.png", DIGITS[i, ..., 0])
    np.savez("in/s.npz", x=noisy[:2], y=noisy[2:])
    np.savez("clean/s.npz", y=DIGITS[2:3], x=DIGITS[:2, ..., 0] / 255)
    assert command("in", "--reference", "clean", "--out", "out") == 0
    found = rows("out")
    assert len(found) == 6
    for i, name in enumerate(("s.npz:x[0]", "s.npz:x[1]", "s.npz:y[0]")):
        assert found[name] == pytest.approx(found[f"sub/{i}.png"], rel=1e-4, abs=1e-6)
    for name in ("mse", "psnr", "ssim"):
        row = found["sub/1.png"]
        clean = DIGITS[1]
        before = metrics.of_image(noisy[1][..., None], clean)[name]
        after = metrics.of_image(pixels("out/sub/1.png")[..., None], clean)[name]
        assert row[f"{name}_before"] == pytest.approx(before, rel=1e-4)
        assert row[f"{name}_after"] == pytest.approx(after, rel=1e-4)
    capsys.readouterr()
    # Another size, or none, is an error of that file alone; a missing one, of all.
    save("clean/sub/0.png", PHOTO)
    np.savez("clean/s.npz", x=DIGITS[:2])
    assert command("in", "--reference", "clean", "--out", "out", "--overwrite") == 2
    errors = capsys.readouterr().err
    assert "its reference is 70x45 in RGB" in errors and "has no array like" in errors
    assert set(rows("out")) == {"sub/1.png", "sub/2.png"}
    Path("clean/sub/0.png").unlink()
    error = said(capsys, "in", "--reference", "clean", "--out", "new")
    assert "lacks 1 of 4 files, such as 'sub/0.png'" in error
    assert "one file for 4 inputs" in said(capsys, "in", "--reference", "in/s.npz", "--out", "new")
    assert "does not exist" in said(capsys, "in", "--reference", "absent", "--out", "new")


def test_pictures_side_by_side(here):
    photo = PHOTO[:, :64]
    save("a.jpg", photo, quality=95)
    assert command("a.jpg", *FIT, "--out", "out", "--side-by-side", "side") == 0
    picture = pixels("side/a.jpg.png")  # twice as large, to be seen
    assert picture.shape == (45, 64 + 4 + 64, 3)
    np.testing.assert_array_equal(picture[:, :64], pixels("a.jpg"))
    assert (picture[:, 64:68] == 255).all()
    assert np.abs(picture[:, 68:].astype(int) - pixels("out/a.jpg")).mean() < 3


def test_a_name_in_a_stack_leads_nowhere(here):
    file = io.BytesIO()
    np.savez(file, **{"../../x": DIGITS[:1]})
    (here / "below").mkdir()
    (here / "below" / "a.npz").write_bytes(file.getvalue())
    assert command("below/a.npz", "--out", "o/o", "--side-by-side", "s/s") == 0
    assert tree("s") == ["s/a.npz", "s/a.npz/------x-00000.png"]
    assert np.load("o/o/a.npz").files == ["../../x"]


def test_noise_is_for_networks_that_know_it(here, networks, capsys):
    save("a.png", PHOTO[:8, :8, 0])
    words = ["a.png", "--model", networks / "colour.npz", "--noise-sigma", 0.5, "--out", "out"]
    assert "was trained to remove grayscale" in said(capsys, *words)
    assert not Path("out").exists()


# What there is to do


def names(*words):
    return [file.name for file in sources.sources(denoise.parse([*map(str, words)]))]


def test_inputs_are_found(here):
    for name in ("in/a.png", "in/sub/b.PNG", "in/sub/deep/c.jpg", "in/sub/[1].png"):
        save(name, PHOTO)
    np.save("in/s.npy", DIGITS)
    Path("in/notes.txt").write_text("")
    every = ["a.png", "s.npy", "sub/[1].png", "sub/b.PNG", "sub/deep/c.jpg"]
    assert names("in", "--out", "out") == every
    assert names("in/a.png", "in/sub/deep/c.jpg", "--out", "out") == ["a.png", "c.jpg"]
    assert names("in/**/*.png", "--out", "out") == ["a.png", "sub/[1].png"]
    assert names("in/*", "--out", "out") == every
    assert names("in/sub/[1].png", "--out", "out") == ["[1].png"]
    assert names("in/a.png", "./in/a.png", "--out", "out") == ["a.png"]
    # Results of before are no inputs.
    save("in/out/a.png", PHOTO)
    assert names("in", "--out", "in/out") == every


def test_mistakes_are_one_line(here, capsys, tmp_path):
    save("in/a.png", DIGITS[0, ..., 0])
    save("twin/a.png", DIGITS[0, ..., 0])
    save("in/notes.txt", PHOTO, format="PNG")
    (here / "empty").mkdir()
    out = ["--out", "out"]
    for words, part in (
        (["in"], "--out"),
        (out, "there are no inputs"),
        (["absent", *out], "'absent' does not exist"),
        (["absent\nline", *out], "does not exist"),
        (["*.gif", *out], "'*.gif' holds no images"),
        (["empty", *out], "'empty' holds no images"),
        (["in/notes.txt", *out], "is not an image or a stack"),
        (["in/a.png", "twin/a.png", *out], "would both be written to 'a.png'"),
        (["in", "--out", "in"], "lies in --out"),
        (["in/a.png", "--out", "."], "lies in --out"),
        (["in", "--out", "in/a.png"], "is not a folder"),
        (["in", *out, "--tile", "--fit"], "exclude each other"),
        (["in", *out, "--overwrite", "--skip-existing"], "exclude each other"),
        (["in", *out, "--noise-sigma", -1], "--noise-sigma -1.0 must be"),
        (["in", *out, "--noise-sigma", "nan"], "--noise-sigma nan must be"),
        (["in", *out, "--noise-sigma", "inf"], "--noise-sigma inf must be"),
        (["in", *out, "--seed", -1], "--seed -1"),
        (["in", *out, "--side-by-side", "./out"], "is also --out"),
        (["in", *out, "--side-by-side", "in/a.png"], "is not a folder"),
        (["in", *out, "--noise-sigma", 1, "--skip-existing"], "metrics.csv"),
        (["in", *out, "--model", "absent"], "--model absent is no model"),
        (["~nobody/a.png", *out], "'~nobody/a.png' does not exist"),
        (["in", *out, "--model", "~nobody/x"], "--model ~nobody/x is no model"),
        (["in", *out, "--model", "digit-classifier"], "is not a denoiser"),
        (["in", "--out", "/proc/absent/out"], "cannot be written"),
    ):
        assert part in said(capsys, *words), words
    assert not Path("out").exists()


def test_nothing_is_replaced_unasked(here, capsys):
    for i in range(3):
        save(f"in/{i}.png", DIGITS[i, ..., 0])
    save("out/1.png", PHOTO)
    before = Path("out/1.png").read_bytes()
    assert "1 of 3 results exist, such as 'out/1.png'" in said(capsys, "in", "--out", "out")
    assert tree("out") == ["1.png"]
    assert command("in", "--out", "out", "--skip-existing") == 0
    assert Path("out/1.png").read_bytes() == before and tree("out") == ["0.png", "1.png", "2.png"]
    assert command("in", "--out", "out", "--skip-existing") == 0
    assert "all 3 results exist in out/" in capsys.readouterr().out
    assert command("in", "--out", "out", "--overwrite", "--noise-sigma", 1) == 0
    assert pixels("out/1.png").shape == (28, 28)
    for name in ("0.png", "1.png", "2.png"):
        Path("out", name).unlink()
    capsys.readouterr()
    assert "metrics.csv' exists" in said(capsys, "in", "--out", "out", "--noise-sigma", 1)
    words = ["in", "--out", "new", "--side-by-side", "in"]
    assert "lies in --out or --side-by-side" in said(capsys, *words)
    words = ["in", "--out", "new", "--side-by-side", "out"]
    assert "--side-by-side 'out' is not empty" in said(capsys, *words)


def test_inputs_are_never_replaced(here, capsys):
    """Even through a link, and even if files may be."""
    save("in/a.png", DIGITS[0, ..., 0])
    save("out/a.png", DIGITS[0, ..., 0])
    for link, words in (("out", []), ("out", ["--reference", "out"])):
        (here / link / "a.png").unlink()
        (here / link / "a.png").symlink_to(here / "in" / "a.png")
        before = Path("in/a.png").read_bytes()
        assert "which is an input" in said(capsys, "in", "--out", "out", "--overwrite", *words)
        assert Path("in/a.png").read_bytes() == before
    (here / "out" / "a.png").unlink()
    save("out/a.png", DIGITS[0, ..., 0])
    words = ["in", "--out", "out", "--overwrite", "--reference", "out"]
    assert "which is an input" in said(capsys, *words)


def test_a_file_system_that_refuses_ends_it_in_one_line(here, capsys, monkeypatch):
    save("in/a.png", DIGITS[0, ..., 0])
    save("in/b.png", DIGITS[0, ..., 0])
    (here / "out" / "b.png").mkdir(parents=True)
    assert command("in", "--out", "out", "--overwrite") == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and "b.png" in error
    assert [path for path in os.listdir("out") if path.startswith(".")] == []


@pytest.mark.slow
def test_stopped_it_leaves_only_whole_files_and_goes_on(here, heeded):
    for i in range(400):
        save(f"in/{i}.png", DIGITS[i % 40, ..., 0])
    np.save("in/z.npy", np.repeat(DIGITS, 8000, 0))
    words = [sys.executable, "-m", "experiments.denoise", "in", "--out", "out", "--no-cache"]
    root = Path(__file__).parents[2]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while not list(here.glob("out/*.png")) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert (
        errors
        == "interrupted: every file in out is complete; --skip-existing continues with the others\n"
    )
    there = sorted(os.listdir("out"))
    assert there and "z.npy" not in there and all(name.endswith(".png") for name in there)
    for name in there:
        assert pixels(Path("out", name)).shape == (28, 28)
    Path("in/z.npy").unlink()
    assert command("in", "--out", "out", "--skip-existing") == 0
    assert len(os.listdir("out")) == 400


# Its parts


def test_many_files_are_few_groups_and_little_memory(here, monkeypatch):
    """What is decoded ahead, and what waits to be written, is bounded in bytes."""
    for i in range(30):
        save(f"in/{i:02}.png", np.full((64, 64), i, np.uint8))
    monkeypatch.setattr(job, "GROUP_BYTES", 3 * 64 * 64)
    held = []
    read = job.Job._read

    def watched_read(self, group):
        found, rest = read(self, group)
        held.append(len(found))
        return found, rest

    monkeypatch.setattr(job.Job, "_read", watched_read)
    assert command("in", *FIT, "--out", "out") == 0
    assert max(held) <= 4 and sum(held) == 30
    assert tree("out") == [f"{i:02}.png" for i in range(30)]


def test_work_is_given_and_taken_in_groups():
    model = build("dense", image_size=(8, 6), channels=1)
    images = PHOTO[None]
    for sizes, groups in (("fit", 1), ("tile", 1 + -(-(45 - 8) // 4))):
        work = adapt.Work(adapt.Rules(model, "it", sizes), images, images.dtype)
        given = list(work.inputs())
        assert len(given) == work.groups == groups
        assert all(inputs.shape[1:] == (8, 6, 1) for inputs in given)
        for inputs in given:
            assert work.left
            work.take(inputs)
        assert not work.left and work.result.shape == images.shape
        if sizes == "tile":
            np.testing.assert_array_equal(work.result, images)
    with pytest.raises(InputError, match="is 70x45, but it takes 6x8: give --tile"):
        adapt.Work(adapt.Rules(model, "it", "refuse"), images, images.dtype)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float16, np.float64])
def test_floats_and_back(dtype):
    floating = np.dtype(dtype).kind == "f"
    x = np.linspace(0, 1 if floating else np.iinfo(dtype).max, 256).astype(dtype)
    back = adapt.from_float(adapt.to_float(x.reshape(1, 16, 16, 1)), np.dtype(dtype))
    np.testing.assert_allclose(back.ravel(), x, rtol=1e-6)
    over = np.array([-0.1, 0, 1.00001, 2], np.float32)
    top = 1 if floating else np.iinfo(dtype).max
    np.testing.assert_array_equal(adapt.from_float(over, np.dtype(dtype)), [0, 0, top, top])


def test_help_is_quick_and_says_the_rules():
    words = [sys.executable, "-X", "importtime", "-m", "experiments.denoise", "--help"]
    helped = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert helped.returncode == 0
    for part in (
        "--tile",
        "--fit",
        "--noise-sigma",
        "python -m experiments.denoise",
        "exit status",
    ):
        assert part in helped.stdout
    imported = {line.rpartition("|")[2].strip() for line in helped.stderr.splitlines()}
    assert "tyro" in imported and not imported & {"jax", "flax", "PIL.Image", "rich.progress"}


def test_the_benchmark_counts_and_compares(tmp_path, monkeypatch, capsys):
    digits, other = tmp_path / "digits", tmp_path / "other"
    for folder in (digits, other):
        folder.mkdir()
        denoise_files.write_digits(folder, 5)
    assert tree(digits) == [f"{i:05}.png" for i in range(5)]
    assert denoise_files.same(digits, other)
    save(other / "00003.png", DIGITS[3, ..., 0])
    assert not denoise_files.same(digits, other)
    (other / "00003.png").unlink()
    assert not denoise_files.same(digits, other)

    different = set()

    def whole_process(words, cache, log):
        out = Path(words[words.index("--out") + 1])
        out.mkdir()
        save(out / "0.png", np.zeros((4, 4), np.uint8) + (out.name in different))
        return {"wall_seconds": 7.0, "core_seconds": 9.0, "peak_megabytes": 400.0}

    monkeypatch.setattr(denoise_files, "whole_process", whole_process)
    words = ["--images", "3", "--write", str(tmp_path / "b.json")]
    for status, said_last in ((0, "the same bytes both times"), (1, "NOT the same bytes")):
        assert denoise_files.main(words) == status
        printed = capsys.readouterr().out
        assert f"\n{said_last}" in printed and "| later run | 7.0 | 9.0 | 400 |" in printed
        different.add("second")
    assert json.loads((tmp_path / "b.json").read_text())["identical"] is False
    assert denoise_files.main(["--images", "0"]) == 2
    assert capsys.readouterr().err.count("\n") == 1
