"""The floors of the package: imports run down only, between packages and between files, and never in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "onp"
GROUND = {
    *("command", "config_file", "errors", "files", "numerics", "options"),
    *("plugins", "pool", "progress", "resume", "threads", "version"),
}
#: What each package may import beside itself and the ground floor.
ALLOWED = {
    "data": set(),
    "model": {"data"},
    "engine": {"data", "model"},
    "detect": {"data", "model", "engine"},
    "search": {"data", "model", "engine", "detect"},
    "attack": {"data", "model", "engine"},
    "defend": {"data", "model", "engine", "detect", "search", "attack"},
    "scan": {"data", "model", "engine", "detect", "search", "attack", "defend"},
    "zoo": {"data", "model", "engine", "detect", "search", "attack", "defend"},
    "compare": {"data", "model", "engine", "detect", "search", "attack", "defend"},
}
FILES = {
    ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(".__init__"): path for path in ROOT.rglob("*.py")
}


def package_of(module: str) -> str:
    """ "data" for "onp.data.images"; "errors" for "onp.errors", "onp" for the package itself."""
    return module.split(".")[1] if "." in module else "onp"


def imports(module: str) -> set[str]:
    """The modules of onp that the file of `module` imports, anywhere in it, those for type checking included."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports by a relative name"
            # What is imported may be a module or a name in one.
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            names = [name if name in FILES else node.module for name in names]
        found |= {name for name in names if name in FILES}
    return found


@pytest.mark.parametrize("module", sorted(FILES))
def test_imports_run_down_only(module):
    package = package_of(module)
    if package in ("onp", "api", "__main__"):
        return  # the public face stands on all floors
    allowed = GROUND | {package} | ALLOWED.get(package, set())
    assert package in GROUND | set(ALLOWED), f"{module} lies in no known package"
    if package in GROUND:
        allowed = GROUND
    wrong = {name for name in imports(module) if package_of(name) not in allowed}
    assert not wrong, f"{module} must not import {', '.join(sorted(wrong))}"


def test_files_import_each_other_in_no_circle():
    graph = {module: imports(module) - {module} for module in FILES}
    TopologicalSorter(graph).prepare()  # raises CycleError with the circle


@pytest.mark.parametrize("package", [*ALLOWED, "search.message_passing", "defend.report", "compare.defences", "model.tuning"])
def test_every_package_says_what_it_is_for(package):
    text = ast.get_docstring(ast.parse(FILES[f"onp.{package}"].read_text()))
    assert text and len(text.splitlines()) >= 2, f"onp.{package} needs a docstring: purpose, entry point, what it may import"
