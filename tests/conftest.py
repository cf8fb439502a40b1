"""Eight virtual CPU devices for every test: XLA reads the flag once, before its first use."""

import os

os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
).strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import Phase, settings  # noqa: E402

# Each new shape is a compilation, so examples are few and failures are not shrunk.
settings.register_profile(
    "jaxdae", max_examples=25, deadline=None, derandomize=True, phases=(Phase.explicit, Phase.generate)
)
settings.load_profile("jaxdae")
