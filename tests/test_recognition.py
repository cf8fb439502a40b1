"""The classifier: what ships reads digits, and the command that trained it."""

import json

import jax
import numpy as np
import pytest

from benchmarks.classifier import chain, changed, main, parse, shift
from jaxdae import data, pretrained
from jaxdae.errors import InputError
from jaxdae.model import DigitClassifier
from jaxdae.recognition import digit_recovery, read_digits, reader

TINY = ["--train-images", "256", "--validation", "100", "--epochs", "2"]
TINY += ["--features", "4", "--no-cache"]


@pytest.fixture(scope="module")
def digits():
    """The clean test digits in [0, 1], and their labels."""
    test = data.load("mnist").test
    return test.images.astype(np.float32) / 255, test.labels


def test_reads_the_clean_test_digits(digits):
    images, labels = digits
    share = digit_recovery(images, labels)
    assert share > 0.993
    card = pretrained.card("digit-classifier")
    assert share == pytest.approx(card["results"]["accuracy"]["clean"], abs=2e-4)
    assert card["command"] == "python -m benchmarks.classifier"
    assert card["parameters"] == 60_562


def test_recovery_is_the_share_that_agrees(digits):
    images, labels = (each[:600] for each in digits)
    read = read_digits(images)
    assert read.dtype == np.int32 and read.shape == (600,)
    assert digit_recovery(images, read) == 1
    assert digit_recovery(images, (read + 1) % 10) == 0
    assert digit_recovery(images[:100], np.where(np.arange(100) < 75, read[:100], 10)) == 0.75
    permuted = np.random.default_rng(0).permutation(600)
    assert digit_recovery(images[permuted], labels[permuted]) == digit_recovery(images, labels)
    assert digit_recovery(images, labels[permuted]) < 0.2
    # Neither the number of images nor their float type matters.
    np.testing.assert_array_equal(read_digits(images[:7].astype(np.float64)), read[:7])
    assert read_digits(images[:0]).shape == (0,)


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (np.zeros((2, 28, 28)), "(2, 28, 28)"),
        (np.zeros((2, 27, 28, 1)), "(2, 27, 28, 1)"),
        (np.zeros((2, 28, 28, 3)), "(n, 28, 28, 1)"),
        (np.zeros((2, 28, 28, 1), np.uint8), "uint8"),
        (np.full((2, 28, 28, 1), 255.0), "[255, 255]"),
        (np.full((2, 28, 28, 1), np.nan), "[nan, nan]"),
    ],
    ids=["no channel", "size", "colour", "bytes", "range", "nan"],
)
def test_images_that_cannot_be_read_are_named(images, said):
    for call in (read_digits, lambda images: digit_recovery(images, np.zeros(2, np.int32))):
        with pytest.raises(InputError) as caught:
            call(images)
        assert said in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("labels", [np.zeros(3, np.int32), np.zeros((2, 10)), np.int32(1)])
def test_labels_must_be_one_for_each(labels):
    with pytest.raises(InputError, match="each image needs one"):
        digit_recovery(np.zeros((2, 28, 28, 1), np.float32), labels)
    with pytest.raises(InputError, match="at least one"):
        digit_recovery(np.zeros((0, 28, 28, 1), np.float32), np.zeros(0, np.int32))


def test_the_network_takes_any_size_but_its_own_only():
    model = DigitClassifier(image_size=(9, 14), channels=3, features=(2, 3, 4), classes=5)
    images = np.random.default_rng(0).random((3, 9, 14, 3), np.float32)
    params = jax.jit(model.init)(jax.random.key(0), images)["params"]
    assert jax.eval_shape(model.apply, {"params": params}, images).shape == (3, 5)
    read = reader(model, params)
    np.testing.assert_array_equal(read(images[::-1]), read(images)[::-1])
    with pytest.raises(InputError, match=r"\(1, 9, 14, 1\).*\(batch, 9, 14, 3\)"):
        model.apply({"params": params}, images[:1, ..., :1])


def test_shifts_move_whole_images():
    image = np.zeros((5, 5, 1), np.float32)
    image[2, 2] = 1
    moved = np.asarray(shift(2)(jax.random.key(0), np.stack([image] * 500)))[..., 0]
    assert (moved.sum((1, 2)) == 1).all()
    _, rows, columns = moved.nonzero()
    counts = np.histogram2d(rows, columns, bins=5, range=[[0, 5], [0, 5]])[0]
    assert counts.min() > 5  # of 20 expected: all 25 places are taken


@pytest.mark.parametrize("noise", [[], ["--sigma", "0.1", "1.05"]], ids=["clean", "noisy"])
def test_the_command_trains_and_writes(noise, tmp_path, capsys):
    words = [*noise, *TINY]
    for out in "a" if noise else ("a", "b"):
        assert main([*words, "--out", str(tmp_path / out)]) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    assert "epoch 2/2  train cross-entropy " in printed.out
    name = "noisy-digit-classifier" if noise else "digit-classifier"
    files = {path.name for path in (tmp_path / "a").iterdir()}
    assert files == {f"{name}.npz", f"{name}.json", "result.json"}

    model, params = pretrained.load(name, tmp_path / "a")
    assert model == DigitClassifier(features=(4,))
    card = pretrained.card(name, tmp_path / "a")
    assert parse([*card["command"].split()[3:], "--out", "x"]) == parse(
        [*words, "--out", "x", "--cache"]
    )
    result = json.loads((tmp_path / "a" / "result.json").read_text())
    assert result.items() >= card["results"].items()
    assert list(result["accuracy"]) == (["0.25", "0.5", "0.75", "1.0"] if noise else ["clean"])
    if not noise:
        # The same seed gives the same bits.
        assert card["params_sha256"] == pretrained.card(name, tmp_path / "b")["params_sha256"]
        # The accuracy is that of the network that was written, on the last images.
        train = data.load("mnist").train
        images = train.images[-100:].astype(np.float32) / 255
        share = np.mean(reader(model, params)(images) == train.labels[-100:])
        assert result["accuracy"]["clean"] == share


@pytest.mark.slow
def test_a_denoiser_and_the_classifier_are_trained_as_one(tmp_path):
    images = np.random.default_rng(0).random((100, 28, 28, 1), np.float32)
    model, params = chain("digits-blind")
    denoised = np.asarray(jax.jit(model.denoiser.apply)({"params": params["denoiser"]}, images))
    np.testing.assert_array_equal(reader(model, params)(images), read_digits(denoised))

    out = tmp_path / "out"
    words = "--sigma 0.5 --denoiser digits-blind --shift 0 --epochs 1 --train-images 128 --no-cache"
    assert main([*words.split(), "--validation", "100", "--out", str(out)]) == 0
    for name, part in (("denoiser", "denoiser"), ("noisy-digit-classifier", "classifier")):
        kind, trained = pretrained.load(name, out)
        assert type(kind) is type(getattr(model, part))
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), trained, params[part])
        assert all(jax.tree.leaves(moved)), name


def test_divergence_is_said_and_nothing_written(tmp_path, capsys):
    words = [*TINY, "--learning-rate", "1e37", "--out", str(tmp_path / "out")]
    assert main(words) == 1
    err = capsys.readouterr().err
    assert err.startswith("stopped: the loss is ") and err.count("\n") == 1
    assert list((tmp_path / "out").iterdir()) == []


def test_only_the_defaults_write_into_the_package():
    assert changed(parse([])) == []
    assert changed(parse(["--no-cache"])) == []
    assert parse(["--epochs", "1", "--out", "x"]).epochs == 1


BAD = [
    ("--sigma 0.5", ["--sigma 0.5", "--out DIR"]),
    ("--seed 1", ["--seed 1", "--out DIR"]),
    ("--sigma -1 --out x", ["sigma=-1", "at least 0"]),
    ("--sigma 1 0.5 --out x", ["(1.0, 0.5)", "in order"]),
    ("--sigma 0.1 0.2 0.3 --out x", ["one number or two", "3"]),
    ("--sigma high --out x", ["--sigma", "high"]),
    ("--epochs 0 --out x", ["--epochs 0", "at least 1"]),
    ("--epoch 3", ["--epoch"]),
    ("--features 8 0 --out x", ["--features 8 0", "positive"]),
    ("--shift -1 --out x", ["--shift -1", "at least 0"]),
    ("--shift 28 --out x", ["--shift 28", "less than 28"]),
    ("--seed 4294967296 --out x", ["--seed", "2**32"]),
    ("--batch-size 0 --out x", ["batch size 0", "at least 1"]),
    ("--batch-size 64 --train-images 9 --out x", ["64", "at most 9"]),
    ("--learning-rate nan --out x", ["learning rate nan"]),
    ("--train-images 0 --out x", ["--train-images 0", "at least 1"]),
    ("--train-images 55001 --validation 5000 --out x", ["55001", "at most the 55000"]),
    ("--validation 60000 --out x", ["--validation 60000", "less than"]),
    ("--denoiser digits-unet --out x", ["--denoiser digits-unet", "--sigma"]),
    ("--denoiser nobody --sigma 1 --out x", ["'nobody'", "digits-unet"]),
    ("--denoiser digit-classifier --sigma 1 --out x", ["restores no images"]),
    ("--denoiser digits-unet --sigma 1 --features 8 --out x", ["--features", "leave it out"]),
    ("--out /dev/null", ["/dev/null", "new or empty"]),
    ("--out /dev/null/x", ["/dev/null/x", "choose another"]),
    ("--out held", ["held", "new or empty"]),
]


@pytest.mark.parametrize(("words", "said"), BAD, ids=[words for words, _ in BAD])
def test_bad_input_is_one_line(words, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "held").mkdir()
    (tmp_path / "held" / "file").touch()
    assert main([*words.split(), "--no-cache"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1
    for part in said:
        assert part in err
    assert [path.name for path in tmp_path.iterdir()] == ["held"]
