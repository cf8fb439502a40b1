"""The throughput benchmark: what it times, its table and plot, what it refuses."""

import json

import jax
import jax.numpy as jnp
import pytest

from benchmarks import throughput
from benchmarks.timing import in_turn

pytestmark = pytest.mark.slow


def test_times_training_and_inference_beside_plain_layers(tmp_path, capsys):
    file, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    words = "--batch-sizes 1 32 --images 64 --repeats 2 --operations --plain"
    assert throughput.main([*words.split(), "--json", str(file), "--plot", str(plot)]) == 0
    report = json.loads(file.read_text())
    assert report["machine"]["jax"] == jax.__version__ and report["machine"]["cores"] >= 1
    assert min(report["ceilings"].values()) > 0
    kinds = [(r["task"], r["batch_size"], r["network"].split(" in a ")[0]) for r in report["rows"]]
    tasks = [("train", 32), ("infer", 1), ("infer", 32)]
    networks = ("jaxdae", throughput.OPERATIONS, "plain")
    assert kinds == [(*task, network) for task in tasks for network in networks]
    for row in report["rows"]:
        assert len(row["images_per_second"]) == 2 and min(row["images_per_second"]) > 0
        assert row["compile_seconds"] > 0 and row["bytes"] > 4 * 784
        # Forward, the products alone: 5.1 million multiplications and as many additions.
        assert 10e6 < row["operations"] < (45e6 if row["task"] == "train" else 16e6)
    printed = capsys.readouterr().out
    assert "ceilings: " in printed and "speedup of jaxdae" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(jax.device_count() < 2, reason="needs two devices")
def test_devices_share_each_batch(tmp_path):
    file = tmp_path / "figures.json"
    words = f"--tasks train --batch-sizes 32 --devices 2 --images 64 --repeats 1 --json {file}"
    assert throughput.main(words.split()) == 0
    (row,) = json.loads(file.read_text())["rows"]
    assert row["devices"] == 2 and row["images_per_second"][0] > 0


def test_operations_are_those_of_a_product():
    x, y = jnp.ones((32, 100)), jnp.ones((100, 50))
    operations, size = throughput.cost(jnp.dot, 32, x, y)
    assert operations == pytest.approx(2 * 100 * 50)
    assert size == pytest.approx(4 * (100 + 50 + 100 * 50 / 32))


def test_calls_are_timed_in_turn():
    calls = []
    seconds = in_turn({name: lambda name=name: calls.append(name) for name in "ab"}, 3)
    assert calls == list("ababab") and [len(s) for s in seconds.values()] == [3, 3]


@pytest.mark.parametrize(
    "words",
    [
        "--repeats 0",
        "--batch-sizes 0",
        "--json nowhere/file",
        "--plot nowhere/file",
        "--devices 2 --batch-sizes 33",
    ],
)
def test_bad_input_is_one_line(words, capsys):
    assert throughput.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
