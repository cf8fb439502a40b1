"""The optimisers against Keras's formulas, and the schedules against what is said of them."""

import dataclasses
import inspect
import math
import typing

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdae.config import Config
from jaxdae.errors import InputError
from jaxdae.optimizers import OPTIMIZERS, SCHEDULES, centered, make_optimizer, make_schedule

RATE = 0.004


def rates(schedule, steps):
    return np.asarray(jax.vmap(schedule)(jnp.arange(steps + 1)))


def run(optimizer, gradients, values=None, start=0.0):
    """The parameter after each update, its gradients given one by one (or one for all): float32."""
    optimizer = optax.with_extra_args_support(optimizer)
    params = jnp.float32(start)
    gradients = jnp.asarray(gradients, jnp.float32)
    values = jnp.zeros(len(gradients)) if values is None else jnp.asarray(values, jnp.float32)

    def body(carry, given):
        params, state = carry
        gradient, value = given
        updates, state = optimizer.update(gradient, state, params, value=value)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, updates)

    @jax.jit
    def scan(params):
        return jax.lax.scan(body, (params, optimizer.init(params)), (gradients, values))[1]

    return jax.device_get(scan(params))


@pytest.mark.parametrize("steps", [100, 103, 7])
def test_one_cycle_rises_and_falls(steps):
    got = rates(make_schedule("one-cycle", RATE, steps), steps)
    top = steps // 5
    np.testing.assert_allclose(got[[0, top, steps]], [RATE / 25, RATE, RATE / 2500], rtol=1e-3)
    assert got.argmax() == top
    for piece, slope in (
        (got[: top + 1], RATE * (1 - 1 / 25) / top),
        (got[top:], -RATE * (1 - 1 / 2500) / (steps - top)),
    ):
        np.testing.assert_allclose(np.diff(piece), slope, rtol=1e-3)


@pytest.mark.parametrize("steps", [1, 2, 4])
def test_one_cycle_of_very_few_steps(steps):
    got = rates(make_schedule("one-cycle", RATE, steps), steps)[:steps]
    assert (got > 0).all()
    assert (got <= RATE * (1 + 1e-6)).all()
    np.testing.assert_allclose(got[0], RATE / 25, rtol=1e-5)


def test_cosine():
    """A short rise, then half a period of a cosine."""
    got = rates(make_schedule("cosine", RATE, 1000), 1000)
    turn = (1 - 1e-3) * (1 + np.cos(np.pi * np.arange(981) / 980)) / 2 + 1e-3
    expected = RATE * np.concatenate([np.linspace(1 / 25, 1, 21)[:20], turn])
    np.testing.assert_allclose(got[:1000], expected[:1000], rtol=1e-4)
    assert (rates(make_schedule("cosine", RATE, 1), 1)[:1] > 0).all()


@pytest.mark.parametrize("name", ["constant", "plateau"])
def test_constant_rates(name):
    schedule = make_schedule(name, RATE, 10)
    assert [float(schedule(step)) for step in (0, 5, 10, 1000)] == [RATE] * 4


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("rate", [0, -0.001, math.nan, math.inf])
def test_refuses_rates_that_mean_nothing(name, rate):
    with pytest.raises(InputError, match=f"learning rate {rate} must be .* such as 0.001"):
        make_schedule(name, rate, 10)


def test_refuses_unknown_names():
    with pytest.raises(InputError, match="unknown schedule 'linear': it is one of constant, one"):
        make_schedule("linear", RATE, 10)
    with pytest.raises(InputError, match="unknown optimiser 'sgd': it is one of adam, nadam"):
        make_optimizer("sgd", optax.constant_schedule(RATE))


def test_entries_name_the_fields_that_they_read():
    options = [field.name for field in dataclasses.fields(Config)]
    for entry in OPTIMIZERS.values():
        assert list(inspect.signature(entry.make).parameters)[2:] == list(entry.reads)
        assert set(entry.reads) <= set(options)
    assert typing.get_args(typing.get_type_hints(Config)["optimizer"]) == tuple(OPTIMIZERS)
    assert typing.get_args(typing.get_type_hints(Config)["schedule"]) == SCHEDULES


@pytest.mark.parametrize("plateau_steps", [None, 3])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_goes_downhill(name, plateau_steps):
    target = jnp.array([3.0, -2.0])
    optimizer = optax.with_extra_args_support(
        make_optimizer(name, make_schedule("constant", RATE, 10), plateau_steps=plateau_steps)
    )

    def loss(params):
        return jnp.sum((params - target) ** 2)

    @jax.jit
    def step(params):
        value, gradient = jax.value_and_grad(loss)(params)
        updates, _ = optimizer.update(gradient, optimizer.init(params), params, value=value)
        params = optax.apply_updates(params, updates)
        return value, loss(params), params

    before, after, params = step(jnp.zeros(2))
    assert after < before
    assert (params * target > 0).all()


@pytest.mark.parametrize("name", ["adam", "adamw"])
def test_adam_is_its_formula(name):
    """b1, b2 and the rate are those given: the paper's update, corrected for its bias."""
    b1, b2 = 0.8, 0.99
    schedule = make_schedule("one-cycle", RATE, 10)
    gradients = np.array([5.0, -1.0, 0.0, 1e-7, 2.0])
    _, updates = run(make_optimizer(name, schedule, b1=b1, b2=b2), gradients)
    m = v = 0.0
    expected = []
    for t, (g, rate) in enumerate(zip(gradients, rates(schedule, 10), strict=False), 1):
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        expected.append(-rate * (m / (1 - b1**t)) / (math.sqrt(v / (1 - b2**t)) + 1e-7))
    np.testing.assert_allclose(updates, expected, rtol=1e-4)


@pytest.mark.parametrize("gradient", [1e3, 1.0, -1e-3, 1e-7])
def test_adams_first_step_is_the_learning_rate(gradient):
    """Whatever the gradient, unless it is of the size of epsilon: 1e-7, so that halves the step."""
    _, updates = run(make_optimizer("adam", optax.constant_schedule(RATE)), [gradient])
    size = abs(gradient) / (abs(gradient) + 1e-7)
    np.testing.assert_allclose(updates, [-math.copysign(RATE, gradient) * size], rtol=1e-4)


def test_nadam_looks_one_step_ahead():
    """With one gradient throughout, Nesterov's first step is longer than Adam's."""
    b1 = 0.9
    _, updates = run(make_optimizer("nadam", optax.constant_schedule(RATE)), [2.0])
    np.testing.assert_allclose(updates, [-RATE * (b1 / (1 + b1) + 1)], rtol=1e-4)


def test_adamw_decays_what_has_no_gradient():
    rate, decay = 0.1, 0.5
    optimizer = make_optimizer("adamw", optax.constant_schedule(rate), weight_decay=decay)
    params, _ = run(optimizer, [0.0, 0.0], start=2.0)
    np.testing.assert_allclose(params, 2 * (1 - rate * decay) ** np.arange(1, 3), rtol=1e-6)


@pytest.mark.parametrize("rate", [1.0, 0.5])
def test_adadelta_is_keras_formula(rate):
    rho, epsilon = 0.95, 1e-7
    gradients = np.array([3.0, -0.1, 1e-3, 0.5, -2.0])
    got, _ = run(make_optimizer("adadelta", optax.constant_schedule(rate)), gradients)
    square = moved = variable = 0.0
    expected = []
    for g in gradients:
        square = rho * square + (1 - rho) * g * g
        delta = -math.sqrt(moved + epsilon) / math.sqrt(square + epsilon) * g
        moved = rho * moved + (1 - rho) * delta * delta
        variable += rate * delta
        expected.append(variable)
    np.testing.assert_allclose(got, expected, rtol=1e-5)


def plateau_scales(values, size):
    """What the rate is multiplied by at each update: Adam's steps are 1 under one gradient."""
    optimizer = make_optimizer("adam", optax.constant_schedule(1.0), plateau_steps=size)
    _, updates = run(optimizer, np.full(len(values), 1.0), values)
    return -updates


def test_plateau_lowers_the_rate_when_the_loss_stays():
    """The first mean is the best so far; the fifth after it that is no better lowers the rate.

    It falls at the update that completes that mean, and again after five more.
    """
    size = 3
    got = plateau_scales(np.ones(17 * size), size)
    falls = np.zeros(17 * size, int)
    for mean in (6, 11, 16):
        falls[mean * size - 1 :] += 1
    np.testing.assert_allclose(got, math.sqrt(0.1) ** falls, rtol=1e-4)


def test_plateau_waits_while_the_loss_falls():
    means = np.repeat([1, 1, 1, 1, 1, 0.9, 0.9, 0.9, 0.9, 0.9, 0.8, 0.8], 2)
    # What counts is the mean of two: the ups and downs within it do not.
    values = means + np.tile([0.5, -0.5], len(means) // 2)
    np.testing.assert_allclose(plateau_scales(values, 2), 1, rtol=1e-4)
    # Better by less than one in ten thousand is no better.
    slow = 1 - 1e-5 * np.arange(6)
    np.testing.assert_allclose(plateau_scales(slow, 1), [1] * 5 + [math.sqrt(0.1)], rtol=1e-4)


def layer(seed, inputs=5, outputs=3):
    keys = jax.random.split(jax.random.key(seed))
    kernel = jax.random.normal(keys[0], (inputs, outputs))
    return {"layer": {"kernel": kernel, "bias": jax.random.normal(keys[1], (outputs,))}}


def test_centering_finds_the_mean_of_the_inputs():
    optimizer = centered(optax.sgd(0.0), decay=0.9)
    params, mean = layer(0), jnp.asarray([0.0, 0.5, -1.0, 2.0, 10.0])
    state = optimizer.init(params)

    @jax.jit
    def step(state, key):
        noise, delta = jax.random.split(key)
        x = mean + jax.random.normal(noise, (4000, 5))
        delta = 1 + jax.random.normal(delta, (4000, 3))
        grads = {"layer": {"kernel": x.T @ delta, "bias": delta.sum(0)}}
        return optimizer.update(grads, state, params)[1]

    for i in range(20):
        state = step(state, jax.random.key(i))
    found = state.cross["layer/kernel"] / state.square["layer/kernel"]
    np.testing.assert_allclose(found, mean, atol=0.05)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_centering_is_descent_in_the_centered_coordinates(decay):
    """With W and c = b + m W as the parameters of y = (x - m) W + c, by plain gradient descent.

    With weight decay, too: it is W and c that decay.
    """
    rate, params = 0.1, layer(1)
    x = 3 + jax.random.normal(jax.random.key(2), (50, 5))
    target = jax.random.normal(jax.random.key(3), (50, 3))

    def loss(params):
        y = x @ params["layer"]["kernel"] + params["layer"]["bias"]
        return ((y - target) ** 2).sum(1).mean()

    descent = optax.chain(optax.add_decayed_weights(decay), optax.sgd(rate))
    optimizer = centered(descent, decay=0.0)  # the mean of this step's gradients alone
    grads = jax.grad(loss)(params)
    updates, state = optimizer.update(grads, optimizer.init(params), params)
    after = optax.apply_updates(params, updates)

    mean = (state.cross["layer/kernel"] / state.square["layer/kernel"])[:, None]

    def moved(kernel, constant):
        bias = constant - (mean * kernel).sum(0)
        return loss({"layer": {"kernel": kernel, "bias": bias}})

    kernel, bias = params["layer"]["kernel"], params["layer"]["bias"]
    constant = bias + (mean * kernel).sum(0)
    steps = jax.grad(moved, argnums=(0, 1))(kernel, constant)
    kernel, constant = (
        weight - rate * (step + decay * weight)
        for weight, step in zip((kernel, constant), steps, strict=True)
    )
    np.testing.assert_allclose(after["layer"]["kernel"], kernel, rtol=1e-4, atol=1e-5)
    bias = constant - (mean * kernel).sum(0)
    np.testing.assert_allclose(after["layer"]["bias"], bias, rtol=1e-4, atol=1e-4)


def test_centering_leaves_what_has_no_partner_alone():
    params = {"scale": jnp.ones(3), "layer": {"kernel": jnp.ones((2, 3))}}
    grads = jax.tree.map(lambda x: 2 * x, params)
    inner = optax.adam(0.1)
    expected, _ = inner.update(grads, inner.init(params))
    wrapped = centered(inner)
    updates, _ = wrapped.update(grads, wrapped.init(params))
    jax.tree.map(np.testing.assert_array_equal, updates, expected)


def test_centering_speeds_up_a_layer_whose_inputs_are_far_from_zero():
    x = 5 + jax.random.normal(jax.random.key(0), (256, 5))
    target = x @ layer(4)["layer"]["kernel"] - 20

    def loss(params):
        y = x @ params["layer"]["kernel"] + params["layer"]["bias"]
        return ((y - target) ** 2).mean()

    def after(optimizer, params, steps=200):
        @jax.jit
        def step(params, state):
            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return optax.apply_updates(params, updates), state

        state = optimizer.init(params)
        for _ in range(steps):
            params, state = step(params, state)
        return float(loss(params))

    assert after(centered(optax.adam(0.05)), layer(5)) < 0.6 * after(optax.adam(0.05), layer(5))
