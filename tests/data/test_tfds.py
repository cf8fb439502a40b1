"""TensorFlow Datasets, from small prepared ones: decoded once, verified, and never a surprise."""

import importlib.util
import io
import os
import subprocess
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from jaxdae import data
from jaxdae.data import tfds as reader
from tests.data.sources import pixels, refused


@pytest.fixture
def catalogue(tmp_path, monkeypatch):
    """An empty tfds folder and an empty cache."""
    pytest.importorskip("tensorflow_datasets")
    import tensorflow_datasets as tfds

    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path / "tfds"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def prepare(folder, name="mnist", splits=("train", "test"), seed=0):
    """A small data set on disk, as tfds would have prepared it; gives images by split."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from PIL import Image
    from tensorflow_datasets.proto import tf_example_pb2

    builder = tfds.builder(name, file_format="array_record", data_dir=folder)
    Path(builder.data_path).mkdir(parents=True)
    infos, arrays = [], {}
    for n, split in enumerate(splits, 3):
        arrays[split] = pixels(n, *builder.info.features["image"].shape, seed=seed + n)
        template = tfds.core.ShardedFileTemplate(
            data_dir=builder.data_path,
            dataset_name=name,
            split=split,
            filetype_suffix="array_record",
        )
        writer = ArrayRecordWriter(
            str(template.sharded_filepath(shard_index=0, num_shards=1)), "group_size:1"
        )
        for i, x in enumerate(arrays[split]):
            png, example = io.BytesIO(), tf_example_pb2.Example()
            Image.fromarray(x.squeeze()).save(png, "PNG")
            example.features.feature["image"].bytes_list.value.append(png.getvalue())
            example.features.feature["label"].int64_list.value.append(i)
            writer.write(example.SerializeToString())
        writer.close()
        infos.append(
            tfds.core.SplitInfo(
                name=split, shard_lengths=[n], num_bytes=1, filename_template=template
            )
        )
    builder.info.set_splits(tfds.core.SplitDict(infos))
    builder.info.write_to_directory(builder.data_path)
    return arrays


def same(dataset, arrays, test="test"):
    for split, name in ((dataset.train, "train"), (dataset.test, test)):
        np.testing.assert_array_equal(split.images, arrays[name])
        np.testing.assert_array_equal(split.labels, np.arange(len(arrays[name])))
    return True


def test_tfds_is_decoded_once_and_kept(catalogue, monkeypatch, capfd):
    arrays = prepare(catalogue / "tfds")
    assert same(data.load("tfds:mnist"), arrays)
    cache = catalogue / "cache" / "jaxdae" / "tfds" / "mnist" / "3.0.1"
    kept = ["SHA256SUMS"] + [
        f"{part}_{x}.npy" for part in ("test", "train") for x in ("images", "labels")
    ]
    assert sorted(path.name for path in cache.iterdir()) == kept
    subprocess.run(["sha256sum", "--check", "--quiet", "SHA256SUMS"], cwd=cache, check=True)
    monkeypatch.setattr(reader, "_decode", lambda *_: pytest.fail("decoded again"))
    assert same(data.load("tfds:mnist"), arrays)
    assert same(data.load("tfds:mnist:3.0.1"), arrays)
    assert capfd.readouterr() == ("", "")


def test_tfds_cache_dir(catalogue):
    arrays = prepare(catalogue / "tfds")
    assert same(data.load("tfds:mnist", cache_dir=catalogue / "other"), arrays)
    assert (catalogue / "other" / "tfds" / "mnist" / "3.0.1" / "SHA256SUMS").exists()
    assert not (catalogue / "cache").exists()
    (catalogue / "file").write_text("")
    refused("tfds:mnist", "cannot be written", "cache folder", cache_dir=catalogue / "file")


@pytest.mark.parametrize("file", ["train_images.npy", "test_labels.npy", "SHA256SUMS"])
@pytest.mark.parametrize("how", ["flipped", "cut", "gone"])
def test_tfds_damaged_cache_is_rebuilt(catalogue, file, how):
    arrays = prepare(catalogue / "tfds")
    data.load("tfds:mnist")
    path = next(catalogue.rglob(file))
    content = path.read_bytes()
    path.unlink()
    if how != "gone":
        path.write_bytes(
            content[:-40] + bytes([content[-40] ^ 1]) + content[-39:]
            if how == "flipped"
            else content[:-9]
        )
    assert same(data.load("tfds:mnist"), arrays)
    assert path.read_bytes() == content


def test_tfds_validation_stands_in_for_test(catalogue):
    arrays = prepare(catalogue / "tfds", "cifar10", ("train", "validation"))
    found = data.load("tfds:cifar10")
    assert found.image_shape == (32, 32, 3) and same(found, arrays, "validation")


def test_tfds_splits_and_damage(catalogue):
    prepare(catalogue / "tfds", splits=("train", "extra"))
    refused("tfds:mnist", "train, extra", "validation")
    prepare(catalogue / "tfds", "cifar10")
    records = next(catalogue.rglob("*train.array_record*"), None)
    for records in (catalogue / "tfds" / "cifar10").rglob("*.array_record*"):
        records.write_bytes(records.read_bytes()[:100])
    refused("tfds:cifar10", "cannot be read", "delete it")


def find_spec(*present, absent=()):
    real = importlib.util.find_spec

    def fake(name, *args):
        return object() if name in present else None if name in absent else real(name, *args)

    return fake


def test_tfds_unprepared(catalogue, monkeypatch, caplog, capfd):
    needs = ("tensorflow", "importlib_resources")
    monkeypatch.setattr(importlib.util, "find_spec", find_spec(absent=needs))
    monkeypatch.setattr(reader, "_reachable", lambda hosts: pytest.fail("probed"))
    refused("tfds:mnist", "not prepared", "pip install tensorflow importlib_resources")

    import tensorflow_datasets as tfds

    calls = []

    def download(builder, download_dir):
        print("Downloading")
        calls.append(Path(download_dir))
        prepare(catalogue / "elsewhere")
        os.renames(catalogue / "elsewhere", catalogue / "tfds")
        builder.info.read_from_directory(builder.data_path)

    builder_class = tfds.core.DatasetBuilder
    hosts = [("a.test", 443)]
    monkeypatch.setattr(reader, "_download_hosts", lambda builder: hosts)
    monkeypatch.setattr(builder_class, "download_and_prepare", download)
    monkeypatch.setattr(importlib.util, "find_spec", find_spec(*needs))
    seen = []
    monkeypatch.setattr(reader, "_reachable", lambda hosts: seen.append(hosts))
    refused("tfds:mnist", "not prepared", "does not answer", "network")
    assert seen == [hosts] and not calls

    monkeypatch.setattr(reader, "_reachable", lambda hosts: True)
    assert data.load("tfds:mnist").image_shape == (28, 28, 1)
    assert calls == [catalogue / "tfds" / "downloads" / "mnist" / "3.0.1"]
    assert not caplog.records and capfd.readouterr().out == ""

    def fail(builder, download_dir):
        raise AssertionError("Manual download\n  required")

    monkeypatch.setattr(builder_class, "download_and_prepare", fail)
    refused("tfds:cifar10", "preparing it failed", "Manual download required")


def test_download_hosts(monkeypatch):
    hosts = reader._download_hosts
    monkeypatch.setattr(reader.urllib.request, "getproxies", dict)
    assert hosts(SimpleNamespace(url_infos=None)) == [("storage.googleapis.com", 443)]
    proxies = {"https": "http://proxy.test:3128", "http": "http://proxy.test"}
    monkeypatch.setattr(reader.urllib.request, "getproxies", lambda: proxies)
    monkeypatch.setattr(reader.urllib.request, "proxy_bypass", lambda host: host == "b.test")
    builder = SimpleNamespace(url_infos={"https://a.test/": 0, "http://b.test:81/": 0})
    assert hosts(builder) == [("b.test", 81), ("proxy.test", 3128)]


def test_no_network_is_noticed_in_time(monkeypatch):
    assert reader.PROBE_SECONDS < 9
    monkeypatch.setattr(reader, "PROBE_SECONDS", 0.3)
    start = time.monotonic()
    with monkeypatch.context() as patched:  # a name server that says nothing
        patched.setattr(reader.socket, "create_connection", lambda *_, **__: time.sleep(3))
        assert not reader._reachable([("a.test", 443)] * 8)
    assert time.monotonic() - start < 1.5

    def refuse(host, timeout):
        raise UnicodeError if host[1] == 1 else OSError

    with monkeypatch.context() as patched:
        patched.setattr(reader.socket, "create_connection", refuse)
        assert not reader._reachable([("a.test", 1), ("b.test", 2)])
        assert not reader._reachable([])
    with reader.socket.create_server(("127.0.0.1", 0)) as server:
        assert reader._reachable([("127.0.0.1", server.getsockname()[1])])


def test_tfds_names(catalogue, monkeypatch):
    refused("tfds:fashion_mnst", "fashion_mnst", "tfds:fashion_mnist")
    refused("tfds:mnist:9.9.9", "mnist:9.9.9", "name a version it has")
    refused("tfds:qqqqqqqq", "unknown", "https://")
    refused("tfds:mnist/colour", "mnist/colour")
    for name in ("../up", "mnist/x/y", "kubric:optical_flow", "a b", "~"):
        refused(f"tfds:{name}", "give tfds:NAME")
    refused("tfds:coil100", "coil100")
    monkeypatch.setattr(importlib.util, "find_spec", find_spec(absent=("tensorflow_datasets",)))
    refused("tfds:mnist", "pip install tensorflow-datasets")


def test_tfds_images_must_have_one_size(catalogue):
    refused("tfds:imagenette", "(None, None, 3)", "one size")
    refused("tfds:ag_news_subset", "absent")
