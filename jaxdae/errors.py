"""The one exception that says: what was asked for cannot be done, and here is what can."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """An unusable value, folder or file.

    The message is one line that names the value, the rule it breaks and the mend, so that a
    command line can print it as it is.
    """


class DivergenceError(ArithmeticError):
    """Training met a loss that is not finite; the message names the step and the learning rate."""


def show(path: object) -> str:
    """A path as one line, whatever it holds."""
    return repr(str(path))


@contextlib.contextmanager
def explained(what: str, mend: str) -> Iterator[None]:
    """Whatever other libraries raise, and for damaged bytes it is a dozen types, as InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what} ({reason[:200]}): {mend}") from None
