"""The commands: `python -m experiments.NAME` in a checkout, `jaxdae NAME` where it is installed.

Both are this code: the package that is built holds this folder as `jaxdae.commands`.
"""


def program(name: str) -> str:
    """How the command `name` is typed here."""
    return f"python -m {__name__}.{name}" if __name__ == "experiments" else f"jaxdae {name}"
