"""What XLA must be told before its first use: eight virtual devices, and to compile quickly."""

import os
import tempfile

os.environ["XLA_FLAGS"] = " ".join(
    [
        os.environ.get("XLA_FLAGS", ""),
        "--xla_force_host_platform_device_count=8",
        "--xla_backend_optimization_level=1",  # the tests compile far more than they compute
    ]
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of the time goes into compiling, and many tests compile the same program.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxdae-tests-")
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"

from hypothesis import Phase, settings

# Each new shape is a compilation, so examples are few and failures are not shrunk.
settings.register_profile(
    "jaxdae",
    max_examples=25,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
)
settings.load_profile("jaxdae")
