"""Which part of the commands imports which: lazy imports and those for type checkers count, too."""

import ast
import tomllib
from graphlib import TopologicalSorter
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = {
    "experiments." + ".".join(path.relative_to(ROOT / "experiments").with_suffix("").parts): path
    for path in sorted((ROOT / "experiments").rglob("*.py"))
}
COMMANDS = {name for name in FILES if name.count(".") == 1 and not name.endswith("__")}


def imported(name):
    """The modules of experiments/ that a module imports."""
    found = set()
    package = name.split(".")[:-1]
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.Import):
            assert not any(alias.name.startswith("experiments") for alias in node.names), name
        if isinstance(node, ast.ImportFrom):
            if not node.level:
                assert not node.module.startswith("experiments"), name  # jaxdae.commands, installed
                continue
            base = package[: len(package) + 1 - node.level]
            base += node.module.split(".") if node.module else []
            for alias in node.names:
                module = ".".join([*base, alias.name])
                found.add(module if module in FILES else ".".join(base))
    return {module if module in FILES else f"{module}.__init__" for module in found}


IMPORTS = {name: imported(name) for name in FILES}


def test_there_is_no_circle():
    assert len(list(TopologicalSorter(IMPORTS).static_order())) == len(FILES)


def test_imports_go_downward():
    def layers(*names):
        return {f"experiments.{name}" for name in names}

    allowed = {
        "common": layers("common"),
        "runs": layers("common", "runs"),
        "restore": layers("common", "runs", "restore"),
        "reports": layers("common", "runs", "reports"),
        "playground": layers("common", "runs", "playground"),
    }
    for name, modules in IMPORTS.items():
        for module in modules - {"experiments.__init__"}:
            if name in COMMANDS:
                assert module not in COMMANDS, (name, module)
            elif name.count(".") > 1:
                package = name.split(".")[1]
                assert module.rpartition(".")[0] in allowed[package], (name, module)


def test_the_wheel_holds_every_package():
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    folders = {name.removesuffix(".__init__") for name in FILES if name.endswith("__init__")}
    wanted = {name.replace("experiments", "jaxdae.commands") for name in folders}
    assert wanted == {name for name in packages if name.startswith("jaxdae.commands")}
    for path in FILES.values():
        assert (path.parent / "__init__.py").exists(), path
