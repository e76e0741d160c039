"""What the demonstration measures, and which files it takes."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from fumehood.demo import tasks
from fumehood.demo.survey import source_files


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """A task may turn off what its process will not need; this process will."""
    yield
    gc.enable()


SOURCE = """
class A:
    def f(self, a):
        if a:
            pass
        elif a is None:
            for x in a:
                while x:
                    pass
        else:
            pass

    async def g(self):
        return [x for x in () if x or self]
"""


def test_a_file_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text(SOURCE)
    assert tasks.measure(str(path)) == tasks.FileFacts(
        path=str(path), lines=14, functions=2, classes=1, nesting=3, complexity=5
    )


def test_a_file_that_is_no_python_raises(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("def")
    with pytest.raises(SyntaxError):
        tasks.measure(str(path))


def test_a_file_that_nests_deeply_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "a.py"
    path.write_text("x = " + "-" * 80 + "1\n" + "if x:\n    pass\n" + "elif x:\n    pass\n" * 300)
    assert tasks.measure(str(path)).nesting == 1


def test_a_limit_spreads_over_the_standard_library() -> None:
    root, files = source_files(10)
    assert len(files) == len(set(files)) == 10
    assert all(path.is_relative_to(root) for path in files)
    assert len({path.parent for path in files}) > 2
    _, everything = source_files(None)
    assert len(everything) > 400
    assert not any("site-packages" in path.parts for path in everything)
