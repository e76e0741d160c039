"""What a zygote's code came from, and when it counts as changed."""

from __future__ import annotations

import os
import py_compile
import zipfile
from pathlib import Path
from typing import Any

import pytest
from support.census_tasks.fresh import run

from fumehood.worker.sandbox.codewatch import CodeWatch, stamp

SETTLED, SETTLED_WITHOUT = 2, 5  # looks


def looks(watch: CodeWatch, number: int) -> list[str]:
    """What the last of so many looks says; those before it may not say anything."""
    for _ in range(number - 1):
        assert watch.changed() == []
    return watch.changed()


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    files = [tmp_path / name for name in ("a.py", "b.py", "c.py")]
    for file in files:
        file.write_text("VALUE = 1\n")
    return files


def watch_over(files: list[Path]) -> CodeWatch:
    return CodeWatch({str(file): stamp(str(file)) for file in files})


# --- watching ----------------------------------------------------------------------------------


def test_nothing_changes_by_looking(files: list[Path]) -> None:
    watch = watch_over(files)
    digest = watch.digest()
    assert looks(watch, 20) == []
    assert watch.digest() == digest
    assert len(digest) == 32
    assert len(watch) == 3


def test_a_change_is_told_when_two_looks_agree(files: list[Path]) -> None:
    watch = watch_over(files)
    digest = watch.digest()
    files[1].write_text("VALUE = 22\n")
    assert looks(watch, SETTLED) == [str(files[1])]
    assert watch.changed() == [str(files[1])]  # as long as it lasts
    assert watch.digest() != digest


def test_the_same_size_at_another_time_is_a_change(files: list[Path]) -> None:
    watch = watch_over(files)
    os.utime(files[0], ns=(0, 12345))
    assert looks(watch, SETTLED) == [str(files[0])]


def test_another_size_at_the_same_time_is_a_change(files: list[Path]) -> None:
    watch = watch_over(files)
    then = files[0].stat().st_mtime_ns
    files[0].write_text("VALUE = 333\n")
    os.utime(files[0], ns=(then, then))
    assert looks(watch, SETTLED) == [str(files[0])]


def test_a_deploy_that_goes_on_is_waited_for(files: list[Path]) -> None:
    watch = watch_over(files)
    for number, file in enumerate(files):
        file.write_text(f"VALUE = 1{'0' * number}\n")
        assert watch.changed() == []
    assert watch.changed() == sorted(map(str, files))


def test_files_that_are_missing_are_waited_for(files: list[Path]) -> None:
    watch = watch_over(files)
    for file in files:
        file.unlink()
    assert looks(watch, SETTLED_WITHOUT - 1) == []
    for file in files:
        file.write_text("VALUE = 4444\n")
    assert looks(watch, SETTLED) == sorted(map(str, files))


def test_a_module_that_is_gone_for_good_is_told_of(files: list[Path]) -> None:
    watch = watch_over(files)
    files[0].unlink()
    assert looks(watch, SETTLED_WITHOUT) == [str(files[0])]


def test_what_is_put_back_is_no_change(files: list[Path]) -> None:
    watch = watch_over(files)
    digest = watch.digest()
    aside = files[0].with_suffix(".aside")
    files[0].rename(aside)
    assert watch.changed() == []
    assert watch.digest() != digest
    aside.rename(files[0])
    assert looks(watch, 10) == []
    assert watch.digest() == digest


def test_a_link_that_is_switched_is_a_change(tmp_path: Path) -> None:
    for number in (1, 2):
        release = tmp_path / f"release{number}"
        release.mkdir()
        (release / "app.py").write_text(f"VALUE = {10**number}\n")
    current = tmp_path / "current"
    current.symlink_to("release1")
    watch = watch_over([current / "app.py"])
    (tmp_path / "next").symlink_to("release2")
    (tmp_path / "next").rename(current)
    assert looks(watch, SETTLED) == [str(current / "app.py")]


def test_names_that_are_no_text_have_a_digest(tmp_path: Path) -> None:
    file = tmp_path / os.fsdecode(b"caf\xe9.py")
    file.write_text("")
    assert len(watch_over([file]).digest()) == 32


# --- what is watched -----------------------------------------------------------------------------

WATCHED = """
from importlib import import_module
from fumehood.worker.sandbox.census import Census
from fumehood.worker.sandbox.codewatch import Sources

sources = Sources()
with Census(sources.note):
    for name in {modules!r}:
        import_module(name)
from marshal import dumps, loads
report(loads(dumps(sources.watched({modules!r}))))
"""


def watched(*modules: str, path: list[Path]) -> dict[str, Any]:
    answer: dict[str, Any] = run(WATCHED.format(modules=list(modules)), path)
    return answer


def make(root: Path, **sources: str) -> Path:
    """Modules below ``root``; two underscores in a name are a folder."""
    for name, source in sources.items():
        file = root / f"{name.replace('__', '/')}.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(source)
    return root


def below(root: Path, found: dict[str, Any]) -> set[str]:
    """All that was found, which has to be below ``root``."""
    return {str(Path(path).relative_to(root)) for path in found}


def test_the_code_of_the_tasks_is_watched_and_not_the_libraries(tmp_path: Path) -> None:
    root = make(
        tmp_path,
        app__tasks="import json, helper, library, msgpack\nfrom app.deep import more\n",
        app__deep__more="",
        helper="",
        venv__site_packages__library="",
    )
    (root / "venv/site_packages").rename(root / "venv/site-packages")
    found = watched("app.tasks", path=[root, root / "venv/site-packages"])
    assert below(root, found) == {"app/tasks.py", "app/deep/more.py", "helper.py"}
    file = root / "helper.py"
    assert found[str(file)] == list(stamp(str(file)) or ())


def test_an_application_that_is_installed_is_watched(tmp_path: Path) -> None:
    root = tmp_path / "site-packages"
    make(root, app__tasks="import library, single\n", library="", single="")
    found = watched("app.tasks", "single", path=[root])
    assert below(root, found) == {"app/tasks.py", "single.py"}


def test_all_folders_of_a_namespace_package_are_watched(tmp_path: Path) -> None:
    one, two = tmp_path / "one/site-packages", tmp_path / "two/site-packages"
    make(one, company__tasks="import company.library\n")
    make(two, company__library="")
    found = watched("company.tasks", path=[one, two])
    assert below(tmp_path, found) == {
        "one/site-packages/company/tasks.py",
        "two/site-packages/company/library.py",
    }


def test_compiled_code_without_source_is_watched(tmp_path: Path) -> None:
    root = make(tmp_path, app__tasks="VALUE = 1\n")
    source = root / "app/tasks.py"
    py_compile.compile(str(source), str(root / "app/tasks.pyc"))
    source.unlink()
    assert below(root, watched("app.tasks", path=[root])) == {"app/tasks.pyc"}


@pytest.mark.parametrize("folder", [".", "site-packages"])
def test_an_archive_is_watched_as_one_file(folder: str, tmp_path: Path) -> None:
    archive = tmp_path / folder / "app.zip"
    archive.parent.mkdir(exist_ok=True)
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("app/__init__.py", "")
        file.writestr("app/tasks.py", "import app.more\n")
        file.writestr("app/more.py", "")
    found = watched("app.tasks", path=[archive])
    assert below(archive.parent, found) == {"app.zip"}
    assert found[str(archive)] == list(stamp(str(archive)) or ())


def test_what_a_module_loads_in_its_own_way_is_watched(tmp_path: Path) -> None:
    source = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("plugin", {!r})
plugin = sys.modules["plugin"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(plugin)
"""
    root = make(tmp_path, plugins__one="", tasks=source.format(str(tmp_path / "plugins/one.py")))
    assert below(root, watched("tasks", path=[root])) == {"plugins/one.py", "tasks.py"}


def test_a_change_during_the_imports_is_seen(tmp_path: Path) -> None:
    source = "import os\nfile = open(__file__, 'a')\nfile.write('#')\nfile.close()\n"
    root = make(tmp_path, tasks=source)
    found = watched("tasks", path=[root])
    watch = CodeWatch({path: tuple(found[path]) for path in found})
    assert looks(watch, SETTLED) == [str(root / "tasks.py")]


def test_our_own_code_is_not_watched(tmp_path: Path) -> None:
    root = make(tmp_path, tasks="import fumehood.common.rebuild, fumehood.common.outcome\n")
    assert below(root, watched("tasks", path=[root])) == {"tasks.py"}


def test_odd_modules_are_passed_over(tmp_path: Path) -> None:
    source = """
import sys, types
class Odd:
    def __getattr__(self, name):
        raise RuntimeError("the code of a module ran")
sys.modules["odd"], sys.modules["none"] = Odd(), None
sys.modules["strange"] = types.ModuleType("strange")
sys.modules["strange"].__file__ = 7
"""
    root = make(tmp_path, tasks=source)
    assert below(root, watched("tasks", path=[root])) == {"tasks.py"}
