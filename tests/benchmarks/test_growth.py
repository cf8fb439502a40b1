"""The benchmark of growth: a point of each axis, its table and plot, what it refuses."""

import json

import pytest

from benchmarks import growth

pytestmark = pytest.mark.slow


def test_every_axis_is_measured(tmp_path, capsys):
    file, plot = tmp_path / "figures.json", tmp_path / "plot.png"
    words = f"--largest 28 --images 32 --repeats 1 --axes size data --json {file} --plot {plot}"
    assert growth.main(words.split()) == 0
    axes = json.loads(file.read_text())["axes"]
    assert [row["at"] for row in axes["size"]] == ["28x28"]
    names = ["10,000 images, on the device", "10,000 images, streamed"]
    assert [row["at"] for row in axes["data"]] == names
    for row in axes["size"] + axes["data"]:
        assert len(row["images_per_second"]) == 1 and row["images_per_second"][0] > 0
    for row in axes["data"]:
        assert 20 < row["megabytes"][0] < 4000
    printed = capsys.readouterr().out
    assert "| 28x28 |" in printed and "memory, MB" in printed and "GFLOP/s" in printed
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_devices_are_counted_in_processes_of_their_own():
    (row,) = growth.devices([2], 64, 1)
    assert row["devices"] == 2 and row["images_per_second"][0] > 0


@pytest.mark.parametrize("words", ["--repeats 0", "--largest 27", "--json nowhere/file"])
def test_bad_input_is_one_line(words, capsys):
    assert growth.main(words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
