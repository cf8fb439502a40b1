"""The commands as packages: installed they are `jaxdae.commands`, and no command needs another."""

import ast
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / "experiments").rglob("*.py"))
COMMANDS = {path.stem for path in (ROOT / "experiments").glob("[a-z]*.py")}


def test_imports_between_them_are_relative():
    """Installed, there is no `experiments`."""
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not any(name.name.startswith("experiments") for name in node.names), path
            elif isinstance(node, ast.ImportFrom) and not node.level:
                assert not node.module.startswith("experiments"), path


def test_no_command_imports_another():
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            above = path.parent == ROOT / "experiments"
            if isinstance(node, ast.ImportFrom) and node.level == (1 if above else 2):
                imported = {node.module} if node.module else {name.name for name in node.names}
                assert not imported & COMMANDS, (path, imported)


def test_the_wheel_holds_every_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    listed = {name for name in project["tool"]["setuptools"]["packages"] if "commands" in name}
    folders = {path.parent.relative_to(ROOT) for path in FILES}
    names = {".".join(folder.parts).replace("experiments", "jaxdae.commands") for folder in folders}
    assert listed == names
    assert all((ROOT / folder / "__init__.py").exists() for folder in folders)
