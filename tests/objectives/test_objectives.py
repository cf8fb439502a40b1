"""Objectives: what they prepare, their losses against formulas, and parts of a batch."""

import operator
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdae.corruption import gaussian, grayscale, masking
from jaxdae.losses import binary_cross_entropy, mean_squared_error
from jaxdae.model import DigitClassifier, PhotoDenoiser, UNet
from jaxdae.objectives import (
    Classification,
    Example,
    Labelled,
    Pair,
    Paired,
    Supervised,
    as_objective,
)
from jaxdae.objectives.base import noise_level_loss

RNG = np.random.default_rng(0)
IMAGES = RNG.random((6, 8, 8, 1), np.float32)
LABELS = np.arange(6) % 3
KEY = jax.random.key(3)
UNET, CLASSIFIER = (
    UNet(features=(2, 3)),
    DigitClassifier(image_size=(8, 8), features=(2, 3), classes=3),
)
CASES = {
    "supervised": (Supervised(gaussian(0.3)), IMAGES, UNET),
    "cross-entropy": (Supervised(masking(0.3), binary_cross_entropy), IMAGES, UNET),
    "teacher": (Supervised(gaussian(0.3), teacher=lambda x: x[:, ::-1]), IMAGES, UNET),
    "paired": (Paired(), Pair(1 - IMAGES, IMAGES), UNET),
    "classification": (Classification(gaussian(0.1)), Labelled(IMAGES, LABELS), CLASSIFIER),
}


@pytest.fixture(scope="module", params=CASES)
def case(request):
    objective, data, model = CASES[request.param]
    variables = jax.jit(model.init)(jax.random.key(0), jnp.asarray(IMAGES))
    return objective, data, partial(model.apply, variables)


def test_parts_of_a_batch_are_parts_of_the_whole(case):
    """Their examples to the bit, their losses to rounding: devices may share a batch."""
    objective, data, apply = case
    prepare = jax.jit(objective.prepare)
    loss = jax.jit(lambda example: objective.loss(apply, example))
    whole = prepare(KEY, data, jnp.arange(6))
    losses = loss(whole)
    assert losses.shape == (6,)
    for rows in (slice(0, 2), slice(2, 6)):
        taken = jax.tree.map(operator.itemgetter(rows), data)
        part = prepare(KEY, taken, jnp.arange(6)[rows])
        for found, expected in zip(jax.tree.leaves(part), jax.tree.leaves(whole), strict=True):
            np.testing.assert_array_equal(found, expected[rows])
        np.testing.assert_allclose(loss(part), losses[rows], rtol=1e-5)


def test_losses_are_their_formulas(case):
    objective, data, apply = case
    example = objective.prepare(KEY, data)
    found = objective.loss(apply, example)
    if isinstance(objective, Classification):
        logits = np.asarray(apply(example.input), float)
        shifted = logits - logits.max(1, keepdims=True)
        expected = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(6), LABELS]
    elif getattr(objective, "criterion", None) is binary_cross_entropy:
        p = np.asarray(apply(example.input), float)
        expected = -(IMAGES * np.log(p) + (1 - IMAGES) * np.log(1 - p)).mean((1, 2, 3))
    else:
        expected = ((apply(example.input) - example.target) ** 2).mean((1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_what_is_prepared():
    noise = gaussian(0.3)
    noisy = noise(KEY, jnp.asarray(IMAGES))
    example = Supervised(noise).prepare(KEY, jnp.asarray(IMAGES))
    np.testing.assert_array_equal(example.input, noisy)
    np.testing.assert_array_equal(example.target, IMAGES)
    taught = Supervised(noise, teacher=lambda x: 1 - x).prepare(KEY, jnp.asarray(IMAGES))
    np.testing.assert_array_equal(taught.target, 1 - noisy)
    pair = Pair(1 - IMAGES, IMAGES)
    assert Paired().prepare(KEY, pair) == Example(pair.noisy, pair.clean)
    labelled = Classification(noise).prepare(KEY, Labelled(jnp.asarray(IMAGES), LABELS))
    np.testing.assert_array_equal(labelled.input, noisy)
    np.testing.assert_array_equal(labelled.target, LABELS)


def test_nothing_is_learnt_through_a_teacher():
    """The teacher's parameters get no gradient."""
    objective = Supervised(gaussian(0.3), teacher=lambda x: x * 2)
    gradient = jax.grad(lambda x: objective.prepare(KEY, x).target.sum())(jnp.asarray(IMAGES))
    assert not gradient.any()


def test_a_corruption_is_its_supervised_objective():
    noise, pairs = grayscale(), Paired()
    assert as_objective(noise) == Supervised(noise)
    assert as_objective(pairs) is pairs
    assert Supervised(noise).criterion is mean_squared_error


def test_a_mask_and_a_level_travel_with_their_images():
    """An example's fields are split with its batch; None stays None."""
    example = Example(IMAGES, IMAGES, mask=IMAGES > 0.5, sigma=np.arange(6.0))
    half = jax.tree.map(lambda x: x[3:], example)
    np.testing.assert_array_equal(half.sigma, [3, 4, 5])
    np.testing.assert_array_equal(half.mask, IMAGES[3:] > 0.5)
    assert jax.tree.map(lambda x: x[3:], Example(IMAGES, IMAGES)).mask is None
    with pytest.raises(ValueError, match="mask"):  # and is never ignored
        Paired().loss(lambda *_: IMAGES, example)
    assert optax.tree_utils.tree_sum(half.mask) == (IMAGES[3:] > 0.5).sum()


PHOTO = PhotoDenoiser(features=(2, 3), blocks=1, level_features=(2, 3))


def test_learning_to_estimate_changes_no_value_and_no_other_gradient():
    params = PHOTO.init(jax.random.key(0), jnp.asarray(IMAGES))["params"]
    told = Supervised(gaussian((0.1, 0.4), clip=False), estimates=True)
    blind = Paired(estimates=True)
    for objective, data in ((told, IMAGES), (blind, Pair(1 - IMAGES, IMAGES))):
        example = objective.prepare(KEY, data)
        assert (example.sigma is None) == (objective is blind)

        @jax.jit
        @jax.value_and_grad
        def total(params, objective=objective, example=example):
            return objective.loss(partial(PHOTO.apply, {"params": params}), example).mean()

        @jax.jit
        @jax.grad
        def level(params, example=example):
            estimate = PHOTO.apply({"params": params}, example.input, method="noise_level")
            return noise_level_loss(estimate, example.input - example.target).mean()

        value, gradient = total(params)
        outputs = PHOTO.apply({"params": params}, example.input, example.sigma)
        np.testing.assert_allclose(value, ((outputs - example.target) ** 2).mean(), rtol=1e-5)
        expected = jax.tree.leaves(level(params)["level"])
        found = gradient.pop("level")
        for one, other in zip(jax.tree.leaves(found), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
        without = replace(objective, estimates=False)
        fixed = example
        if objective is blind:
            estimate = PHOTO.apply({"params": params}, example.input, method="noise_level")
            fixed = example._replace(sigma=estimate)
        expected = jax.grad(lambda p, o, e: o.loss(partial(PHOTO.apply, {"params": p}), e).mean())(
            params, without, fixed
        )
        expected.pop("level")
        for one, other in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("sigma", [0.02, 0.3])
def test_the_loss_of_a_noise_level_is_least_at_the_level(sigma):
    noise = sigma * jax.random.normal(KEY, (1, 200, 200, 3))
    factors = np.linspace(0.8, 1.2, 41)
    losses = [noise_level_loss(f * sigma * jnp.ones((1, 200, 200, 1)), noise)[0] for f in factors]
    assert abs(factors[np.argmin(losses)] - 1) < 0.011


def test_an_objective_tells_the_noise_level():
    """The level of the same draw, for every image of any part of a batch."""
    images = np.full((4, 64, 64, 1), 0.5, np.float32)
    example = Supervised(gaussian((0.05, 0.5), mean=0, clip=False)).prepare(KEY, images)
    found = (example.input - images).std((1, 2, 3))
    np.testing.assert_allclose(example.sigma, found, rtol=0.05)
    assert len(set(np.asarray(example.sigma).tolist())) == 4
    part = Supervised(gaussian((0.05, 0.5))).prepare(KEY, images[2:], jnp.arange(2, 4))
    np.testing.assert_array_equal(part.sigma, example.sigma[2:])
    assert Supervised(masking(0.5)).prepare(KEY, images).sigma is None
