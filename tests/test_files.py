"""Files are written whole or not at all."""

import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from jaxdae.files import replacing, write_whole


def test_bytes_and_text_are_written_below_folders_that_are_made(tmp_path):
    write_whole(tmp_path / "new" / "folder" / "a.txt", "grün\n")
    write_whole(tmp_path / "new" / "b", b"\x00\xff")
    assert (tmp_path / "new" / "folder" / "a.txt").read_bytes() == "grün\n".encode()
    assert (tmp_path / "new" / "b").read_bytes() == b"\x00\xff"
    assert sorted(os.listdir(tmp_path / "new")) == ["b", "folder"]


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.png"
    path.write_text("old")

    def interrupted():
        with replacing(path) as temporary:
            assert temporary.parent == tmp_path and temporary.suffix == ".png"
            temporary.write_text("half of the n")
            assert path.read_text() == "old"
            raise error

    with pytest.raises(error):
        interrupted()
    assert os.listdir(tmp_path) == ["a.png"] and path.read_text() == "old"


def test_what_cannot_be_replaced_is_left(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", "text")
    assert os.listdir(tmp_path) == ["folder"]
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="file"):
        write_whole(tmp_path / "file" / "below", "text")
    assert (tmp_path / "file").read_text() == "mine"


def test_threads_that_write_one_file_write_it_whole(tmp_path):
    path = tmp_path / "a"
    texts = [str(i) * 100_000 for i in range(8)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda text: write_whole(path, text), texts))
    assert path.read_text() in texts and os.listdir(tmp_path) == ["a"]
