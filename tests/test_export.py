"""Exported networks compute what the networks do, and what cannot be exported is one line."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial

import jax
import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import exported, exported_worker
from benchmarks.exported import random_params
from experiments import export as command
from experiments.runs.models import Loaded, load_model
from jaxdae import export, pretrained
from jaxdae.errors import InputError
from jaxdae.model import (
    DenoisingAutoencoder,
    DenseAutoencoder,
    MaxPoolAutoencoder,
    PhotoDenoiser,
    UNet,
    build,
)

jax.devices()  # all of them, before a command asks for one

ODD = {
    "strided": DenoisingAutoencoder(3, 2, (7, 10), features=(4, 5), latent_dim=3),
    "maxpool": MaxPoolAutoencoder(2, 1, (9, 14), features=(4, 3, 5)),
    "transposed": MaxPoolAutoencoder(1, 3, (5, 6), features=(3, 4), upsampling="transposed"),
    "dense": DenseAutoencoder(2, 1, (3, 5), features=(6,), latent_dim=4),
    "unet": UNet(1, 2, (9, 7), features=(3, 4), bridge=6, bridge_channels=2),
    "linear": UNet(1, 2, (9, 7), "linear", features=(3, 4)),
}
ANY_SIZE = {
    "maxpool": MaxPoolAutoencoder(2, 1, features=(4, 3, 5)),
    "transposed": MaxPoolAutoencoder(1, 3, features=(3, 4), upsampling="transposed"),
    "unet": UNet(1, 2, features=(3, 4, 5)),
    "photo": PhotoDenoiser(2, features=(4, 3, 5), blocks=1),
}
SMALL = build("dense", image_size=(2, 3), channels=1, features=(2,), latent_dim=2)


def random_images(shape, batch):
    return np.random.default_rng(batch).random((batch, *shape), np.float32)


def run_stablehlo(content, x):
    return jax.export.deserialize(bytearray(content)).call(x)


def run_for_cuda(model, params, part, x):
    """What a GPU or a TPU would run: XLA's own convolutions; run here."""
    content = export.to_stablehlo(model, params, part, platforms=("cuda",))
    program = jax.export.deserialize(bytearray(content))
    assert program.platforms == ("cuda",)
    return replace(program, platforms=("cpu",)).call(x)


def run_onnx(content, x):
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (given,), (gives,) = session.get_inputs(), session.get_outputs()
    (out,) = session.run(None, {given.name: x})
    for side, values in ((given, x), (gives, out)):
        assert side.shape[0] == "batch"
        known = [n for n in side.shape if not isinstance(n, str)]
        assert known == list(values.shape[-len(known) :])
    return out


@pytest.mark.parametrize("name", ODD)
def test_every_architecture_at_an_odd_size(name):
    model = ODD[name]
    params = random_params(model)
    x = random_images(model.example.shape[1:], 3)
    expected = jax.jit(partial(model.apply, {"params": params}))(x)
    assert expected.std() > 0.01
    program = export.to_stablehlo(model, params)
    assert jax.export.deserialize(bytearray(program)).platforms == ("cpu", "cuda", "tpu")
    graph = export.to_onnx(model, params, {})
    np.testing.assert_allclose(run_stablehlo(program, x[:2]), expected[:2], atol=1e-6)
    for batch in (1, 3):
        np.testing.assert_allclose(run_onnx(graph, x[:batch]), expected[:batch], atol=1e-6)
    np.testing.assert_allclose(run_for_cuda(model, params, "whole", x), expected, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("name", ANY_SIZE)
def test_one_file_takes_images_of_all_sizes(name):
    model = ANY_SIZE[name]
    params = random_params(model)
    program, graph = export.to_stablehlo(model, params), export.to_onnx(model, params, {})
    for size in [(28, 28), (33, 21), (5, 64), (2, 3), (1, 1)]:
        x = random_images((*size, model.channels), 2)
        expected = jax.jit(partial(model.apply, {"params": params}))(x)
        close = {"rtol": 0, "atol": 1e-5 * max(1, np.abs(expected).max())}
        np.testing.assert_allclose(run_stablehlo(program, x), expected, **close)
        np.testing.assert_allclose(run_onnx(graph, x), expected, **close)
    if name in ("unet", "photo"):
        return
    x = random_images((12, 20, model.channels), 2)
    latent = jax.jit(partial(model.apply, {"params": params}, method="encode"))(x)
    images = jax.jit(partial(model.apply, {"params": params}, method="decode"))(latent)
    for part, goes_in, expected in (
        ("encoder", x, latent),
        ("decoder", np.array(latent), images),
    ):
        graph = export.to_onnx(model, params, {}, part)
        np.testing.assert_allclose(run_onnx(graph, goes_in), expected, atol=1e-5)
        program = export.to_stablehlo(model, params, part)
        np.testing.assert_allclose(run_stablehlo(program, goes_in), expected, atol=1e-5)


@pytest.mark.parametrize("channels", [(1, None), (3, 2)])
@pytest.mark.parametrize("level", [(), (3, 4)])
def test_the_noise_level_of_onnx_may_be_left_out(channels, level):
    model = PhotoDenoiser(*channels, features=(4, 3), blocks=1, level_features=level)
    params = random_params(model)
    content = export.to_onnx(model, params, {})
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    x = random_images((9, 14, model.channels), 2)
    for sigma in (None, [0.2], [0.1, 0.3]):
        level = None if sigma is None else np.array(sigma, np.float32)
        given = {"images": x} | ({} if sigma is None else {"sigma": level})
        level = level[0] if sigma and len(sigma) == 1 else level
        expected = jax.jit(model.apply)({"params": params}, x, level)
        np.testing.assert_allclose(session.run(None, given)[0], expected, atol=1e-5)
        assert expected.std() > 0.01


def test_halves_are_the_halves():
    model = ODD["strided"]
    params = random_params(model)
    apply = partial(model.apply, {"params": params})
    x = random_images(model.example.shape[1:], 5)
    latent = jax.jit(partial(apply, method="encode"))(x)
    images = jax.jit(partial(apply, method="decode"))(latent)
    for part, goes_in, expected in (("encoder", x, latent), ("decoder", np.array(latent), images)):
        program = export.to_stablehlo(model, params, part)
        graph = export.to_onnx(model, params, {}, part)
        np.testing.assert_allclose(run_stablehlo(program, goes_in), expected, atol=1e-5)
        np.testing.assert_allclose(run_onnx(graph, goes_in), expected, atol=1e-5)


def fields_of(kind):
    """What an architecture can be built with."""
    sizes, window = st.integers(1, 13), st.integers(1, 5)
    fields = {
        "image_size": st.tuples(sizes, sizes),
        "channels": st.integers(1, 3),
        "features": st.lists(st.integers(1, 5), min_size=1, max_size=3).map(tuple),
        "out_channels": st.integers(1, 3),
    }
    own = {
        "strided": {"kernel_size": st.tuples(window, window), "latent_dim": st.integers(1, 4)},
        "maxpool": {"upsampling": st.sampled_from(["nearest", "transposed"])},
        "dense": {"latent_dim": st.integers(1, 4)},
        "unet": {"bridge": st.integers(0, 5), "bridge_channels": st.integers(1, 3)},
    }
    return st.fixed_dictionaries(fields | own[kind])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "part"),
    [
        *(("strided", part) for part in export.METHODS),
        *(("maxpool", part) for part in export.METHODS),
        ("dense", "whole"),
        ("unet", "whole"),
    ],
)
@given(data=st.data())
@settings(max_examples=4)
def test_onnx_is_the_network_at_any_size(kind, part, data):
    model = build(kind, **data.draw(fields_of(kind)))
    seed = data.draw(st.integers(0, 3))
    params = random_params(model, seed)
    x = random_images(export.input_shape(model, params, part), 1 + seed)
    expected = np.asarray(run_for_cuda(model, params, part, x))
    found = run_onnx(export.to_onnx(model, params, {}, part), x)
    np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_onnx_takes_no_images_too():
    params = random_params(ODD["maxpool"])
    graph = export.to_onnx(ODD["maxpool"], params, {})
    assert run_onnx(graph, random_images((9, 14, 2), 0)).shape == (0, 9, 14, 1)


def test_exports_compute_in_float32():
    """Whatever the types of the parameters, and the one that the network computes in."""
    params = random_params(ODD["dense"])
    wide = jax.tree.map(lambda leaf: leaf.astype(np.float64), params)
    narrow = replace(ODD["dense"], dtype="bfloat16")
    x = random_images((3, 5, 2), 2)
    expected = run_stablehlo(export.to_stablehlo(ODD["dense"], params), x)
    assert expected.dtype == np.float32
    for model, leaves in ((narrow, params), (ODD["dense"], wide)):
        found = run_stablehlo(export.to_stablehlo(model, leaves), x)
        np.testing.assert_array_equal(found, expected, strict=True)
        np.testing.assert_allclose(run_onnx(export.to_onnx(model, leaves, {}), x), expected, 1e-6)


def test_stablehlo_says_nothing_of_the_machine_and_is_repeatable():
    params = random_params(SMALL)
    before = jax.config.jax_traceback_in_locations_limit
    program = export.to_stablehlo(SMALL, params)
    assert b".py" not in program
    assert program == export.to_stablehlo(SMALL, params)
    assert jax.config.jax_traceback_in_locations_limit == before


def test_stablehlo_runs_with_jax_alone(tmp_path):
    params = random_params(SMALL)
    (tmp_path / "program").write_bytes(export.to_stablehlo(SMALL, params))
    x = random_images(SMALL.example.shape[1:], 2)
    code = (
        "import sys; sys.modules.update(dict.fromkeys(['flax', 'jaxdae', 'orbax', 'optax']))\n"
        "import json, jax.export, numpy\n"
        "program = jax.export.deserialize(bytearray(open('program', 'rb').read()))\n"
        "x = numpy.array(json.loads(sys.argv[1]), numpy.float32)\n"
        "print(json.dumps(program.call(x).tolist()))"
    )
    words = [sys.executable, "-c", code, json.dumps(x.tolist())]
    done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
    expected = SMALL.apply({"params": params}, x)
    np.testing.assert_allclose(np.array(json.loads(done.stdout)), expected, atol=1e-6)


@pytest.mark.parametrize("name", ["digits-blind", "digits-unet"])
def test_safetensors_come_back_to_the_bit(name, tmp_path):
    model, params = pretrained.load(name)
    card = pretrained.card(name)
    path = tmp_path / "mine.safetensors"
    path.write_bytes(export.to_safetensors(params, card))
    again = load_model(str(path))
    assert (again.model, again.card) == (model, card)
    jax.tree.map(partial(np.testing.assert_array_equal, strict=True), again.params, params)
    plain = safetensors.numpy.load_file(path)
    assert plain.keys() == pretrained.flat(params).keys()


def test_a_graph_carries_its_card():
    card = pretrained.card("digits-blind")
    graph = onnx.load_from_string(export.to_onnx(*pretrained.load("digits-blind"), card))
    assert {entry.key: json.loads(entry.value) for entry in graph.metadata_props} == {"card": card}
    assert graph.doc_string == card["about"]
    assert graph.producer_name == "jaxdae"
    # The parameters by their paths, and the layers that one expects: nothing is transposed within.
    assert "encoder/conv_0/kernel" in {constant.name for constant in graph.graph.initializer}
    kinds = [node.op_type for node in graph.graph.node]
    assert " ".join(kinds) == (
        "Transpose Conv Relu Conv Relu Transpose Reshape Gemm "
        "Gemm Reshape Transpose ConvTranspose Relu ConvTranspose Relu ConvTranspose Sigmoid "
        "Transpose"
    )


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "another"])
def test_a_damaged_safetensors_file_is_one_line(damage, tmp_path):
    path = tmp_path / "mine.safetensors"
    params = random_params(SMALL)
    content = bytearray(
        export.to_safetensors(params, pretrained.describe("mine", SMALL, params, {}))
    )
    if damage == "truncate":
        del content[len(content) // 2 :]
    elif damage == "flip":
        content[-3] ^= 1
    elif damage == "empty":
        content.clear()
    else:
        content = safetensors.numpy.save({"weight": np.zeros(3, np.float32)})
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"mine.safetensors is damaged, or is no network"):
        load_model(str(path))


def test_what_restores_no_images_is_refused(tmp_path):
    _, params = pretrained.load("digit-classifier")
    path = tmp_path / "digits.safetensors"
    path.write_bytes(export.to_safetensors(params, pretrained.card("digit-classifier")))
    with pytest.raises(InputError, match="is not a denoiser"):
        load_model(str(path))


class Wider(DenseAutoencoder):
    """An architecture of a user's own."""


def test_what_has_no_such_form_is_refused():
    params = random_params(SMALL)
    with pytest.raises(InputError, match="UNet has no latent and so no encoder"):
        export.to_stablehlo(ODD["unet"], {}, "encoder")
    with pytest.raises(InputError, match="UNet has no latent and so no decoder"):
        export.to_onnx(ODD["unet"], {}, {}, "decoder")
    with pytest.raises(InputError, match="there is no part 'head'"):
        export.to_onnx(SMALL, params, {}, "head")
    with pytest.raises(InputError, match="Wider has no form in ONNX"):
        export.to_onnx(Wider((2, 3, 1), features=(2,), latent_dim=2), params, {})


# The command.


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, with a finished run's network in it."""
    monkeypatch.chdir(tmp_path)
    params = random_params(SMALL)
    pretrained.save("model", SMALL, params, {"about": "nothing"}, tmp_path / "runs" / "sigma0.5")
    return tmp_path


def export_(*words):
    return command.main([*words, "--out", "out", "--no-cache"])


def written(folder):
    return sorted(path.name for path in (folder / "out").iterdir())


def test_writes_every_format_and_part_compared(here, capsys):
    assert export_("runs/sigma0.5", "--part", "whole", "encoder", "decoder") == 0
    names = [
        f"sigma0.5{part}.{kind}"
        for kind in ("onnx", "stablehlo")
        for part in ("", "-encoder", "-decoder")
    ]
    assert written(here) == sorted([*names, "sigma0.5.safetensors"])
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 7
    for line in lines:
        path, _, rest = line.partition(": ")
        assert rest.startswith(f"{(here / path).stat().st_size:,} bytes; ")
        assert ("by batch size: " if "safetensors" not in path else "to the bit") in rest
    # And on from what was written, under the name of the file.
    assert export_("out/sigma0.5.safetensors", "--format", "safetensors", "--no-check") == 2
    shutil.move("out/sigma0.5.safetensors", "again.safetensors")
    words = ("--format", "onnx", "onnx", "--no-check")
    assert export_("again.safetensors", *words) == 0
    assert (here / "out/again.onnx").read_bytes() == (here / "out/sigma0.5.onnx").read_bytes()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing", "MODEL nothing is no model: give"),
        ("digit-classifier", "MODEL digit-classifier is not a denoiser"),
        ("runs", "MODEL runs holds no model.npz"),
        ("runs/sigma0.5 --format pickle", "format"),
        ("runs/sigma0.5 --part head", "part"),
        ("runs/sigma0.5 --format", "--format is empty"),
        ("digits-unet --format stablehlo --part whole encoder", "UNet has no latent"),
        ("", "MODEL"),
    ],
)
def test_bad_input_is_one_line(words, said, here, capsys):
    assert export_(*words.split()) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not (here / "out").exists()


def test_nothing_is_overwritten(here, capsys):
    (here / "out").mkdir()
    (here / "out/sigma0.5.onnx").write_text("mine")
    assert export_("runs/sigma0.5") == 2
    assert "out/sigma0.5.onnx exists: remove it" in capsys.readouterr().err
    assert written(here) == ["sigma0.5.onnx"]
    assert (here / "out/sigma0.5.onnx").read_text() == "mine"
    shutil.rmtree(here / "out")
    (here / "out").write_text("mine")
    assert export_("runs/sigma0.5") == 2
    assert "--out out is a file" in capsys.readouterr().err


@pytest.mark.parametrize("package", ["flatbuffers", "onnx", "onnxruntime", "safetensors"])
def test_a_missing_package_is_one_line(package, here, capsys, monkeypatch):
    monkeypatch.setattr(
        "jaxdae.export.parts.find_spec", lambda name: None if name == package else name
    )
    assert export_("runs/sigma0.5") == 2
    error = capsys.readouterr().err
    assert error == f"error: this export needs {package}: pip install {package}\n"
    assert not (here / "out").exists()
    kind = {"flatbuffers": "onnx", "safetensors": "onnx"}.get(package, "safetensors")
    assert export_("runs/sigma0.5", "--format", kind, "--no-check") == 0  # which wants no such


def test_all_missing_packages_are_told_at_once(here, capsys, monkeypatch):
    monkeypatch.setattr("jaxdae.export.parts.find_spec", lambda name: None)
    assert export_("runs/sigma0.5", "--format", "onnx", "safetensors") == 2
    assert capsys.readouterr().err.endswith("pip install onnx onnxruntime safetensors\n")
    params = random_params(SMALL)
    for make, package in (
        (lambda: export.to_stablehlo(SMALL, params), "flatbuffers"),
        (lambda: export.to_onnx(SMALL, params, {}), "onnx"),
        (lambda: export.to_safetensors(params, {}), "safetensors"),
        (lambda: export.from_safetensors(here / "x"), "safetensors"),
    ):
        with pytest.raises(InputError, match=f"needs {package}: pip install {package}$"):
            make()


@pytest.mark.parametrize(
    ("kind", "said"),
    [("stablehlo", "would differ from the network by"), ("safetensors", "other parameters")],
)
def test_what_differs_is_not_written(kind, said, here, capsys, monkeypatch):
    """None of the files is, if one of them is of another network."""
    other = random_params(SMALL, seed=1)
    card = pretrained.describe("other", SMALL, other, {})
    content = {
        "stablehlo": export.to_stablehlo(SMALL, other),
        "safetensors": export.to_safetensors(other, card),
    }[kind]
    monkeypatch.setattr(export, f"to_{kind}", lambda *_: content)
    assert export_("runs/sigma0.5") == 1
    error = capsys.readouterr().err
    assert said in error and "nothing was written" in error and error.count("\n") == 1
    assert written(here) == []


def test_what_is_no_number_is_not_written(here, capsys):
    params = random_params(SMALL)
    params["decoder"]["dense_0"]["bias"][:] = np.nan
    pretrained.save("model", SMALL, params, {}, here / "runs" / "diverged")
    for kind in ("stablehlo", "onnx"):
        assert export_("runs/diverged", "--format", kind) == 1
        assert "would differ from the network by nan" in capsys.readouterr().err
        assert written(here) == []


# The comparison in an environment without jaxdae.


@pytest.fixture
def small(monkeypatch):
    params = random_params(SMALL)
    loaded = Loaded(SMALL, params, pretrained.describe("small", SMALL, params, {}))
    monkeypatch.setattr(exported, "networks", lambda: [("small", loaded)])
    monkeypatch.setattr(exported, "environment", lambda *_: sys.executable)
    return loaded


def test_the_worker_finds_what_differs(small, tmp_path, capsys, monkeypatch):
    exported.write(tmp_path, "small", small)
    monkeypatch.setattr(exported_worker, "find_spec", lambda name: None)
    exported_worker.main(tmp_path)
    result = json.loads(capsys.readouterr().out)
    assert result["about"]["onnxruntime"] == onnxruntime.__version__
    assert sorted(result["differences"]) == ["small.onnx", "small.stablehlo"]
    for found in result["differences"].values():
        assert list(found) == ["1", "7", "512"]
        assert max(found.values()) < 1e-6
    arrays = dict(np.load(tmp_path / "small.npz"))
    arrays["expected"][-1, 0, 0, 0] += 0.25
    np.savez(tmp_path / "small.npz", **arrays)
    exported_worker.main(tmp_path)
    differences = json.loads(capsys.readouterr().out)["differences"]
    for found in differences.values():
        np.testing.assert_allclose(list(found.values()), 0.25, atol=1e-5)


def test_the_worker_wants_an_environment_without_jaxdae(small, capsys):
    assert exported.main([]) == 1
    error = capsys.readouterr().err
    assert "said: AssertionError: " in error and "is in this environment" in error
    assert error.count("\n") == 1


def test_a_python_that_is_none_is_one_line(small, capsys):
    assert exported.main(["--python", "nowhere/python"]) == 1
    error = capsys.readouterr().err
    assert "nowhere/python" in error and error.count("\n") == 1


@pytest.mark.parametrize(("difference", "status"), [(9e-6, 0), (2e-5, 1)])
def test_the_table_and_the_verdict(difference, status, small, tmp_path, capsys, monkeypatch):
    row = {"1": 1e-7, "7": difference, "512": 0.0}
    result = {"about": {"jax": "1.0"}, "differences": {"small.onnx": row}}
    monkeypatch.setattr(exported, "compare", lambda *_: result)
    assert exported.main(["--json", str(tmp_path / "file")]) == status
    assert json.loads((tmp_path / "file").read_text()) == result
    out = capsys.readouterr().out
    assert f"| small.onnx | 1.0e-07 | {difference:.1e} | 0.0e+00 |" in out
    assert f"largest of all: {difference:.1e}" in out
    assert exported.main(["--json", str(tmp_path)]) == 2
