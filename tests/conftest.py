"""What XLA must be told before its first use: eight virtual devices, and to compile quickly."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest
from hypothesis import Phase, settings


def quick_flags() -> str:
    """XLA's flags for quick compiling, for the tests compile far more than they compute.

    The older emitters write shorter code than the default ones, for the same values to rounding.
    XLA aborts at a flag that it does not know, as one day it may not know theirs: a process of
    its own tries.
    """
    level = "--xla_backend_optimization_level=1"
    flags = f"{level} --xla_cpu_use_fusion_emitters=false"
    client = [sys.executable, "-c", "from jaxlib import xla_client as x; x.make_cpu_client()"]
    tried = subprocess.run(client, env={**os.environ, "XLA_FLAGS": flags}, capture_output=True)
    return flags if tried.returncode == 0 else level


os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "PYTEST_XDIST_WORKER" not in os.environ:  # the workers inherit it
    # Flags that compile quickly, for processes that need no devices but their own.
    os.environ["TESTS_XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {quick_flags()}".strip()
    os.environ["XLA_FLAGS"] = (
        f"{os.environ['TESTS_XLA_FLAGS']} --xla_force_host_platform_device_count=8"
    )
    # Many tests compile the same program. Those that start commands give them another cache, for
    # what JAX was writing when its process was killed, it complains of whenever it reads it.
    _cache = tempfile.TemporaryDirectory(prefix="jaxdae-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

# Each new shape is a compilation, so examples are few and failures are not shrunk.
settings.register_profile(
    "jaxdae",
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("jaxdae")


@pytest.fixture(scope="module")
def heeded():
    """Ctrl-C is heeded, here and in the processes that are started from here.

    Whoever runs the tests in the background has told them all to ignore it.
    """
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="module", autouse=True)
def forgotten():
    """What a file compiled is dropped after it: gigabytes, over all of them."""
    yield
    import jax  # not before it has been told what is above

    jax.clear_caches()


# Of the files that are handed to the workers one by one, the longest first: none is left alone
# with one of these at the end.
LONGEST = (
    *("test_run", "test_stress", "test_report", "test_cluster", "test_docs", "test_model"),
    *("test_demo", "test_training", "test_growth", "test_export", "test_denoise"),
)


def pytest_collection_modifyitems(items):
    order = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path.stem, len(LONGEST)))
