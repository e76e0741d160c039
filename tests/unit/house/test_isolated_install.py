"""Each package works with what it declares and with nothing else.

An editable checkout cannot show this, because there every part sees every other. So the wheels are
built and installed into a folder of their own, and a fresh interpreter sees that folder and the
declared third-party packages only.
"""

import email
import json
import os
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
NEEDS = {
    "common": ("common",),
    "broker": ("common", "broker"),
    "client": ("common", "broker", "client"),
    "worker": ("common", "broker", "worker"),
    "dashboard": ("common", "broker", "client", "dashboard"),
}
PARTS = tuple(NEEDS)
BUILD = "import sys, uv_build; print(uv_build.build_wheel(sys.argv[1]))"
# Imports every module of one part, and says which parts cannot be found at all. A module may miss
# what an extra of its package brings; `__main__` would run instead of being imported.
PROBE = """
import importlib, json, pkgutil, sys
part, parts, extras, paths = json.loads(sys.argv[1])
sys.path.extend(paths)
package = importlib.import_module(f"fumehood.{part}")
for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
    if not module.name.endswith("__main__"):
        try:
            importlib.import_module(module.name)
        except ModuleNotFoundError as error:
            if error.name is None or error.name.partition(".")[0] not in extras:
                raise
absent = []
for other in parts:
    try:
        importlib.import_module(f"fumehood.{other}")
    except ModuleNotFoundError:
        absent.append(other)
print(json.dumps(absent))
"""


def run(*command: str | Path, cwd: Path | None = None) -> str:
    # uv_build looks for its program on PATH, which an environment that is not activated is not on.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    env = {**os.environ, "PATH": path}
    result = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One wheel per part and one for the root, from the backend itself: offline, no isolation."""
    folder = tmp_path_factory.mktemp("wheels")
    sources = {part: ROOT / part for part in PARTS} | {"fumehood": ROOT}
    return {
        name: folder / run(sys.executable, "-c", BUILD, folder, cwd=source).split()[-1]
        for name, source in sources.items()
    }


def requirements(wheel: Path) -> list[Requirement]:
    with zipfile.ZipFile(wheel) as archive:
        name = next(name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        message = email.message_from_bytes(archive.read(name))
    return [Requirement(line) for line in message.get_all("Requires-Dist", [])]


def wanted(requirement: Requirement, extras: set[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in extras | {""})


def closure(start: list[Requirement]) -> set[str]:
    """The names of the third-party distributions that an installer would bring for these."""
    found = set[str]()
    waiting = [requirement for requirement in start if wanted(requirement, set())]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in found or name.startswith("fumehood"):
            continue
        found.add(name)
        inner = map(Requirement, metadata.requires(name) or [])
        waiting.extend(each for each in inner if wanted(each, requirement.extras))
    return found


def link_third_party(names: set[str], folder: Path) -> None:
    """Shows these distributions, and none of the others that the environment of the tests holds."""
    folder.mkdir()
    for name in names:
        distribution = metadata.distribution(name)
        tops = {file.parts[0] for file in distribution.files or []} - {"..", "__pycache__"}
        for top in tops:
            link = folder / top
            if not link.exists():
                link.symlink_to(Path(str(distribution.locate_file(top))))


@pytest.mark.parametrize("part", PARTS)
def test_a_wheel_holds_its_part_only(wheels: dict[str, Path], part: str) -> None:
    with zipfile.ZipFile(wheels[part]) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
    assert f"fumehood/{part}/py.typed" in files
    inside = (f"fumehood/{part}/", f"fumehood_{part}-")
    assert [name for name in files if not name.startswith(inside)] == []


def test_the_root_wheel_holds_the_demonstration_only(wheels: dict[str, Path]) -> None:
    with zipfile.ZipFile(wheels["fumehood"]) as archive:
        files = [name for name in archive.namelist() if not name.endswith("/")]
    assert "fumehood/demo/py.typed" in files
    inside = ("fumehood/demo/", "fumehood-0.1.0.dist-info/")
    assert [name for name in files if not name.startswith(inside)] == []
    assert {r.name for r in requirements(wheels["fumehood"])} == {f"fumehood-{p}" for p in PARTS}


@pytest.mark.parametrize("part", PARTS)
def test_a_part_works_with_what_it_declares(
    wheels: dict[str, Path], part: str, tmp_path: Path
) -> None:
    installed, third_party = tmp_path / "installed", tmp_path / "third_party"
    pip = (
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--no-index",
        "--no-compile",
    )
    run(*pip, "--target", installed, *(wheels[need] for need in NEEDS[part]))
    declared = [each for need in NEEDS[part] for each in requirements(wheels[need])]
    link_third_party(closure(declared), third_party)
    extras = [r.name.replace("-", "_") for r in declared if not wanted(r, set())]
    paths = [str(installed), str(third_party)]
    # -I and -S keep the checkout, PYTHONPATH, site-packages and its .pth files out.
    probe = (sys.executable, "-I", "-S", "-c", PROBE, json.dumps([part, PARTS, extras, paths]))
    absent = json.loads(run(*probe, cwd=tmp_path))
    assert set(absent) == set(PARTS) - set(NEEDS[part])
