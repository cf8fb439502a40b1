"""Where what can be made again is kept: decoded images, compiled programs and kernels."""

import os
from pathlib import Path


def cache_folder(cache_dir: Path | None = None) -> Path:
    """The folder: as given, `$XDG_CACHE_HOME/jaxdae` or `~/.cache/jaxdae`. It may not exist."""
    return cache_dir or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxdae"
