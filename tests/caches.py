"""The cache folder that tests give to the commands that they start."""

from pathlib import Path

from jaxdae.files import cache_folder


def own_cache(place: Path) -> str:
    """A folder under `place` for XDG_CACHE_HOME, new but for the kernels, slow to compile."""
    folder, kernels = place / "cache" / "jaxdae", cache_folder() / "kernels"
    if not folder.exists():
        kernels.mkdir(parents=True, exist_ok=True)
        folder.mkdir(parents=True)
        (folder / "kernels").symlink_to(kernels.absolute(), target_is_directory=True)
    return str(folder.parent)
