"""Checkpoints: what is restored is what was saved, or it is not restored."""

import json
import shutil
import subprocess
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxdae import train_step
from jaxdae.checkpoint import Checkpoints
from jaxdae.errors import InputError
from jaxdae.files import tree_sha256
from jaxdae.model import DenoisingAutoencoder

MODEL = DenoisingAutoencoder(image_size=(8, 8), channels=1, features=(4, 8), latent_dim=3)
FRESH = train_step.create_state(MODEL, optax.nadam(1e-3), 0, ema=True)


def state_at(step):
    return jax.tree.map(lambda leaf: leaf + jnp.asarray(step, leaf.dtype), FRESH)


def save(folder, *steps, keep=9, losses=None):
    with Checkpoints(folder, keep=keep) as checkpoints:
        for i, step in enumerate(steps):
            loss = 1.0 if losses is None else losses[i]
            checkpoints.save(step, state_at(step), {"at": step}, loss=loss)
            checkpoints.wait()


def damage_arrays(step, damage):
    """Damages every data file of the arrays' store: some hold values, some only point to others."""
    for path in (step / "state").rglob("d/*"):
        path.write_bytes(damage(path.read_bytes()))


def flip(data):
    """One bit in the middle of the file."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 0x10]) + data[middle + 1 :]


DAMAGE = {
    "flipped bits": lambda step: damage_arrays(step, flip),
    "truncated files": lambda step: damage_arrays(step, lambda data: data[:-9]),
    "empty files": lambda step: damage_arrays(step, lambda data: b""),
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "no JSON part": lambda step: shutil.rmtree(step / "meta"),
    "damaged JSON": lambda step: (step / "meta" / "metadata").write_text('{"format": 1, "sha'),
    "another format": lambda step: (step / "meta" / "metadata").write_text('{"format": 99}'),
}


def test_restores_what_was_saved(tmp_path):
    save(tmp_path, 10)
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(FRESH)
    assert restored.step == 10
    assert restored.meta == {"at": 10}
    assert restored.skipped == []
    assert jax.tree.structure(restored.state) == jax.tree.structure(FRESH)
    assert tree_sha256(restored.state) == tree_sha256(state_at(10))


def test_nothing_to_restore(tmp_path):
    with Checkpoints(tmp_path / "new") as checkpoints:
        assert checkpoints.restore(FRESH) is None


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_falls_back_to_the_step_before_and_says_so(tmp_path, damage):
    save(tmp_path, 10, 20)
    DAMAGE[damage](tmp_path / "20")
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(FRESH)
        assert restored.step == 10
        assert [step for step, _ in restored.skipped] == [20]
        assert restored.skipped[0][1]
        assert "\n" not in restored.skipped[0][1]
        assert tree_sha256(restored.state) == tree_sha256(state_at(10))
        # The run goes on, and saves over the damaged step.
        checkpoints.save(20, state_at(20), {"at": 20}, loss=1.0)
        checkpoints.wait()
        assert checkpoints.restore(FRESH).step == 20


def test_nothing_that_verifies_is_an_error(tmp_path):
    save(tmp_path, 10, 20)
    for step in ("10", "20"):
        damage_arrays(tmp_path / step, flip)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"step 20: .*; step 10: "),
    ):
        checkpoints.restore(FRESH)


def test_values_that_are_not_those_saved_are_not_restored(tmp_path):
    """What no reader notices, the SHA-256 does: here it is the sum itself that is changed."""
    save(tmp_path, 10, 20)
    path = tmp_path / "20" / "meta" / "metadata"
    saved = json.loads(path.read_text())
    path.write_text(json.dumps({**saved, "sha256": "0" * 64}))
    with Checkpoints(tmp_path) as checkpoints:
        restored = checkpoints.restore(FRESH)
    assert restored.step == 10
    assert "SHA-256" in restored.skipped[0][1]


def test_a_state_of_another_shape_is_not_restored(tmp_path):
    save(tmp_path, 10)
    other = train_step.create_state(MODEL.clone(latent_dim=4), optax.nadam(1e-3), 0, ema=True)
    with (
        Checkpoints(tmp_path) as checkpoints,
        pytest.raises(InputError, match=r"step 10: .*differ in shape"),
    ):
        checkpoints.restore(other)


def test_keeps_the_newest_and_the_best(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2, losses=[5.0, 1.0, 4.0, 3.0, 2.0])
    save(tmp_path, 6, 7, keep=2, losses=[2.5, 2.2])  # the folder is reopened: still the same rule
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.steps() == [7, 6, 2]


def test_saved_state_may_be_given_away_at_once(tmp_path):
    """The save is asynchronous, and training goes on in the same buffers."""
    give_away = jax.jit(lambda s: jax.tree.map(lambda leaf: leaf * 0, s), donate_argnums=0)
    state = jax.tree.map(jnp.copy, state_at(10))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(10, state, {}, loss=1.0)
        give_away(state)
        checkpoints.wait()
        assert tree_sha256(checkpoints.restore(FRESH).state) == tree_sha256(state_at(10))


def test_what_a_failed_save_writes_late_is_removed(tmp_path, monkeypatch):
    """Of a save's writes one fails, and the others come to their end in threads of their own."""
    debris = tmp_path / "20.orbax-checkpoint-tmp"
    late = threading.Timer(0.05, lambda: (debris / "state").mkdir(parents=True))

    def fails():
        debris.mkdir()
        late.start()
        raise OSError(28, "No space left on device")

    save(tmp_path, 10)
    checkpoints = Checkpoints(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints._manager, "save", lambda *_, **__: fails())
        checkpoints.save(20, state_at(20), {}, loss=1.0)
    assert checkpoints.failure == "No space left on device"
    assert not debris.exists()
    checkpoints.close()
    late.join()
    assert not debris.exists()
    assert checkpoints.directory.joinpath("10").is_dir()


def test_sha256_sees_values_shapes_types_and_names():
    tree = {"a": np.arange(4, dtype=np.float32), "b": np.zeros(2)}
    others = [
        {**tree, "a": np.array([0, 1, 2, np.nextafter(3, 4, dtype=np.float32)], np.float32)},
        {**tree, "a": tree["a"].reshape(2, 2)},
        {**tree, "a": tree["a"].view(np.int32)},
        {"a": tree["a"], "c": tree["b"]},
    ]
    hashes = {tree_sha256(t) for t in [tree, *others]}
    assert len(hashes) == 5
    assert tree_sha256(jax.tree.map(jnp.asarray, tree)) == tree_sha256(
        {"a": tree["a"], "b": np.zeros(2, np.float32)}
    )


def test_refuses_to_keep_none(tmp_path):
    with pytest.raises(InputError, match="at least 1"):
        Checkpoints(tmp_path, keep=0)


def test_a_fresh_run_starts_without_orbax(tmp_path):
    """Its import takes a tenth of the time to the first step, and is not needed until later."""
    program = """
import sys
import numpy as np
from jaxdae.checkpoint import Checkpoints
with Checkpoints(sys.argv[1]) as checkpoints:
    assert checkpoints.restore({"x": np.zeros(3)}) is None and checkpoints.steps() == []
    assert not [name for name in sys.modules if name.startswith("orbax")]
    checkpoints.save(1, {"x": np.zeros(3)}, {}, loss=0.0)
    assert "orbax.checkpoint" in sys.modules
"""
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True, timeout=120)
    assert (tmp_path / "1").is_dir()
