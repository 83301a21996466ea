"""The house keeps its shape: who may import whom, how files and imports are written."""

import ast
from pathlib import Path

import pytest


PACKAGE = Path(__file__).parent.parent / "clipa_eqx"

# What each part may import of the package. Parts of one floor do not know each other.
MAY_IMPORT = {
    "_types": set(),
    "_checks": set(),
    "devices": set(),
    "host_memory": set(),
    "termination": set(),
    "config": {"_checks"},
    "sizes": {"_checks", "config"},
    "nn": {"_types", "_checks", "config"},
    "reduction": {"_types", "_checks", "config"},
    "losses": {"_types", "_checks", "config"},
    "sharding": {"_types", "_checks", "config", "termination"},
    "models": {"_types", "_checks", "config", "sizes", "nn"},
    "data": {"_checks", "config"},
    "recipes": {"_checks", "config", "sizes"},
    "interop": {"_types", "_checks", "config", "models", "data"},
    "train": {
        *("_types", "_checks", "devices", "termination", "config"),
        *("nn", "reduction", "losses", "sharding", "models", "data"),
    },
    "planning": {"_checks", "devices", "config", "sharding", "models", "train"},
    "init_from": {"config", "sizes", "data", "interop", "models", "train"},
    "evaluation": {"_types", "_checks", "config", "reduction", "sharding", "models", "data"},
}
EVERYTHING = set(MAY_IMPORT) | {"cli"}

FILES = sorted(PACKAGE.rglob("*.py"))


def _part(path):
    inside = path.relative_to(PACKAGE)
    return inside.parts[0].removesuffix(".py")


def _imported_parts(path):
    """Names of the package's parts that a file imports, wherever in the file the import stands."""
    depth = len(path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            names = [node.module] if node.module else [alias.name for alias in node.names]
            yield from (name.split(".")[0] for name in names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module.split(".")[0] == "clipa_eqx":
            raise AssertionError(f"{path} imports the package by its absolute name; use a relative import")


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_point_down(path):
    part = _part(path)
    allowed = EVERYTHING if part in ("__init__", "__main__", "cli") else MAY_IMPORT[part] | {part}
    assert set(_imported_parts(path)) - {"__init__"} <= allowed


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_files_are_written_alike(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "a file begins with what it is about"
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            assert node.module != "__future__", "string annotations hide shapes from the checker"
            assert not any(alias.name == "*" for alias in node.names)
        if isinstance(node, ast.Assert):
            raise AssertionError(
                f"line {node.lineno}: asserts vanish under -O; raise an error that says what to change"
            )


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_heavy_or_foreign_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names = [node.module]
        roots = {name.split(".")[0] for name in names}
        assert not roots & {"tensorflow", "torch", "pickle", "marshal", "shelve"}
        if _part(path) == "data":
            assert not roots & {"jax", "jaxlib", "equinox"}, "reader processes must not start a backend"
