"""How work is arranged: never what it computes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxdae.kernels import build, conv_transpose, dense, dense_then_conv_transpose, gradient_piece
from tests.kernels.reference import random_normal

SHAPE = (4, 3, 6)  # of the images between the layers


pytestmark = pytest.mark.usefixtures("form")


def layers():
    numbers = (random_normal(1, (5, 72)), random_normal(2, (72,)))
    return *numbers, random_normal(3, (3, 3, 6, 7)), random_normal(4, (7,))


def one_after_the_other(latent, dense_kernel, dense_bias, kernel, bias):
    images = dense(latent, dense_kernel, dense_bias).reshape(-1, *SHAPE)
    return conv_transpose(images, kernel, bias, stride=2)


def joint(latent, *parameters):
    return dense_then_conv_transpose(latent, *parameters, shape=SHAPE, stride=2)


@pytest.mark.parametrize("batch", [1, 2, 12, 40])  # below and above where the layers are joined
@pytest.mark.parametrize("known", [False, True])
def test_dense_then_conv_transpose_is_one_after_the_other(batch, known):
    latent, parameters = random_normal(0, (batch, 5)), layers()
    if known:  # the parameters are constants of the program
        got, want = (jax.jit(lambda x, f=f: f(x, *parameters))(latent)
                     for f in (joint, one_after_the_other))  # fmt: skip
    else:
        got, want = (jax.jit(f)(latent, *parameters) for f in (joint, one_after_the_other))
    assert got.shape == (batch, 8, 6, 7)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_its_gradients_are_the_same():
    latent, parameters = random_normal(0, (40, 5)), layers()

    def gradients(function):
        return jax.jit(jax.grad(lambda *given: jnp.sin(function(*given)).sum(), range(5)))

    for got, want in zip(
        gradients(joint)(latent, *parameters),
        gradients(one_after_the_other)(latent, *parameters),
        strict=True,
    ):
        np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3)


def test_a_gradient_piece_is_a_number_of_images():
    assert gradient_piece() == (128 if build.available() else 32)
