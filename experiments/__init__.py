"""The commands: `python -m experiments.NAME` in a checkout, `jaxdae NAME` where it is installed.

The code is the same: the wheel holds this folder as `jaxdae.commands`.
"""


def program(name: str) -> str:
    """What a user types to start the command `name`."""
    return f"python -m {__name__}.{name}" if __name__ == "experiments" else f"jaxdae {name}"
