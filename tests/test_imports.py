"""Who may import whom: imports go downward only, and there is no circle.

The rules are read off the syntax trees, so an import inside a function counts, and so does one
under `TYPE_CHECKING`.
"""

import ast
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
BOTTOM = ("jaxdae.random", "jaxdae.files", "jaxdae.errors")
ENGINE = ("jaxdae", "experiments.runs", "experiments.common")
# A package or module, and all that it may import of this project beside itself.
ONLY = {
    "jaxdae": ("jaxdae",),
    "jaxdae.errors": (),
    "jaxdae.random": (),
    "jaxdae.files": ("jaxdae.errors",),
    "jaxdae.image_io": ("jaxdae.files", "jaxdae.errors"),
    "jaxdae.data": ("jaxdae.image_io", *BOTTOM),
    "jaxdae.kernels": BOTTOM,
    "jaxdae.model": ("jaxdae.kernels", "jaxdae.errors"),
    "experiments": ("jaxdae", "experiments"),
    "experiments.common": ("jaxdae",),
    "experiments.runs": ("jaxdae", "experiments.common"),
    "experiments.restore": ENGINE,
    "experiments.reports": ENGINE,
    "experiments.playground": (*ENGINE, "experiments.restore"),
}
NEVER = {"jaxdae.objectives": ("jaxdae.data",)}
# Other frameworks, and the only files that may import them.
FRAMEWORKS = {
    "tensorflow": (),
    "torch": (),
    "keras": (),
    "tensorflow_datasets": ("jaxdae/data/tfds.py",),
}


class Import(NamedTuple):
    """One import: by which module, of which, and its place, file:line."""

    importer: str
    imported: str
    place: str

    def __str__(self) -> str:
        return f"{self.place}: {self.importer} imports {self.imported}"


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


TREES = ("jaxdae", "experiments", "benchmarks")
FILES = [file for tree in TREES for file in sorted(ROOT.glob(f"{tree}/**/*.py"))]
MODULES = {module_of(file): file for file in FILES}


def read(file: Path) -> Iterator[Import]:
    """Every import of a file; `from package import module` is one of the module."""
    importer = module_of(file)
    package = importer.split(".") if file.name == "__init__.py" else importer.split(".")[:-1]
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            imported = {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            imported = {name if name in MODULES else base for name in names}
        else:
            continue
        for name in sorted(imported):
            yield Import(importer, name, f"{file.relative_to(ROOT)}:{node.lineno}")


IMPORTS = [each for file in FILES for each in read(file)]


def within(module: str, packages: Iterable[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def circle(imports: list[Import]) -> list[Import]:
    """The imports of a circle, the first that is found; none if there is none."""
    graph: dict[str, list[Import]] = {}
    for each in imports:
        graph.setdefault(each.importer, []).append(each)
    done: set[str] = set()

    def search(module: str, path: list[Import]) -> list[Import]:
        above = [each.importer for each in path]
        if module in above:
            return path[above.index(module) :]
        found: list[Import] = []
        if module not in done:
            for each in graph.get(module, ()):
                found = found or search(each.imported, [*path, each])
        done.add(module)
        return found

    return next(filter(None, (search(module, []) for module in list(graph))), [])


def test_the_wheel_holds_every_package():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    packages = {module for module, file in MODULES.items() if file.name == "__init__.py"}
    installed = {
        module.replace("experiments", "jaxdae.commands")
        for module in packages
        if not within(module, ("benchmarks",))
    }
    assert installed == set(settings["packages"])


def test_imported_modules_exist():
    found = [
        each for each in IMPORTS if within(each.imported, TREES) and each.imported not in MODULES
    ]
    assert not found, "\n".join(map(str, found))


def test_no_module_imports_itself_by_way_of_others():
    found = circle([each for each in IMPORTS if each.imported in MODULES])
    assert not found, "\n".join(map(str, found))


def test_no_package_imports_itself_by_way_of_others():
    """Packages and modules of the library and of the commands, each taken as one."""
    units = {".".join(module.split(".")[:2]) for module in MODULES}
    found = circle(
        [
            each._replace(importer=importer, imported=imported)
            for each in IMPORTS
            if each.imported in MODULES
            for importer, imported in [(".".join(name.split(".")[:2]) for name in each[:2])]
            if importer != imported and {importer, imported} <= units
        ]
    )
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("package", ONLY)
def test_a_package_imports_only_what_it_may(package):
    """Beside the names of a package that it lies in, which is imported first in any case."""
    allowed = (package, *ONLY[package])
    found = [
        each
        for each in IMPORTS
        if within(each.importer, (package,))
        and within(each.imported, TREES)
        and not within(each.imported, allowed)
        and not (each.imported in MODULES and within(package, (each.imported,)))
    ]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("package", NEVER)
def test_a_package_never_imports(package):
    found = [
        each
        for each in IMPORTS
        if within(each.importer, (package,)) and within(each.imported, NEVER[package])
    ]
    assert not found, "\n".join(map(str, found))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_other_frameworks_are_not_imported(framework):
    found = [
        each
        for each in IMPORTS
        if within(each.imported, (framework,))
        and not within(each.importer, ("benchmarks",))
        and each.place.rpartition(":")[0] not in FRAMEWORKS[framework]
    ]
    assert not found, "\n".join(map(str, found))


def test_a_circle_is_told_import_by_import():
    pairs = ["ab", "ac", "cd", "de", "ec", "eb"]
    found = circle([Import(*pair, place=pair) for pair in pairs])
    assert [each.place for each in found] == ["cd", "de", "ec"]
    assert not circle([Import(*pair, place=pair) for pair in ["ab", "ac", "cb"]])


def test_imports_are_found_wherever_they_are():
    """Inside a function, for annotations only, relative, and of a module of a package."""
    found = {each[:2] for each in IMPORTS}
    assert ("jaxdae", "jaxdae.trainer") in found  # under TYPE_CHECKING
    assert ("jaxdae.data", "jaxdae.data.folder") in found or (
        "jaxdae.data.load",
        "jaxdae.data.folder",
    ) in found
    assert ("jaxdae.evaluation", "jaxdae.metrics") in found  # from jaxdae import metrics
