"""The train step, the chunk of steps on any number of devices, and the loop over epochs."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax

from jaxdae import train_step, training
from jaxdae.corruption import gaussian, identity
from jaxdae.errors import DivergenceError, InputError
from jaxdae.files import tree_sha256
from jaxdae.losses import LOSSES
from jaxdae.model import DenoisingAutoencoder
from jaxdae.objectives import Supervised
from jaxdae.train_step import TrainState
from jaxdae.training import AXIS

MODEL = DenoisingAutoencoder(image_size=(8, 8), channels=1, features=(4,), latent_dim=3)
IMAGES = np.random.default_rng(0).integers(0, 256, (80, 8, 8, 1), np.uint8)
ADAM = optax.adam(1e-3)


NOISE = gaussian(0.5)


def make_step(
    axis_name=AXIS, optimizer=ADAM, corruption=NOISE, model=MODEL, teacher=None, **options
):
    objective = Supervised(corruption, LOSSES["mse"], teacher)
    return train_step.make_train_step(model, objective, optimizer, axis_name=axis_name, **options)


@cache
def fresh():
    """A fresh state, which no run changes."""
    return train_step.create_state(MODEL, ADAM, 0)


def fit(epochs=range(1), state=None, step=None, batch_size=16, devices=1, images=IMAGES, **options):
    """The state after some epochs on so many devices, and the losses."""
    state = fresh() if state is None else state
    losses = []
    for progress in training.train(
        step or make_step(),
        state,
        images,
        seed=0,
        epochs=epochs,
        batch_size=batch_size,
        devices=jax.devices()[:devices],
        **options,
    ):
        losses.append(progress.losses)
        state = jax.tree.map(np.array, progress.state)
    return state, np.concatenate(losses)


def test_step_is_one_step_of_gradient_descent():
    """Against the same written out: corrupt, differentiate, update."""
    state = fresh()
    key = jax.random.key(5)
    new, metrics = jax.jit(make_step(axis_name=None))(state, IMAGES[:16], key)

    @jax.jit
    def expected(params):
        clean = jnp.asarray(IMAGES[:16], jnp.float32) / 255
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(16))
        noise = jax.vmap(lambda k: jax.random.normal(k, (8, 8, 1)))(keys)
        noisy = jnp.clip(clean + 0.5 + 0.5 * noise, 0, 1)

        def loss(params):
            return ((MODEL.apply({"params": params}, noisy) - clean) ** 2).mean()

        value, gradient = jax.value_and_grad(loss)(params)
        updates, _ = ADAM.update(gradient, ADAM.init(params))
        return value, optax.apply_updates(params, updates)

    value, params = expected(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), new.params, params)
    assert int(new.step) == 1


def test_teacher_says_what_to_learn():
    """With a teacher that inverts the noisy image; in parts, too."""
    sgd = optax.sgd(1.0)
    state, key = train_step.create_state(MODEL, sgd, 0), jax.random.key(5)
    step = make_step(None, sgd, teacher=lambda images: 1 - images)
    new, metrics = jax.jit(step)(state, IMAGES[:16], key)

    @jax.jit
    @jax.value_and_grad
    def expected(params):
        noisy = gaussian(0.5)(key, train_step.to_float(jnp.asarray(IMAGES[:16])))
        return ((MODEL.apply({"params": params}, noisy) - (1 - noisy)) ** 2).mean()

    value, gradient = expected(state.params)
    np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
    wanted = jax.tree.map(jnp.subtract, state.params, gradient)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), new.params, wanted)

    step = make_step(None, sgd, teacher=lambda images: 1 - images, microbatches=4)
    parts, _ = jax.jit(step)(state, IMAGES[:16], key)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), parts.params, wanted)


def test_learns():
    _, losses = fit(range(60), step=make_step(corruption=identity()))
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_devices_see_the_same_batches_and_agree(devices):
    """The same noisy images, bit for bit, and the same parameters after 50 steps."""

    def spy(state, images, key, positions):
        inputs = gaussian(0.5)(key, train_step.to_float(images), positions)
        gathered = lax.all_gather(inputs, AXIS, tiled=True)
        return state.replace(step=state.step + 1), {"loss": gathered}

    seen = {n: fit(range(2), step=spy, devices=n)[1] for n in (1, devices)}
    assert seen[1].shape == (10, 16, 8, 8, 1)
    np.testing.assert_array_equal(seen[1], seen[devices])

    one, many = fit(range(10)), fit(range(10), devices=devices)
    np.testing.assert_allclose(one[1], many[1], rtol=1e-5)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), one[0].params, many[0].params)


@pytest.mark.slow
def test_microbatches_make_the_devices_agree_to_the_bit():
    """Over 50 steps at a rate that amplifies any difference; and the gradient is the batch's."""
    optimizer = optax.adam(0.01)
    step = make_step(optimizer=optimizer, microbatches=8)
    state = train_step.create_state(MODEL, optimizer, 0)
    runs = [fit(range(10), state, step, devices=devices) for devices in (1, 2, 4, 8)]
    assert len({tree_sha256(state) for state, _ in runs}) == 1
    assert len({losses.tobytes() for _, losses in runs}) == 1

    key = jax.random.key(0)
    whole, parts = (
        jax.jit(make_step(axis_name=None, optimizer=optax.sgd(1.0), microbatches=n))(
            train_step.create_state(MODEL, optax.sgd(1.0), 0), IMAGES[:16], key
        )
        for n in (None, 4)
    )
    np.testing.assert_allclose(whole[1]["loss"], parts[1]["loss"], rtol=1e-6)
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), whole[0].params, parts[0].params)


def test_gradients_and_metrics_are_averaged_over_devices():
    """`out_axes=None` would hide it: ask every device for what it holds."""
    state = fresh()
    indices = np.arange(16).reshape(2, 1, 8)

    def disagreement(axis_name):
        chunk = training.make_chunk(make_step(axis_name))
        axes, devices = (None, None, 0, None, None), jax.devices()[:2]
        run = jax.pmap(chunk, axis_name=AXIS, in_axes=axes, devices=devices)
        copies = jax.tree.leaves(run(state, IMAGES, indices, 1, jax.random.key(0)))
        return max(float(jnp.abs(leaf[0] - leaf[1]).max()) for leaf in copies)

    assert disagreement(AXIS) == 0
    assert disagreement(None) > 1e-4  # the check would see a forgotten pmean


def test_resumed_run_is_the_run_never_stopped():
    whole, losses = fit(range(3))
    part, first = fit(range(1))
    rest, last = fit(range(1, 3), state=part)
    assert tree_sha256(whole) == tree_sha256(rest)
    np.testing.assert_array_equal(losses, np.concatenate([first, last]))


@pytest.mark.parametrize("devices", [1, 2])
def test_leaves_the_callers_state_alone(devices):
    state = fresh()
    before = tree_sha256(state)
    fit(state=state, devices=devices)
    assert tree_sha256(state) == before


@pytest.mark.parametrize("devices", [1, 2])
def test_how_the_steps_are_cut_changes_nothing(devices):
    """By the clock to the bit: 5 steps an epoch at once, one by one, and as 1 and 4.

    Other `chunk_steps` are another program, and round otherwise.
    """
    whole, losses = fit(range(2), devices=devices, chunk_seconds=float("inf"))
    for seconds in (1e-9, 1e9):
        cut, same = fit(range(2), devices=devices, chunk_seconds=seconds)
        np.testing.assert_array_equal(losses, same)
        assert tree_sha256(whole) == tree_sha256(cut)
    for steps in (1, 2):
        cut, same = fit(range(2), devices=devices, chunk_steps=steps)
        np.testing.assert_allclose(losses, same, rtol=1e-6)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-6), whole.params, cut.params)


def test_goes_on_in_the_middle_of_an_epoch():
    whole, losses = fit(range(2))
    chunks = training.train(
        make_step(),
        fresh(),
        IMAGES,
        seed=0,
        epochs=range(2),
        batch_size=16,
        devices=jax.devices()[:1],
        chunk_seconds=1e-9,
    )
    first = [next(chunks).losses for _ in range(2)]
    stopped = next(chunks)
    assert (len(stopped.losses), stopped.ended) == (1, False)
    middle = jax.tree.map(np.array, stopped.state)
    rest, last = fit(range(2), state=middle, taken=3)
    assert tree_sha256(whole) == tree_sha256(rest)
    np.testing.assert_array_equal(losses, np.concatenate([*first, stopped.losses, last]))
    assert len(fit(range(2), state=middle, taken=5)[1]) == 5  # nothing is left of the first epoch


def test_scan_first_is_a_scan_of_the_first():
    def body(carry, x):
        return carry * 0.5 + x["a"], {"sum": carry + x["b"].sum()}

    xs = {"a": jnp.arange(6.0), "b": jnp.ones((6, 2))}
    run = jax.jit(lambda count: training.scan_first(body, jnp.float32(3), xs, count))
    for count in (0, 1, 4, 6):
        carry, out = run(count)
        want, stacked = lax.scan(body, jnp.float32(3), {k: x[:count] for k, x in xs.items()})
        np.testing.assert_allclose(carry, want, rtol=1e-6)
        np.testing.assert_allclose(out["sum"][:count], stacked["sum"], rtol=1e-6)
        assert (out["sum"][count:] == 0).all()


def test_scan_first_traces_its_body_once():
    """A train step takes long to trace, and before that nothing begins."""
    traced = []

    def body(carry, x):
        traced.append(x)
        return carry + x, carry

    carry, _ = jax.jit(lambda xs: training.scan_first(body, 0.0, xs, 3))(jnp.arange(5.0))
    assert carry == 3
    assert len(traced) == 1


def test_pace_finds_how_many_steps_a_second_holds():
    pace = training.Pace(longest=100, seconds=1.0)
    assert pace.steps == 1
    taken = []
    for _ in range(6):
        taken.append(pace.steps)
        pace.took(pace.steps, 0.03 * pace.steps)
    assert taken == [1, 4, 16, 33, 33, 33]
    pace.took(33, 99.0)  # the machine has become slow
    assert pace.steps == 1
    pace.took(1, 0.0)
    assert pace.steps == 4
    assert training.Pace(longest=100, seconds=float("inf")).steps == 100


@pytest.mark.parametrize("fixed_noise", [False, True])
@pytest.mark.parametrize("devices", [1, 2])
def test_streamed_images_give_the_same_run(devices, fixed_noise, tmp_path):
    """From a file, of which only what a chunk needs is read; also where the last is smaller."""
    options = {"devices": devices, "fixed_noise": fixed_noise, "chunk_steps": 2}
    whole, losses = fit(range(2), **options)
    np.save(tmp_path / "images.npy", IMAGES)
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    streamed, same = fit(range(2), images=mapped, resident=False, **options)
    np.testing.assert_array_equal(losses, same)
    assert tree_sha256(whole) == tree_sha256(streamed)


@pytest.mark.slow
def test_a_large_batch_in_pieces_has_the_gradient_of_the_whole():
    """On a CPU; 96 images are three pieces of 32, 74 have no good piece, so the whole."""
    images = np.random.default_rng(1).integers(0, 256, (96, 8, 8, 1), np.uint8)
    step = jax.jit(make_step(axis_name=None, optimizer=optax.sgd(1.0)))
    state = train_step.create_state(MODEL, optax.sgd(1.0), 0)

    def objective(params, images):
        clean = train_step.to_float(images)
        inputs = NOISE(jax.random.key(2), clean)
        return LOSSES["mse"](MODEL.apply({"params": params}, inputs), clean).mean()

    for count in (96, 74):
        value, gradient = jax.jit(jax.value_and_grad(objective))(state.params, images[:count])
        after, metrics = step(state, images[:count], jax.random.key(2))
        np.testing.assert_allclose(metrics["loss"], value, rtol=1e-5)
        moved = jax.tree.map(lambda a, b: a - b, state.params, after.params)
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-5), moved, gradient)


def test_images_are_gathered_ahead_and_no_further():
    gathered = []

    def gather(epoch, indices):
        assert indices[0] == epoch
        gathered.append(int(indices[0]))
        return indices * 10

    chunks = ((epoch, True, np.array([epoch])) for epoch in range(4))
    for epoch, _, indices, images in training._ahead(chunks, gather):
        assert images == indices * 10 == epoch * 10
        assert len(gathered) <= epoch + 2  # while one is computed, the next is gathered
    assert gathered == [0, 1, 2, 3]


def test_what_does_not_fit_a_device_is_streamed():
    class Device:
        def __init__(self, stats):
            self.memory_stats = lambda: stats

    big, small = Device({"bytes_limit": 4 * IMAGES.nbytes}), Device({"bytes_limit": IMAGES.nbytes})
    assert training.fits(IMAGES, [big]) and not training.fits(IMAGES, [big, small])
    unknown = Device(None)
    assert training.fits(IMAGES, [unknown])
    huge = np.broadcast_to(np.uint8(0), (10**7, 28, 28, 1))  # 7.8 GB that are not there
    assert not training.fits(huge, [unknown])


def test_seed_decides_everything():
    a, b = (train_step.create_state(MODEL, ADAM, seed) for seed in (0, 1))
    assert tree_sha256(a) == tree_sha256(train_step.create_state(MODEL, ADAM, 0))
    assert tree_sha256(a) != tree_sha256(b)
    orders = [training.epoch_order(s, e, 80, 16) for s, e in [(0, 0), (0, 0), (0, 1), (1, 0)]]
    np.testing.assert_array_equal(orders[0], orders[1])
    assert (orders[0] != orders[2]).any()
    assert (orders[0] != orders[3]).any()


@pytest.mark.slow
@given(st.integers(1, 300), st.integers(1, 40))
def test_epoch_takes_every_example_at_most_once(examples, batch_size):
    batch_size = min(examples, batch_size)
    order = training.epoch_order(0, 0, examples, batch_size)
    assert order.shape == (examples // batch_size, batch_size)
    assert len(np.unique(order)) == order.size
    assert 0 <= order.min() <= order.max() < examples


def test_fixed_noise_is_drawn_once_for_each_image():
    """An image meets the same noise in another epoch, elsewhere in the batch; fresh noise not."""

    def noise_of_image_3(fixed):
        def spy(state, images, key, positions):
            inputs = gaussian(0.5, mean=0)(key, train_step.to_float(images), positions)
            is_3 = (images == IMAGES[3]).all((1, 2, 3), keepdims=True)
            return state.replace(step=state.step + 1), {"loss": (inputs * is_3).sum(0)}

        state = fresh()
        _, seen = fit(range(2), state, spy, fixed_noise=fixed)
        return [image for image in seen if image.any()]

    first, second = noise_of_image_3(fixed=True)
    np.testing.assert_array_equal(first, second)
    first, second = noise_of_image_3(fixed=False)
    assert (first != second).any()


def test_ema_follows_the_parameters():
    step = jax.jit(make_step(axis_name=None, ema_decay=0.9))
    state = train_step.create_state(MODEL, ADAM, 0, ema=True)
    assert tree_sha256(state.eval_params) == tree_sha256(state.params)
    for done, decay in ((0, 1 / 10), (7, 8 / 17), (500, 0.9)):  # forgets the start at first
        before = state.replace(step=jnp.int32(done))
        new, _ = step(before, IMAGES[:8], jax.random.key(0))
        expected = jax.tree.map(
            lambda a, b, decay=decay: decay * a + (1 - decay) * b, state.params, new.params
        )
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-7), new.eval_params, expected)
    assert train_step.create_state(MODEL, ADAM, 0).ema is None


def test_loss_that_is_not_finite_stops_with_step_and_rate():
    def poisoned(state: TrainState, images, key, positions):
        return state.replace(step=state.step + 1), {
            "loss": jnp.where(state.step == 7, jnp.nan, 0.5)
        }

    with pytest.raises(DivergenceError, match=r"loss is nan at step 7 at learning rate 0\.125"):
        fit(range(5), step=poisoned, chunk_steps=2, learning_rate=optax.constant_schedule(0.125))
    with pytest.raises(DivergenceError, match="lower the learning rate"):
        fit(range(9), step=make_step(optimizer=optax.sgd(1e38)))


@pytest.mark.slow
@pytest.mark.parametrize("devices", [1, 2])
def test_debugging_names_the_operation_that_began_it(devices):
    """Of a step whose corruption divides by zero."""

    def spoiled(key, images, positions=None):
        step_7 = jnp.all(jax.random.key_data(key) == seventh)
        return images / jnp.where(step_7, 0.0, 1.0) * jnp.where(step_7, 0.0, 1.0)

    stream = training.stream(0, "corruption")
    seventh = jax.random.key_data(jax.random.fold_in(stream, 7))
    make = partial(make_step, corruption=spoiled)
    options = {"devices": devices, "chunk_steps": 4}
    with pytest.raises(DivergenceError, match=r"nan at step 7: lower"):
        fit(range(9), step=make(), **options)
    where = (
        r"nan at step 7 \(invalid value \((nan|inf)\) encountered in div, "
        r"training.py:\d+ > train_step.py:\d+ > supervised.py:\d+\): low"
    )
    with pytest.raises(DivergenceError, match=where):
        fit(range(9), step=make(), debug=make(axis_name=None), **options)
    # The second of two convolutions is the first to multiply what has grown too large.
    deeper = DenoisingAutoencoder(image_size=(8, 8), channels=1, features=(4, 8), latent_dim=3)
    make = partial(make_step, optimizer=optax.sgd(1e38), model=deeper)
    state = train_step.create_state(deeper, ADAM, 0)
    with pytest.raises(
        DivergenceError, match=r"training.py:\d+ > .*conv.py:\d+( > primitives.py:\d+)*\): lower"
    ):
        fit(range(9), state, make(), debug=make(axis_name=None), **options)


@pytest.mark.parametrize(
    ("batch_size", "devices", "words"),
    [
        (0, 1, "at least 1"),
        (17, 2, "choose 16 or 18"),
        (3, 4, "choose 4"),
        (81, 1, "at most 80"),
        (88, 8, "at most 80"),
    ],
)
def test_refuses_a_batch_that_cannot_be_shared(batch_size, devices, words):
    with pytest.raises(InputError, match=words):
        fit(batch_size=batch_size, devices=devices)
