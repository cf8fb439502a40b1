"""The one exception that says: what was asked for cannot be done, and here is what can."""


class InputError(ValueError):
    """An unusable value, folder or file.

    The message is one line that names the value, the rule it breaks and the mend, so that a
    command line can print it as it is.
    """


class DivergenceError(ArithmeticError):
    """Training met a loss that is not finite; the message names the step and the learning rate."""
