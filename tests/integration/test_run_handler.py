"""``run_handler`` from synchronous code, as ``seed.md`` shows it and in worse circumstances."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import handler_tasks, sandbox_bad_imports
from support import sandbox_tasks as tasks
from support.sandboxes import WAYS, descendants, is_alive, make_settings, newcomers, wait_for

from fumehood.common import JobCrashed, JobExited, JobFailed, JobTimedOut, task
from fumehood.common.errors import ConfigurationError, JobStartFailed, PayloadTooLarge, UnknownTask
from fumehood.common.settings import Settings, load_settings
from fumehood.worker import handler, run_handler
from fumehood.worker.sandbox.killer import children_of


@pytest.fixture(scope="module", autouse=True)
def house() -> Iterator[None]:
    known = children_of(os.getpid())
    yield
    loop = handler._house._loop
    handler._house._close(os.getpid())
    assert loop is not None
    loop.call_soon_threadsafe(loop.stop)
    wait_for(lambda: not loop.is_running())
    loop.close()
    handler._house._loop = None
    assert not newcomers(known)


@pytest.fixture(params=WAYS)
def settings(request: pytest.FixtureRequest) -> Settings:
    disable, ctx = request.param
    return make_settings(disable, sandbox_ctx=ctx)


def test_the_lines_of_the_guide() -> None:
    old_heavy = handler_tasks.double
    data: Any = 21
    settings = load_settings()
    if settings.sandbox_enabled:
        result = run_handler(old_heavy.task_id, [data], {}, settings.sandbox_default_timeout)
    else:
        result = old_heavy(data)
    assert result == 42


def test_values_and_errors(settings: Settings) -> None:
    def run(call: Any, timeout: float = 20.0, fallback: bool = False) -> Any:
        name, args, kwargs = call.task.task_id, list(call.args), dict(call.kwargs)
        return run_handler(name, args, kwargs, timeout, fallback, settings=settings)

    assert run(tasks.add.call(1, b=2)) == 3
    assert run(tasks.add_async.call(1)) == 11
    with pytest.raises(JobTimedOut) as timed_out:
        run(tasks.sleep.call(60), timeout=0.1)
    assert isinstance(timed_out.value, TimeoutError)
    for fallback in (False, True):
        with pytest.raises(JobFailed, match="deep down"):
            run(tasks.raise_deep.call(1), fallback=fallback)
        with pytest.raises(JobCrashed):
            run(tasks.crash.call("SIGSEGV"), fallback=fallback)
        with pytest.raises(JobExited):
            run(tasks.exit_now.call(0), fallback=fallback)


def test_a_timeout_falls_back_to_this_process(caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        assert run_handler(handler_tasks.nap.task_id, [0.3], {}, 0.1) == "rested"
    assert run_handler(handler_tasks.where.task_id, [os.getpid()], {}, 20.0) is True
    assert "runs inline" in caplog.text


def test_no_sandbox_falls_back_to_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_IMPORT", "raise")
    settings = make_settings((), sandbox_env=("BAD_IMPORT",))
    name = sandbox_bad_imports.fine.task_id
    with pytest.raises(JobStartFailed, match="broken on purpose"):
        run_handler(name, [], {}, 20.0, False, settings=settings)
    assert run_handler(name, [], {}, 20.0, settings=settings) == "fine"
    monkeypatch.delenv("BAD_IMPORT")
    assert run_handler(name, [], {}, 20.0, False, settings=settings) == "fine"


def test_what_cannot_be_run_at_all() -> None:
    with pytest.raises(UnknownTask):
        run_handler("no.such.task", [], {}, 1.0)
    with pytest.raises(PayloadTooLarge):
        run_handler(tasks.take.task_id, [bytes(9 << 20)], {}, 1.0)
    with pytest.raises(ValueError, match="timeout"):
        run_handler(tasks.add.task_id, [1], {}, 0)

    @task
    def nested() -> None: ...

    with pytest.raises(ConfigurationError, match="top level of a module"):
        run_handler(nested.task_id, [], {}, 1.0)


def test_eight_threads() -> None:
    with ThreadPoolExecutor(8) as threads:
        calls = [
            threads.submit(run_handler, tasks.add.task_id, [n], {"b": n}, 20.0, False)
            for n in range(64)
        ]
        assert [call.result() for call in calls] == [2 * n for n in range(64)]


def _script(what: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "support.handler_tasks", what],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )


def test_nothing_is_left_at_exit() -> None:
    with _script("once") as script:
        out, err = script.communicate(timeout=60)
    assert (out, err, script.returncode) == (b"42\n", b"", 0)
    wait_for(lambda: not _zygotes_of(script.pid), "the end of its zygote", 2.0)


def test_in_a_fork() -> None:
    with _script("fork") as script:
        out, err = script.communicate(timeout=60)
    assert (out.split(), script.returncode) == ([b"2", b"4", b"6"], 0), err
    assert b"Traceback" not in err


def test_a_fork_does_not_keep_the_parents_sandboxes() -> None:
    with _script("hang") as script:
        assert script.stdout is not None
        assert script.stderr is not None
        script.stdout.readline()
        script.stdout.readline()
        wait_for(lambda: len(descendants(script.pid)) >= 3)
        below = descendants(script.pid)
        script.kill()
        wait_for(lambda: sum(map(is_alive, below)) <= 1, "the end of its sandboxes", 3.0)
        for pid in below:
            if is_alive(pid):
                os.kill(pid, signal.SIGKILL)


def _zygotes_of(pid: int) -> set[int]:
    return descendants(pid)


def test_an_interrupt_ends_the_job(tmp_path: Path) -> None:
    file = tmp_path / "pid"

    main = threading.main_thread().ident or 0

    def interrupt() -> None:
        wait_for(lambda: file.exists() and file.read_text())
        signal.pthread_kill(main, signal.SIGINT)

    other = threading.Thread(target=interrupt)
    # A run that was started in the background may have been told to ignore interrupts.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        other.start()
        with pytest.raises(KeyboardInterrupt):
            run_handler(tasks.hang_when_told.task_id, [str(file)], {}, 60.0, False)
    finally:
        signal.signal(signal.SIGINT, before)
    other.join()
    wait_for(lambda: not is_alive(int(file.read_text())), "its end")
