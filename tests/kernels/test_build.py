"""The build of the kernels: other processors, no compiler, the cache; and that bits are fixed."""

import os
import platform
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export

from jaxdae.kernels import build, conv
from jaxdae.model import DenoisingAutoencoder
from tests.kernels.reference import needs_compiler, random_normal

pytestmark = needs_compiler


@pytest.fixture(autouse=True, scope="module")
def compiled():
    assert build.available()


def has(flag):
    """Whether Linux says this of the processor."""
    about = Path("/proc/cpuinfo")
    return about.is_file() and f" {flag} " in about.read_text().replace("\n", " ")


def test_disabled():
    assert build.available()
    with build.disabled():
        assert not build.available()


PROGRAM = """
import os, sys
os.sched_setaffinity(0, set(sorted(os.sched_getaffinity(0))[:int(sys.argv[1])]))
import hashlib, jax, jax.numpy as jnp
from jaxdae.kernels import AdamState, adam_step, build, conv
from jaxdae.model import DenoisingAutoencoder
assert build.available()
for dtype in (jnp.float32, jnp.bfloat16):
    model = DenoisingAutoencoder(dtype=dtype)
    images = jax.random.uniform(jax.random.key(0), (32, 28, 28, 1))
    params = jax.jit(model.init)(jax.random.key(1), images)["params"]
    layer = params["encoder"]["conv_1"]
    x = jax.random.normal(jax.random.key(2), (32, 14, 14, 32)).astype(dtype)
    function = lambda x, k, b: conv(x, k, b, stride=2, rectify=True)
    y, vjp = jax.vjp(function, x, layer["kernel"], layer["bias"])
    draw = lambda i, *sizes: [jax.random.uniform(jax.random.key(i), n) for n in sizes]
    sizes = (700, 40), (40,), (4096, 3)
    state = AdamState(draw(0, *sizes), draw(1, *sizes), draw(2, (700,)), draw(3, ()))
    steps = adam_step([0.9, 0.99, 2, 0, 3, 1e-7, -1, 0.9], draw(4, *sizes), state, [(0, 1)])
    for array in (y, *vjp(y), *jax.tree.leaves(steps)):
        print(hashlib.sha256(jax.device_get(array).tobytes()).hexdigest())
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_the_bits_do_not_depend_on_the_threads():
    def run(processors):
        said = subprocess.run(
            [sys.executable, "-c", PROGRAM, str(processors)],
            env={**os.environ, "XLA_FLAGS": ""},
            capture_output=True,
            text=True,
            check=True,
        )
        return said.stdout

    alone = run(1)
    assert len(alone.splitlines()) == 2 * (4 + 11)
    assert alone == run(os.cpu_count())


OTHERS = """
import sys, numpy as np, jax, jax.numpy as jnp
from functools import partial
from jaxdae.kernels import AdamState, adam_step, build, conv, conv_transpose, normal
from jaxdae.kernels.adam import _adam
build.OPTIONS = (*build.OPTIONS, *sys.argv[1:])
assert build.available()
assert build.uses_amx(jnp.bfloat16) == ("-D__AMX_BF16__" in sys.argv)
assert not build.uses_amx(jnp.float32)

draws = np.random.default_rng(0)
draw_normal = lambda *shape: jnp.asarray(draws.standard_normal(shape, np.float32))
several = ((1, 32), (20, 1), (33, 70), (64, 32))
for layer, stride, size, taps, channels in (
    (conv, 2, (3, 9, 8), 3, several), (conv_transpose, 2, (3, 9, 8), 3, several),
    (conv_transpose, 1, (3, 9, 8), 3, several), (conv, 1, (3, 1, 1), 1, several),
    (conv, 1, (40, 1, 1), 1, ((600, 70), (20, 300))),  # dense layers with a split K, or wide
    # Winograd, and row streaming
    (conv, 2, (19, 10, 12), 3, several[3:]), (conv_transpose, 2, (19, 5, 6), 3, several[3:]),
    (conv_transpose, 1, (3, 5, 30), 3, ((32, 1),)),
):
    for inputs, outputs in channels:
        for dtype, eps in ((jnp.float32, 1e-5), (jnp.bfloat16, 2.0**-7)):
            x = draw_normal(*size, inputs).astype(dtype)
            kernel, bias = draw_normal(taps, taps, inputs, outputs) / taps, draw_normal(outputs)
            g = draw_normal(*jax.eval_shape(partial(layer, stride=stride), x, kernel).shape)

            def run(g, *arguments):
                out, vjp = jax.vjp(partial(layer, stride=stride, rectify=True), *arguments)
                return out, *vjp(g.astype(dtype))

            got = jax.jit(run)(g, x, kernel, bias)
            with build.disabled():  # by another name, for what was traced of `run` is kept
                want = jax.jit(lambda *arguments: run(*arguments))(g, x, kernel, bias)
            for a, b in zip(got, want, strict=True):
                a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
                assert np.linalg.norm(a - b) <= eps * np.linalg.norm(b), (layer, inputs, dtype)

draw = lambda i, *sizes: [jax.random.uniform(jax.random.key(i), n) for n in sizes]
sizes = (300, 20), (20,), (5000,)
state = AdamState(draw(0, *sizes), draw(1, *sizes), draw(2, (300,)), draw(3, ()))
scales, gradient = [0.9, 0.99, 2.0, 0.5, 3.0, 1e-7, -1.0, 0.9], draw(4, *sizes)
got = jax.tree.leaves(adam_step(scales, gradient, state, [(0, 1)]))
want = _adam(jnp.array(scales), *gradient, *jax.tree.leaves(state), pairs=((0, 1),))
for a, b in zip(got, want, strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)

key = jax.random.key(0)
np.testing.assert_array_equal(normal(key, 5000), jax.random.normal(key, (5000,)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags of another processor")
@pytest.mark.parametrize(
    "flags",
    [
        ["-march=x86-64-v3"],
        ["-mno-amx-tile", "-mno-amx-bf16"],
        pytest.param(
            ["-mno-amx-tile", "-mno-amx-bf16", "-mno-avx512bf16"],
            marks=pytest.mark.skipif(not has("avx512_bf16"), reason="the same without"),
        ),
        pytest.param(
            ["-D__AMX_BF16__", "-include", str(Path(__file__).with_name("tiles.h"))],
            marks=pytest.mark.skipif(not has("avx512f"), reason="tiles come with AVX-512"),
        ),
    ],
    ids=["vectors of eight", "no tiles", "no products of bfloat16", "tiles in software"],
)
def test_other_processors(flags, tmp_path):
    """Vectors of eight, without bfloat16; vectors of sixteen, without tiles; and with them."""
    subprocess.run(
        [sys.executable, "-c", OTHERS, *flags],
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)},
        check=True,
        timeout=300,
    )


@pytest.fixture
def forgotten_library():
    """As if nothing had been compiled or looked for."""
    build._load.cache_clear()
    yield
    build._load.cache_clear()
    assert build.available()


@pytest.mark.usefixtures("forgotten_library")
def test_without_a_compiler(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert not build.available()
    assert not build.uses_amx(jnp.bfloat16)
    x, kernel = random_normal(0, (2, 8, 8, 4)), random_normal(1, (3, 3, 4, 5))
    program = jax.jit(lambda x: conv(x, kernel)).lower(x)
    assert "jaxdae_conv_forward" not in program.as_text()
    got = program.compile()(x)
    monkeypatch.undo()
    build._load.cache_clear()
    np.testing.assert_allclose(got, conv(x, kernel), rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("forgotten_library")
def test_a_compiler_that_fails_leaves_nothing(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "OPTIONS", (*build.OPTIONS, "--no-such-option"))
    assert not build.available()
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_the_library_is_kept_and_mended(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(build, "OPTIONS", (*build.OPTIONS, "-O0"))  # sooner compiled
    path = build._build("float32")
    before = path.stat().st_mtime_ns
    assert build._build("float32") == path
    assert path.stat().st_mtime_ns == before
    path.write_bytes(b"no library")
    assert hasattr(build._open("float32"), "jaxdae_conv_forward")
    assert path.read_bytes() != b"no library"
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_what_was_traced_without_is_not_kept():
    """A batch for which the dense layer and what follows it are one, through a named function."""
    model = DenoisingAutoencoder(image_size=(8, 8), features=(4, 8), latent_dim=3)
    x = random_normal(0, (40, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(0), x)

    def program():
        return jax.jit(lambda x: model.apply(params, x)).lower(x).as_text()

    with build.disabled():
        assert "jaxdae_conv_forward" not in program()
        assert "dot_general" in program()
    assert "jaxdae_conv_forward" in program()
    assert "dot_general" not in program()


def test_a_model_can_be_exported_as_it_is():
    """By `jax.export` itself: a file knows nothing of these kernels."""
    model = DenoisingAutoencoder(image_size=(8, 8), features=(4, 8))
    x = random_normal(0, (3, 8, 8, 1))
    params = jax.jit(model.init)(jax.random.key(0), x)
    whole = jax.jit(partial(model.apply, params))
    assert "jaxdae_conv_forward" in whole.lower(x).as_text()
    exported = export.export(whole)(x)
    assert "jaxdae" not in exported.mlir_module().replace("jaxdae/", "")
    np.testing.assert_allclose(exported.call(x), whole(x), rtol=1e-5, atol=1e-5)
