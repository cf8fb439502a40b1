"""An extension of griffe, which reads the docstrings: a section Fields is one of attributes."""

import re
from typing import Any

import griffe


class Fields(griffe.Extension):
    """Renames the section that a docstring of a module, dataclass or state calls Fields."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        """Changes the text of a docstring before it is parsed."""
        if obj.docstring is not None:
            text = obj.docstring.value
            obj.docstring.value = re.sub(r"^Fields:$", "Attributes:", text, flags=re.MULTILINE)
