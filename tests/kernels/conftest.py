"""The two forms that the layers have on a CPU."""

import jax
import pytest

from jaxdae.kernels import build


@pytest.fixture(scope="module", params=["kernels", "operations"])
def form(request):
    """The C++ kernels, and XLA's operations in their place."""
    jax.clear_caches()
    if request.param == "operations":
        with build.disabled():
            yield
    elif not build.available():
        pytest.skip("there is no C++ compiler")
    else:
        yield
