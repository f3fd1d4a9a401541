"""Dependencies point one way, and the package list in pyproject.toml is complete."""

import ast
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

# Who may import whom (docs/architecture.md). Root modules are the ground floor, except cli, which wires everything.
GROUND = {"errors", "amounts", "config", "lean_process"}
ALLOWED: dict[str, set[str]] = {
    "tiers": GROUND,
    "cache": GROUND | {"tiers"},
    "snapshots": GROUND | {"tiers"},
    "fuse_mount": GROUND | {"tiers", "cache", "snapshots"},
    "flexvolume": {"fuse_mount", "errors"},
    "client": GROUND | {"tiers", "cache", "snapshots"},
    "daemon": GROUND | {"tiers", "cache", "snapshots", "fuse_mount", "client"},
    "commands": GROUND | {"tiers", "cache", "snapshots", "fuse_mount", "client", "daemon"},
    "errors": set(),
    "amounts": {"errors"},
    "lean_process": set(),
    "config": {"errors", "amounts"},
    "cli": {"commands"} | GROUND,
}
# Folders that are no part of what gets installed.
NOT_INSTALLED = {"tests", "benchmarks", "demo", "docs"}


def sources() -> list[Path]:
    """Every module; not what an environment (.venv) or an installation from here (build) has put into the checkout."""
    found = [(p, p.relative_to(ROOT).parts) for p in ROOT.rglob("*.py")]
    return [p for p, parts in found if parts[0] != "build" and not any(part.startswith(".") for part in parts)]


def imports_of(path: Path) -> set[str]:
    """Top-level parts of `forebay` that a file imports, by relative or absolute import."""
    relative = path.relative_to(ROOT)
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            package = list(relative.parts[:-1])
            base = package[: len(package) - (node.level - 1)]
            target = base + (node.module.split(".") if node.module else [])
            found |= {target[0]} if target else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "forebay":
            parts = node.module.split(".")[1:]
            found |= {parts[0]} if parts else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("forebay.")}
    return found - {"__version__"}


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    area = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if area in NOT_INSTALLED or area == "__init__":
        return
    assert area in ALLOWED, f"say in ALLOWED what {area} may import"
    assert imports_of(path) - {area} <= ALLOWED[area]


def test_every_package_is_listed_for_installation() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {
        ".".join(("forebay", *p.parent.relative_to(ROOT).parts))
        for p in sources()
        if p.name == "__init__.py" and p.relative_to(ROOT).parts[0] not in NOT_INSTALLED
    }
    assert listed == found
