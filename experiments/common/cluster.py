"""Several processes that train together: how they connect, and how they end when one is lost."""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from jaxdae.errors import InputError

HEARTBEAT_SECONDS = 10  # a process that is silent for longer counts as lost
START_SECONDS = 60
PEER_LOST = 3  # the exit status when another process is lost


@dataclass(frozen=True)
class Cluster:
    """The processes of a run. All are started with the same command."""

    coordinator: str | None = None
    """To train on several processes together: HOST:PORT of process 0. Start each process with the
    same command and its own --process-id."""
    num_processes: int | None = None
    """Number of processes."""
    process_id: int | None = None
    """Number of this process, from 0."""
    distributed: bool = False
    """To train on several processes that SLURM, Kubernetes, Open MPI or a TPU pod has started: JAX
    finds the three values above itself."""

    def check(self) -> None:
        """Raises an `InputError` unless all flags are given, or none, with valid values."""
        given = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        missing = [flag for flag, value in given.items() if value is None]
        if self.distributed and len(missing) < 3:
            raise InputError(
                "--distributed finds the processes itself: leave out --coordinator, "
                "--num-processes and --process-id"
            )
        if self.distributed or len(missing) == 3:
            return
        if missing:
            raise InputError(
                f"several processes also need {', '.join(missing)}: give all three flags"
            )
        host, _, port = str(self.coordinator).rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(
                f"--coordinator {self.coordinator} must be HOST:PORT: give it as in 10.0.0.1:1234"
            )
        count, number = self.num_processes or 0, self.process_id or 0
        if not 0 <= number < count:
            raise InputError(
                f"--process-id {number} must be at least 0 and less than {count}, the number of "
                "processes: choose another"
            )

    @property
    def is_multiprocess(self) -> bool:
        """True if there may be other processes."""
        return self.distributed or self.coordinator is not None


def connect(cluster: Cluster) -> None:
    """Connects to the other processes. Call it before JAX looks for its devices.

    Raises:
      InputError: the processes do not connect.
    """
    import jax

    given: dict[str, Any] = {}
    if not cluster.distributed:
        given = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
        }
    try:
        jax.distributed.initialize(
            **given,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=START_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the processes do not connect ({reason}): start them all within {START_SECONDS} s, "
            "with the same --coordinator"
        ) from None


def broadcast(value: bytes) -> bytes:
    """Returns the bytes that process 0 gives, in all processes."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(value))))
    data = np.frombuffer(value.ljust(size, b"\0")[:size], np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(data)).astype(np.uint8).tobytes()


def broadcast_state(state: Any, meta: Any) -> tuple[Any, Any]:
    """Returns the tree of arrays (the same bits) and the JSON value of process 0, in all processes.

    Args:
      state: in the other processes a tree of the same structure, shapes and types.
    """
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
    text = broadcast(json.dumps(meta).encode())
    data = broadcast(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves))
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(data[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, parts), json.loads(text)


def any_signal(number: int | None) -> int | None:
    """Returns the signal that any of the processes has got, in all processes.

    Args:
      number: the signal that this process has got, if any.
    """
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number or 0)))) or None


@contextlib.contextmanager
def exit_if_peer_lost(note: Callable[[], str]) -> Iterator[None]:
    """Ends this process when another is lost, and prints which one; then the `note`.

    JAX would wait for the lost process, even when Python exits: so this process exits at once. When
    process 0 is lost, which coordinates, or one is silent for long, JAX aborts instead: only a
    signal handler in C sees that.
    """
    import jax

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        print(f"stopped: {_guess_lost()} (JAX has aborted){note()}", file=sys.stderr, flush=True)
        os._exit(PEER_LOST)

    set_handler = ctypes.CDLL(None).signal if jax.process_count() > 1 else lambda *_: None
    set_handler(signal.SIGABRT, aborted)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:100]
        print(f"stopped: {_find_lost()} ({reason}){note()}", file=sys.stderr, flush=True)
        exit_at_once(PEER_LOST)
    finally:
        set_handler(signal.SIGABRT, None)  # C's default


def exit_at_once(code: int) -> None:
    """If this is one of several processes, exits without waiting for the others, which exit too."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        os._exit(code)


def _guess_lost() -> str:
    """Says which process is lost, without asking the others: JAX has aborted."""
    import jax
    from jax._src.distributed import global_state

    me, count = jax.process_index(), jax.process_count()
    if count == 2:
        return f"process {1 - me} of 2 is lost"
    host, _, port = str(global_state.coordinator_address).rpartition(":")
    try:
        socket.create_connection((host, int(port)), 1).close()
    except OSError:
        return f"process 0 of {count} is lost"
    return f"one of the {count} processes is lost"


def _find_lost() -> str:
    """Says which processes are lost: each remaining one writes a key, and looks for the others."""
    import jax

    me, count = jax.process_index(), jax.process_count()
    missing = []
    try:
        from jax._src.distributed import global_state  # JAX has no public way to the key store

        client = global_state.client
        assert client is not None
        client.key_value_set(f"jaxdae/here/{me}", "yes")
        for other in range(count):
            try:
                client.blocking_key_value_get(f"jaxdae/here/{other}", 3_000)
            except Exception:
                missing.append(str(other))
    except Exception:  # process 0 holds the store
        return f"process 0 of {count} is lost"
    if not missing:
        return "the processes have lost their connection"
    return f"process {' and '.join(missing)} of {count} {'is' if len(missing) == 1 else 'are'} lost"
