"""The house keeps its shape: one namespace, typed parts, dependencies that follow the layers."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
ALLOWED = {
    "common": set[str](),
    "broker": {"common"},
    "client": {"common", "broker"},
    "worker": {"common", "broker"},
    "dashboard": {"common", "broker", "client"},
}
PARTS = tuple(ALLOWED)


def manifest(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "pyproject.toml").read_text())


def dependencies(folder: Path) -> set[str]:
    return {
        canonicalize_name(Requirement(line).name)
        for line in manifest(folder)["project"]["dependencies"]
    }


def ours(names: set[str]) -> set[str]:
    return {name.removeprefix("fumehood-") for name in names if name.startswith("fumehood-")}


PINNED = [path.name for path in sorted((ROOT / "requirements").glob("*.txt"))]


def pinned(requirements: str) -> set[str]:
    lines = (ROOT / "requirements" / requirements).read_text().splitlines()
    return {canonicalize_name(line.split("==")[0]) for line in lines if "==" in line}


@pytest.mark.parametrize("part", PARTS)
def test_the_namespace_belongs_to_no_part(part: str) -> None:
    source = ROOT / part / "src"
    assert [path.name for path in source.iterdir()] == ["fumehood"]
    found = {path.name for path in (source / "fumehood").iterdir() if path.name != "__pycache__"}
    assert found == {part}


def test_the_root_adds_the_demonstration_only() -> None:
    found = {path.name for path in (ROOT / "src").iterdir()}
    assert found == {"fumehood"}
    inside = {path.name for path in (ROOT / "src/fumehood").iterdir()} - {"__pycache__"}
    assert inside == {"demo"}
    assert (ROOT / "src/fumehood/demo/py.typed").is_file()


@pytest.mark.parametrize("part", PARTS)
def test_each_part_is_typed_and_described(part: str) -> None:
    assert (ROOT / part / "src/fumehood" / part / "py.typed").is_file()
    assert (ROOT / part / "src/fumehood" / part / "__init__.py").is_file()
    assert (ROOT / part / "README.md").is_file()


@pytest.mark.parametrize("part", PARTS)
def test_dependencies_follow_the_layers(part: str) -> None:
    assert ours(dependencies(ROOT / part)) == ALLOWED[part]


def test_the_root_brings_all_parts() -> None:
    assert ours(dependencies(ROOT)) == set(PARTS)
    assert manifest(ROOT)["tool"]["uv"]["workspace"]["members"] == list(PARTS)


def test_all_share_one_version_python_and_licence() -> None:
    projects = [manifest(folder)["project"] for folder in (ROOT, *(ROOT / part for part in PARTS))]
    for key in ("version", "requires-python", "license"):
        assert len({project[key] for project in projects}) == 1, key


def test_what_the_parts_declare_is_pinned() -> None:
    """A pin set that misses a dependency would fail only on a fresh machine."""
    declared = set[str]().union(*(dependencies(ROOT / part) for part in PARTS))
    third_party = {name for name in declared if not name.startswith("fumehood-")}
    assert third_party <= pinned("run.txt")
    assert pinned("run.txt") <= pinned("test.txt") <= pinned("check.txt")


@pytest.mark.parametrize("requirements", PINNED)
def test_pins_are_hashed_and_name_no_index(requirements: str) -> None:
    for line in (ROOT / "requirements" / requirements).read_text().splitlines():
        assert "://" not in line
        assert line.startswith("    --hash=sha256:") or "==" in line, line
