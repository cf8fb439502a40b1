"""Several processes that train together: how they find each other, and what becomes of the rest
when one is lost."""

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

HEARTBEAT_SECONDS = 10  # after so long without a sign of life a process counts as lost
START_SECONDS = 60
LOST = 3  # the exit status of a process that has lost another


@dataclass(frozen=True)
class Cluster:
    """The processes of a run; the same command is given to each."""

    coordinator: str | None = None
    """Train on several processes together, HOST:PORT of process 0 being this; each is given the
    same command, with its own --process-id."""
    num_processes: int | None = None
    """How many processes there are."""
    process_id: int | None = None
    """Which of them this is, from 0."""
    distributed: bool = False
    """The same, with the three found by JAX: from SLURM, Kubernetes, Open MPI or a TPU pod."""

    def check(self) -> None:
        """Raises `InputError` unless all is given, or nothing, and fits."""
        given = {
            "--coordinator": self.coordinator,
            "--num-processes": self.num_processes,
            "--process-id": self.process_id,
        }
        missing = [flag for flag, value in given.items() if value is None]
        if self.distributed and len(missing) < 3:
            raise InputError(
                "--distributed finds the processes by itself: leave out the other flags"
            )
        if self.distributed or len(missing) == 3:
            return
        if missing:
            raise InputError(f"several processes need {', '.join(missing)} too: give all three")
        host, _, port = str(self.coordinator).rpartition(":")
        if not (host and port.isdigit() and 0 < int(port) < 65536):
            raise InputError(
                f"--coordinator {self.coordinator} must be HOST:PORT, such as 10.0.0.1:1234"
            )
        count, number = self.num_processes or 0, self.process_id or 0
        if not 0 <= number < count:
            raise InputError(f"--process-id {number} must be at least 0 and less than {count}")

    @property
    def several(self) -> bool:
        """Whether there may be other processes."""
        return self.distributed or self.coordinator is not None


def connect(cluster: Cluster) -> None:
    """Finds the other processes, before JAX looks for its devices.

    Raises:
      InputError: they are not found.
    """
    import jax

    known: dict[str, Any] = {}
    if not cluster.distributed:
        known = {
            "coordinator_address": cluster.coordinator,
            "num_processes": cluster.num_processes,
            "process_id": cluster.process_id,
        }
    try:
        jax.distributed.initialize(
            **known,
            heartbeat_timeout_seconds=HEARTBEAT_SECONDS,
            initialization_timeout=START_SECONDS,
        )
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the processes do not find each other ({reason}): start them all within "
            f"{START_SECONDS} s, with one --coordinator"
        ) from None


def share(value: bytes) -> bytes:
    """Process 0's bytes, for all processes."""
    import numpy as np
    from jax.experimental import multihost_utils

    size = int(multihost_utils.broadcast_one_to_all(np.int32(len(value))))
    data = np.frombuffer(value.ljust(size, b"\0")[:size], np.uint8)
    return np.asarray(multihost_utils.broadcast_one_to_all(data)).astype(np.uint8).tobytes()


def share_state(state: Any, meta: Any) -> tuple[Any, Any]:
    """Process 0's tree of arrays, to the bit, and its JSON value; others give a tree alike."""
    import jax
    import numpy as np

    leaves, structure = jax.tree.flatten(jax.tree.map(np.asarray, state))
    text = share(json.dumps(meta).encode())
    data = share(b"".join(np.ascontiguousarray(leaf).tobytes() for leaf in leaves))
    ends = np.cumsum([leaf.nbytes for leaf in leaves])
    parts = [
        np.frombuffer(data[end - leaf.nbytes : end], leaf.dtype).reshape(leaf.shape)
        for leaf, end in zip(leaves, ends, strict=True)
    ]
    return jax.tree.unflatten(structure, parts), json.loads(text)


def any_asked(number: int | None) -> int | None:
    """The signal that any of the processes was sent, for all of them."""
    import jax
    import numpy as np
    from jax.experimental import multihost_utils

    if jax.process_count() == 1:
        return number
    return int(np.max(multihost_utils.process_allgather(np.int32(number or 0)))) or None


@contextlib.contextmanager
def together(words: Callable[[], str]) -> Iterator[None]:
    """Ends this process when another is lost, and says which; `words` say how to go on.

    JAX would wait for the lost one, even at Python's own exit: so it is left at once. When process
    0 is lost, which coordinates, or one is silent for long, it aborts instead, and only a handler
    of C's sees that.
    """
    import jax

    @ctypes.CFUNCTYPE(None, ctypes.c_int)
    def aborted(_: int) -> None:
        print(f"stopped: {_silent()} (JAX has aborted){words()}", file=sys.stderr, flush=True)
        os._exit(LOST)

    handles = ctypes.CDLL(None).signal if jax.process_count() > 1 else lambda *_: None
    handles(signal.SIGABRT, aborted)
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if jax.process_count() == 1:
            raise
        reason = " ".join(str(error).split())[:100]
        print(f"stopped: {_lost()} ({reason}){words()}", file=sys.stderr, flush=True)
        leave(LOST)
    finally:
        handles(signal.SIGABRT, None)  # C's default


def leave(code: int) -> None:
    """Ends this process of several without waiting for the others, who then end too."""
    jax = sys.modules.get("jax")
    if jax is not None and jax.distributed.is_initialized() and jax.process_count() > 1:
        sys.stdout.flush()
        os._exit(code)


def _silent() -> str:
    """The same, for a process that can ask nobody any more."""
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


def _lost() -> str:
    """Which processes no longer answer: all that are left say that they are here."""
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
    except Exception:  # it keeps the store
        return f"process 0 of {count} is lost"
    if not missing:
        return "the processes have lost touch"
    return f"process {' and '.join(missing)} of {count} {'is' if len(missing) == 1 else 'are'} lost"
