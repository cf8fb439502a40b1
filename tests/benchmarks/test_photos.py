"""The comparison of denoisers of photographs: its protocol, its rows, its page."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from benchmarks import photo_bm3d, photo_page, photo_speed, photo_strips, photo_worker, photos
from benchmarks.exported import random_params
from benchmarks.photo_protocol import SETS, Case, Photo, measure, names, read, summary, to_bytes
from jaxdae import pretrained
from jaxdae.model import build

ROOT = Path(__file__).parents[2]


@pytest.fixture
def root(tmp_path):
    """Two small images of Set12, two of Kodak24 and a pair of CC15."""

    def save(path, seed, channels):
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (18, 22, channels), np.uint8)
        Image.fromarray(pixels.squeeze()).save(path)

    for i in range(2):
        save(tmp_path / f"sets/Set12/{i}.png", i, 1)
        save(tmp_path / f"sets/Kodak24/{i}.tif", i, 3)
    for i, end in enumerate(("mean", "real")):
        save(tmp_path / f"sets/CC15/a_{end}.png", i, 3)
    return tmp_path / "sets"


def flags(root, **others):
    chosen = {"photos": root, "sets": ["Set12"], "sigmas": [25.0], "again": False}
    bm3d = {"envs": root, "cache": root.parent / "cache", "threads": 1, "minutes": float("inf")}
    return argparse.Namespace(**{**chosen, **bm3d, **others})


def test_psnr_of_a_known_difference():
    clean = np.full((9, 9, 3), 100, np.uint8)
    photo = Photo("gray", clean, clean / np.float32(255))
    found = measure(photo, clean + np.uint8(10))
    assert found["psnr"] == pytest.approx(20 * np.log10(255 / 10))
    assert found["colour"] == pytest.approx(0.1, rel=1e-5)
    same = measure(photo, clean)
    assert same["ssim"] == pytest.approx(1)
    expected = {"images": 2, "psnr": None, "lowest_psnr": found["psnr"], "colour": found["colour"]}
    got = summary([found, same])
    assert {name: got[name] for name in expected} == expected
    assert to_bytes(np.array([-1, 0.5 / 255 - 1e-3, 0.501 / 255, 2])).tolist() == [0, 0, 1, 255]


def test_noise_is_white_gaussian_not_clipped_and_the_same_each_time(root):
    first = read(root, Case("Set12", 25), "0")
    noise = first.noisy - first.clean / 255
    assert first.noisy.dtype == np.float32
    assert first.noisy.min() < 0 and first.noisy.max() > 1
    assert noise.std() * 255 == pytest.approx(25, rel=0.1)
    # With another stream of numbers, new figures would not compare with old ones.
    assert noise[0, :3, 0] * 255 / 25 == pytest.approx([-0.4223, -0.5341, -1.5237], abs=1e-3)
    twice = read(root, Case("Set12", 50), "0").noisy - first.clean / 255
    assert twice == pytest.approx(2 * noise, abs=1e-6)
    other = read(root, Case("Set12", 25), "1")
    assert not np.allclose(other.noisy - other.clean / 255, noise, atol=0.01)
    clean = read(root, Case("Kodak24", 0), "1")
    assert np.array_equal(to_bytes(clean.noisy), clean.clean)
    pair = read(root, Case("CC15", None), "a")
    assert names(root, "CC15") == ["a"] and not np.array_equal(to_bytes(pair.noisy), pair.clean)


def recorder(name, **about):
    """A method that keeps what it is given."""
    seen = []

    def restore(noisy, sigma):
        seen.append((noisy, sigma))
        return noisy

    return photos.Method(name, about, restore, channels=1), seen


def test_every_method_gets_the_same_noise_and_a_row_is_measured_once(root, tmp_path):
    figures = photos.Figures(tmp_path / "figures.json")
    (one, seen), (other, seen_too) = recorder("one", params_sha256="a"), recorder("other")
    photos.quality(figures, one, flags(root), "command")
    photos.quality(figures, other, flags(root, sets=["Kodak24", "Set12"]), "command")
    assert [sigma for _, sigma in seen] == [25, 25, None, None]
    for (noisy, sigma), (noisy_too, sigma_too) in zip(seen, seen_too, strict=True):
        assert sigma == sigma_too and np.array_equal(noisy, noisy_too)

    again = photos.Figures(tmp_path / "figures.json")
    row = again.row("one", Case("Set12", 25))
    assert (row["images"], row["params_sha256"], row["command"]) == (2, "a", "command")
    assert again.row("one", Case("Set12", 0))["psnr"] is None
    photos.quality(again, one, flags(root), "command")
    assert len(seen) == 4
    photos.quality(again, one, flags(root, again=True), "command")
    assert len(seen) == 8
    trained, seen = recorder("one", params_sha256="b")
    photos.quality(again, trained, flags(root), "command")
    assert len(seen) == 4 and again.row("one", Case("Set12", 25))["params_sha256"] == "b"
    (root / "Set12/2.png").write_bytes((root / "Set12/0.png").read_bytes())
    photos.quality(again, trained, flags(root), "command")
    assert len(seen) == 10


class FakeWorker:
    """Instead of BM3D's process: gives back the noisy image."""

    tasks: list = []  # noqa: RUF012

    def __init__(self, *words):
        pass

    def ask(self, words):
        if words["task"] == "about":
            return {"bm3d": "4", "bm4d": "4", "numpy": "2"}
        self.tasks.append(words.get("sigma"))
        np.save(words["restored"], np.load(words["noisy"]))
        return {"sigma": 1}

    def close(self):
        pass


def test_bm3d_continues_where_it_stopped(root, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(photo_bm3d, "Worker", FakeWorker)
    monkeypatch.setattr(photos, "environment", lambda *words: "python")
    monkeypatch.setattr(FakeWorker, "tasks", [])
    figures = photos.Figures(tmp_path / "figures.json")
    photos.bm3d(figures, flags(root, minutes=0), "command")
    assert "the same command continues" in capsys.readouterr().out
    assert FakeWorker.tasks == [] and figures.row("bm3d", Case("Set12", 25)) is None

    kept = tmp_path / "cache/bm3d-4/Set12-25/1.png"
    kept.parent.mkdir(parents=True)
    Image.fromarray(read(root, Case("Set12", 25), "1").clean[..., 0]).save(kept)
    photos.bm3d(figures, flags(root, sets=["Set12", "CC15"]), "command")
    assert FakeWorker.tasks == [25 / 255, None]
    row = photos.Figures(tmp_path / "figures.json").row("bm3d", Case("Set12", 25))
    assert (row["images"], row["psnr"], row["bm3d"]) == (2, None, "4")
    assert 20 < row["lowest_psnr"] < 21
    photos.bm3d(figures, flags(root, sets=["Set12", "CC15"]), "command")
    assert len(FakeWorker.tasks) == 2


def test_measures_a_network_and_writes_the_page(root, tmp_path, capsys):
    model = build("photo", channels=3, features=(4, 4), blocks=1)
    params = jax.jit(model.init)(jax.random.key(0), model.example)["params"]
    pretrained.save("mine", model, params, {}, tmp_path)
    page, file = tmp_path / "page.md", tmp_path / "figures.json"
    words = f"--photos {root} --measure quality --model {tmp_path / 'mine.npz'} --sigmas 15 25"
    words += f" --sets Set12 Kodak24 CC15 --json {file} --page {page}"
    assert photos.main(words.split()) == 0
    rows = json.loads(file.read_text())["quality"]
    assert list(rows["noisy"]) == ["Set12-15", "Set12-25", "Kodak24-15", "Kodak24-25", "CC15"]
    assert list(rows["mine"]) == ["Kodak24-15", "Kodak24-25", "Kodak24-0", "CC15"]
    assert str(tmp_path) not in file.read_text() + page.read_text()
    command = "python -m benchmarks.photos --photos DIR --measure quality --model mine.npz --sigmas"
    assert rows["mine"]["CC15"]["command"] == f"{command} 15 25"
    # A fresh network nearly returns its input.
    noisy, ours = (rows[name]["Kodak24-25"]["psnr"] for name in ("noisy", "mine"))
    assert ours == pytest.approx(noisy, abs=0.5)
    text = page.read_text()
    row = f"| `mine` | measured here |  | {rows['mine']['Kodak24-15']['psnr']:.2f} / {ours:.2f} / –"
    assert f"{row} (2 of 24 images) |" in text
    assert "| `mine`, told sigma 15 |" in text


def test_the_page_has_published_figures_and_a_section_only_for_rows_that_are_there():
    empty = photo_page.page({})
    assert "| DRUNet, 32.6M | published | 33.25 / 30.94 / 27.90 |" in empty
    assert "measured here |" not in empty and "## Noise of cameras" not in empty

    def row(images, psnr, **more):
        figures = {"lowest_psnr": psnr, "ssim": 0.5, "colour": 0.001}
        return {"images": images, "psnr": psnr, **figures, **more}

    blind = {"Kodak24-5": row(24, 40.0, told=False), "CC15": row(15, 37.0, told=False)}
    blind["Kodak24-0"] = row(24, None, told=False)
    quality = {
        "noisy": {"Kodak24-25": row(24, 20.0), "CC15": row(15, 33.0)},
        "bm3d": {"Kodak24-25": row(24, 31.0)},
        "photo": blind,
        "photo-gaussian, not told": {"CC15": row(15, 35.0, told=False)},
    }
    text = photo_page.page({"quality": quality})
    assert "| CBM3D | measured here |  | – / 31.00 / – |  |" in text
    assert "| `photo` |  |  |  | 40.00 / – / – / – |  |" in text
    assert "| `photo` | 37.00 | 0.500 |" in text and "told sigma 15 |" not in text
    assert "| `photo-gaussian`, not told | 35.00 | 0.500 |" in text
    assert "| `photo` | equal | 0.10% |  |  |  | 0.10% |" in text
    assert all(name in SETS for name in (*photo_page.GRAY, *photo_page.COLOUR))


def test_strips_show_the_crop_with_most_texture(root, tmp_path, capsys):
    image = np.zeros((40, 60, 3), np.uint8)
    image[20:30, 35:45] = np.random.default_rng(0).integers(0, 256, (10, 10, 3), np.uint8)
    rows, columns = photo_strips.busiest(image, 12)
    assert rows.start <= 20 and rows.stop >= 30 and columns.start <= 35 and columns.stop >= 45
    assert photo_strips.busiest(image, 99) == (slice(0, 40), slice(0, 60))
    assert photo_strips.busiest(image[..., :1], 40)[0] == slice(0, 40)

    words = f"--photos {root} --measure strips --sets Set12 --json {tmp_path / 'f.json'}"
    assert photos.main(words.split()) == 2
    assert "only images of Kodak24" in capsys.readouterr().err
    args = flags(root, strip_sets=["Set12", "CC15"], images=tmp_path)
    half = photos.Method("half", {}, lambda noisy, sigma: noisy / 2, channels=1)
    photos.strips(args, [half])
    sizes = {}
    for name in ("set12-25", "cc15"):
        with Image.open(tmp_path / f"photos-{name}.png") as drawn:
            sizes[name] = drawn.size
    assert sizes == {"set12-25": (3 * 182 - 6, 20 + 2 * 196), "cc15": (2 * 182 - 6, 20 + 196)}


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A small network as the workers read it, and the function itself."""
    folder = tmp_path_factory.mktemp("network")
    model = build("photo", channels=3, features=(4, 6), blocks=1, level_features=(3, 5, 4))
    params = random_params(model)
    photo_speed.write_network(folder, model, params, {})
    apply = jax.jit(lambda image, sigma: model.apply({"params": params}, image[None], sigma)[0])
    return folder, apply


def agrees(worker, folder, apply, sizes, allowed=1e-4):
    assert worker.load(folder) == 3
    for size in sizes:
        noisy = np.random.default_rng(0).random((*size, 3), np.float32)
        for sigma in (None, 0.1):  # estimated, and told
            expected = np.asarray(apply(noisy, sigma))
            assert expected.std() > 0.1
            difference = np.abs(worker.work(noisy, sigma)() - expected).max()
            assert difference <= allowed * np.abs(expected).max()


@pytest.mark.parametrize("setting", ["eager", pytest.param("compile", marks=pytest.mark.slow)])
def test_the_network_in_pytorch_is_the_same(network, setting):
    pytest.importorskip("torch")
    sizes = [(24, 40), (21, 30)] if setting == "eager" else [(24, 40)]
    agrees(photo_worker.Torch(setting, "float32"), *network, sizes)


def test_the_network_in_onnxruntime_is_the_same(network):
    agrees(photo_worker.OnnxRuntime("", "float32"), *network, [(21, 30)])


def test_jaxdae_is_timed_as_it_is_applied(network):
    agrees(photo_worker.Jaxdae("", "float32"), *network, [(16, 24)])
    agrees(photo_worker.Jaxdae("", "bfloat16"), *network, [(16, 24)], allowed=0.05)


def test_dncnn_has_one_form_in_flax_and_in_the_layers_of_jaxdae(network, monkeypatch):
    monkeypatch.setattr(photo_worker, "DEPTH", 3)
    for name in ("dncnn-flax", "dncnn-jaxdae"):
        worker = photo_worker.FRAMEWORKS[name]("", "float32")
        worker.load(network[0])
        image = photo_worker.image(16, 3)
        out = worker.work(image, 0.1)()
        assert out.shape == image.shape and not np.allclose(out, image)


def test_memory_is_that_of_the_process_itself():
    held = np.ones(50_000_000 // 8)
    code = "from benchmarks.photo_worker import peak; print(peak())"
    child = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, cwd=ROOT)
    assert 10 < float(child.stdout) < photo_worker.peak() - held.nbytes / 2**20


def test_speed_is_a_ratio_within_a_turn_and_memory_a_slope():
    report = {
        "side": 1000,
        "memory_sides": (1000, 2000),
        "seconds": {"jaxdae": [1.0, 2.0, 4.0], "BM3D": [20.0, 60.0, 120.0]},
        "memory": {"jaxdae": {"1000": 300, "2000": 600}, "BM3D": {"1000": 100, "2000": 1300}},
    }
    lines = photo_speed.table(report).splitlines()
    assert lines[2] == "| jaxdae | 2.00 (1.00 to 4.00) | 1.00× | 100 | 600 |"
    assert lines[3] == "| BM3D | 60.0 (20.0 to 120.0) | 30.00× | 400 | 1,300 |"


@pytest.mark.slow
def test_speed_and_memory_are_measured_in_processes_of_their_own(tmp_path):
    file, page = tmp_path / "figures.json", tmp_path / "page.md"
    words = "--measure speed --peers jaxdae --side 16 --memory-sides 16 24 --repeats 2"
    files = ["--json", str(file), "--page", str(page), "--envs", str(tmp_path)]
    assert photos.main([*words.split(), *files]) == 0
    report = json.loads(file.read_text())["speed"]
    assert len(report["seconds"]["jaxdae"]) == 2 and min(report["seconds"]["jaxdae"]) > 0
    assert min(report["memory"]["jaxdae"].values()) > 50
    assert report["command"] == "python -m benchmarks.photos --measure speed"
    assert "## Speed and memory" in page.read_text()


def test_the_committed_page_is_what_the_figures_say():
    figures = json.loads((ROOT / photos.FIGURES).read_text())
    assert photo_page.page(figures) == (ROOT / photos.PAGE).read_text()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--measure quality", "--photos DIR"),
        ("--photos {root} --measure quality --sets BSD68", "BSD68"),
        ("--photos {root} --measure quality --sigmas 0", "must be above 0"),
        ("--photos {root} --measure quality --model nobody --sets CC15", "nobody is no model"),
    ],
)
def test_bad_input_is_one_line(root, tmp_path, words, said, capsys):
    json_file = ["--json", str(tmp_path / "figures.json")]
    assert photos.main([*words.format(root=root).split(), *json_file]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and said in error
