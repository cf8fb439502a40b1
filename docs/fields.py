"""An extension of griffe, which reads the docstrings: what is a convention of this project's."""

import re
from typing import Any

import griffe


class Fields(griffe.Extension):
    """Renames the section that a docstring of a module, dataclass or state calls Fields."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the text of a docstring before it is parsed."""
        if obj.docstring is not None:
            text = obj.docstring.value
            text = re.sub(r"^Fields:$", "Attributes:", text, flags=re.MULTILINE)
            # Of several that share a line, each has its own.
            obj.docstring.value = re.sub(
                r"^( +)(\w+(?:, \w+)+): (.*)$",
                lambda found: "\n".join(
                    f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")
                ),
                text,
                flags=re.MULTILINE,
            )
