"""The layering contracts of pyproject.toml reject an import that goes the wrong way."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("importlinter", reason="the layering lint belongs to `make check`")

ROOT = Path(__file__).parents[3]
PARTS = ("common", "broker", "client", "worker", "dashboard")
ALLOWED = {
    "common": set[str](),
    "broker": {"common"},
    "client": {"common", "broker"},
    "worker": {"common", "broker"},
    "dashboard": {"common", "broker", "client"},
    "demo": set(PARTS),
}
FORBIDDEN = [(a, b) for a in ALLOWED for b in ALLOWED if a != b and b not in ALLOWED[a]]
# The demonstration lies in the root distribution.
SOURCES = {part: f"{part}/src" for part in PARTS} | {"demo": "src"}
LINT = "from importlinter.cli import lint_imports_command; lint_imports_command()"


def lint(root: Path, importer: str, imported: str) -> subprocess.CompletedProcess[str]:
    shutil.copy(ROOT / "pyproject.toml", root)
    for part, source in SOURCES.items():
        package = root / source / "fumehood" / part
        package.mkdir(parents=True)
        (package / "__init__.py").touch()
    statement = f"def late() -> None:\n    import fumehood.{imported}\n"
    (root / SOURCES[importer] / "fumehood" / importer / "planted.py").write_text(statement)
    # -S leaves out the editable installs, whose real packages would join the namespace.
    third_party = [path for path in sys.path if path.endswith("site-packages")]
    paths = [*(str(root / source) for source in SOURCES.values()), *third_party]
    return subprocess.run(
        [sys.executable, "-S", "-c", LINT, "--no-cache"],
        cwd=root,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(("importer", "imported"), FORBIDDEN)
def test_a_planted_import_is_rejected(tmp_path: Path, importer: str, imported: str) -> None:
    result = lint(tmp_path, importer, imported)
    assert result.returncode == 1, result.stdout + result.stderr
    assert f"fumehood.{importer}.planted -> fumehood.{imported}" in result.stdout


@pytest.mark.parametrize(
    ("importer", "imported"),
    [(part, "common") for part in ALLOWED if ALLOWED[part]]
    + [("demo", "client"), ("demo", "worker"), ("demo", "dashboard")],
)
def test_an_import_of_a_lower_layer_passes(tmp_path: Path, importer: str, imported: str) -> None:
    result = lint(tmp_path, importer, imported)
    assert result.returncode == 0, result.stdout + result.stderr
