"""An extension of griffe, which parses docstrings: this project's section `Fields:`."""

import re
from typing import Any

import griffe


class Fields(griffe.Extension):
    """Renames the section `Fields:` of a docstring to `Attributes:`."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the text of a docstring before it is parsed."""
        if obj.docstring is not None:
            text = obj.docstring.value
            text = re.sub(r"^Fields:$", "Attributes:", text, flags=re.MULTILINE)
            # Names that share a line get a line each.
            obj.docstring.value = re.sub(
                r"^( +)(\w+(?:, \w+)+): (.*)$",
                lambda found: "\n".join(
                    f"{found[1]}{name}: {found[3]}" for name in found[2].split(", ")
                ),
                text,
                flags=re.MULTILINE,
            )
