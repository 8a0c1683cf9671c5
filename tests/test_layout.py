"""The modules: no import circles, the names that packages offer, and the pages that name them."""

import ast
import graphlib
import importlib
import re

import pytest

from conftest import ROOT

MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in (ROOT / "portraitmatting").rglob("*.py")
}


def imported(path) -> set[str]:
    """Modules of the package that a file imports anywhere, also in functions and only for types."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            below = {f"{node.module}.{alias.name}" for alias in node.names}
            names |= below & MODULES.keys() or {str(node.module)}
    return names & MODULES.keys()


def test_there_is_no_import_circle():
    graph = {name: imported(path) - {name} for name, path in MODULES.items()}
    order = list(graphlib.TopologicalSorter(graph).static_order())  # or CycleError, which names it
    assert len(order) == len(MODULES)


@pytest.mark.parametrize("package", ["", ".checkpoint", ".evaluate", ".video"])
def test_packages_offer_their_names(package):
    module = importlib.import_module(f"portraitmatting{package}")
    names = [name for name in dir(module) if not name.startswith("_")]
    assert names
    for name in names:
        assert getattr(module, name) is not None
    with pytest.raises(ImportError):
        exec(f"from portraitmatting{package} import nothing_like_it")


def test_nothing_is_installed_from_an_index_that_does_not_have_it():
    pages = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *MODULES.values()]
    for page in pages:
        assert not re.search(r"pip install \S*portraitmatting\b", page.read_text(encoding="utf-8"))


def test_contributing_names_every_folder_and_module():
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    layout = page[page.index("| folder or module |") : page.index("## To add")]
    package = ROOT / "portraitmatting"
    tree = {f"`{path.parent.name}/`" for path in package.glob("*/__init__.py")}
    tree |= {f"`{path.stem}`" for path in package.glob("[!_]*.py")}
    names = set(re.findall(r"`\w+/?`", layout))
    assert tree <= names
    assert names - tree <= {f"`{path.stem}`" for path in package.glob("modeling/*.py")}
