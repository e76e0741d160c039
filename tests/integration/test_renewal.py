"""Zygotes that are replaced: worn out, old, or of code that is another on disk by now."""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from support.aio import async_test, until
from support.sandboxes import cgroups_of, make_sandbox

from fumehood.common.task import registry
from fumehood.worker import Sandbox

_SOURCE = """
import time
from fumehood.common import task

@task(name={task!r})
def answer(seconds: float = 0.0) -> str:
    time.sleep(seconds)
    return {value!r}
"""


class Code:
    """A task module on disk, to be changed under the zygote that has imported it."""

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._file = folder / f"{name}.py"
        self.write("first")
        self.module: ModuleType = importlib.import_module(name)

    def write(self, value: str) -> None:
        self._file.write_text(_SOURCE.format(task=f"{self.name}.answer", value=value))

    def break_it(self) -> None:
        self._file.write_text("def (")

    def call(self, seconds: float = 0.0) -> Any:
        return self.module.answer.call(seconds)


@pytest.fixture
def code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Code]:
    name = f"renewed_{tmp_path.name.replace('-', '_')}"
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield Code(tmp_path, name)
    sys.modules.pop(name, None)
    registry._tasks.pop(f"{name}.answer", None)


async def _answers(sandbox: Sandbox, code: Code, value: str) -> None:
    """Wait until jobs run the code that answers so."""
    async with asyncio.timeout(30):
        while (outcome := await sandbox.run(code.call(), 20.0)).value != value:
            assert outcome.ok, outcome
            await asyncio.sleep(0.05)


@async_test
async def test_changed_code_takes_over_and_running_jobs_finish(code: Code) -> None:
    async with make_sandbox(modules=(code.name,), slots=2) as sandbox:
        assert (await sandbox.run(code.call(), 20.0)).value == "first"
        running = asyncio.ensure_future(sandbox.run(code.call(4.0), 20.0))
        await until(lambda: sandbox.manager.busy == 1)
        code.write("the second")
        await _answers(sandbox, code, "the second")
        assert (await running).value == "first"
        await until(lambda: len(sandbox.manager.zygote_pids) == 1, "the end of the first zygote")
    assert not cgroups_of(os.getpid())


@async_test
async def test_code_that_does_not_import_leaves_the_old_in_place(
    code: Code, caplog: pytest.LogCaptureFixture
) -> None:
    async with make_sandbox(modules=(code.name,)) as sandbox:
        (before,) = sandbox.manager.zygote_pids
        with caplog.at_level(logging.ERROR):
            code.break_it()
            await until(lambda: "cannot be replaced" in caplog.text, "the failure")
        assert (await sandbox.run(code.call(), 20.0)).value == "first"
        assert before in sandbox.manager.zygote_pids
        code.write("repaired")
        await _answers(sandbox, code, "repaired")


@async_test
async def test_a_zygote_is_replaced_after_so_many_forks(code: Code) -> None:
    sandbox = make_sandbox(modules=(code.name,), sandbox_max_forks=10, sandbox_watch_code=False)
    async with sandbox:
        (before,) = sandbox.manager.zygote_pids
        for _ in range(12):
            assert (await sandbox.run(code.call(), 20.0)).ok
        await until(
            lambda: sandbox.manager.zygote_pids and before not in sandbox.manager.zygote_pids,
            "another zygote",
        )
        assert (await sandbox.run(code.call(), 20.0)).ok


@async_test
async def test_a_zygote_is_replaced_when_it_is_old(code: Code) -> None:
    sandbox = make_sandbox(modules=(code.name,), sandbox_max_age=0.5, sandbox_watch_code=False)
    async with sandbox:
        (before,) = sandbox.manager.zygote_pids
        await until(
            lambda: sandbox.manager.zygote_pids and before not in sandbox.manager.zygote_pids,
            "another zygote",
        )
        assert (await sandbox.run(code.call(), 20.0)).ok
