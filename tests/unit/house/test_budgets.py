"""The size budgets reject what is too long, and nothing else."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


def budgets(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools/budgets.py"), "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def plant(root: Path, source: str) -> None:
    module = root / "common/src/fumehood/common/planted.py"
    module.parent.mkdir(parents=True)
    module.write_text(source)


def function(lines: int, docstring: str = "") -> str:
    return "def planted():\n" + docstring + "    x = 1\n" * lines


def test_the_product_code_keeps_its_budgets() -> None:
    result = budgets(ROOT)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize(
    ("source", "complaint"),
    [
        ("x = 1\n" * 401, "planted.py: 401 lines, 400 at most"),
        (function(51), "planted.py:1 planted: 51 lines, 50 at most"),
        ("class A:\n    async def f(self):\n" + "        x = 1\n" * 51, "planted.py:2 f: 51 lines"),
    ],
    ids=["file", "function", "method"],
)
def test_a_planted_violation_is_rejected(tmp_path: Path, source: str, complaint: str) -> None:
    plant(tmp_path, source)
    result = budgets(tmp_path)
    assert result.returncode == 1
    assert complaint in result.stdout


@pytest.mark.parametrize(
    "source",
    ["x = 1\n" * 400, function(50), function(50, '    """' + "Text.\n" * 40 + '    """\n')],
    ids=["file", "function", "docstring"],
)
def test_what_just_fits_passes(tmp_path: Path, source: str) -> None:
    plant(tmp_path, source)
    assert budgets(tmp_path).returncode == 0


def test_the_report_names_what_exceeds_the_aims(tmp_path: Path) -> None:
    plant(tmp_path, function(21))
    result = budgets(tmp_path, "--report")
    assert result.returncode == 0
    assert "planted.py:1 planted: 21 lines, aim at 20" in result.stdout


def test_an_empty_tree_is_an_error(tmp_path: Path) -> None:
    assert budgets(tmp_path).returncode == 1
