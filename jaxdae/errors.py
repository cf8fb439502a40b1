"""Exceptions whose messages say what is wrong and what to do."""

import contextlib
from collections.abc import Iterator


class InputError(ValueError):
    """A value, folder or file that cannot be used.

    The message is one line: the value, the rule that it breaks, and the mend. A command prints it
    unchanged.
    """


class DivergenceError(ArithmeticError):
    """The training loss is no longer finite. The message names the step and the learning rate."""


def show(path: object) -> str:
    """A path in quotes, on one line: control characters are escaped."""
    return repr(str(path))


@contextlib.contextmanager
def explained(what: str, mend: str) -> Iterator[None]:
    """Turns any exception raised inside into an `InputError`: "what (reason): mend".

    Damaged bytes make other libraries raise a dozen types. An `InputError` passes unchanged.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{what} ({reason[:200]}): {mend}") from None
