"""The manager's own life: starts that fail, zygotes that are lost, stops, and many jobs."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import sandbox_bad_imports
from support import sandbox_tasks as tasks
from support.aio import async_test, until
from support.sandboxes import (
    MODES,
    cgroups_of,
    count_fds,
    descendants,
    is_alive,
    make_sandbox,
    newcomers,
    pids_in,
)

from fumehood.common import Blame, Outcome, Status
from fumehood.common.errors import SandboxUnavailable
from fumehood.worker import Sandbox
from fumehood.worker.sandbox.killer import children_of

BAD = "support.sandbox_bad_imports"
DISABLED = pytest.mark.parametrize("disable", MODES)

_KNOWN: set[int] = set()  # children that this process had before the test


@pytest.fixture(autouse=True)
def _known() -> None:
    _KNOWN.clear()
    _KNOWN.update(children_of(os.getpid()))


def _zygote(sandbox: Sandbox) -> int:
    (pid,) = sandbox.manager.zygote_pids
    return pid


async def _told(sandbox: Sandbox, folder: Path, name: str, how: str) -> asyncio.Task[Outcome]:
    """A job that runs, and ends as ``how`` says when the file ``go`` appears."""
    file = folder / name
    call = tasks.die_when_told.call(how, str(file), str(folder / "go"))
    timeout = 4.0 if how == "time out" else 60.0
    job = asyncio.ensure_future(sandbox.run(call, timeout, job_id=name))
    await until(lambda: file.exists() and file.read_text())
    return job


# --- zygotes that are lost ------------------------------------------------------------------


@DISABLED
@async_test
async def test_jobs_outlive_their_zygote(disable: tuple[str, ...], tmp_path: Path) -> None:
    async with make_sandbox(disable, slots=5) as sandbox:
        hows = {
            "return": Status.SUCCEEDED,
            "raise": Status.FAILED,
            "crash": Status.CRASHED,
            "exit": Status.EXITED,
            "time out": Status.TIMED_OUT,
        }
        jobs = [
            await _told(sandbox, tmp_path, f"job-{how}", how) for how in hows if how != "return"
        ]
        file = tmp_path / "job-return"
        call = tasks.return_when_told.call(str(file), str(tmp_path / "go"))
        jobs.insert(0, asyncio.ensure_future(sandbox.run(call, 60)))
        await until(lambda: file.exists() and file.read_text())
        waiting = asyncio.ensure_future(sandbox.run(tasks.add.call(1, 2), 20))
        old = _zygote(sandbox)
        os.kill(old, signal.SIGKILL)
        await until(lambda: sandbox.manager.zygote_pids not in ([], [old]))
        (tmp_path / "go").touch()
        outcomes = await asyncio.gather(*jobs)
        assert [o.status for o in outcomes] == list(hows.values()), outcomes
        assert outcomes[2].signal == "SIGABRT"
        assert outcomes[3].exit_code == 9
        assert (await waiting).value == 3
        assert not is_alive(old)


@DISABLED
@async_test
async def test_a_zygote_that_is_killed_again_and_again(disable: tuple[str, ...]) -> None:
    async with make_sandbox(disable, slots=2) as sandbox:
        for _ in range(4):
            os.kill(_zygote(sandbox), signal.SIGKILL)
            outcomes = await asyncio.gather(
                *(sandbox.run(tasks.add.call(1, n), 20) for n in range(4))
            )
            assert [outcome.value for outcome in outcomes] == [1, 2, 3, 4]
            await until(lambda: len(sandbox.manager.zygote_pids) == 1)


@DISABLED
@async_test
async def test_a_task_that_kills_its_zygote(disable: tuple[str, ...]) -> None:
    async with make_sandbox(disable) as sandbox:
        outcome = await sandbox.run(tasks.kill_parent.call(), 20)
        assert outcome.value == "done"
        assert (await sandbox.run(tasks.add.call(1, 1), 20)).value == 2


@DISABLED
@async_test
async def test_a_stopped_zygote_is_replaced(disable: tuple[str, ...], tmp_path: Path) -> None:
    async with make_sandbox(disable, slots=3) as sandbox:
        returns = await _told(sandbox, tmp_path, "returns", "raise")
        await until(lambda: len(sandbox.manager._parking))
        old = _zygote(sandbox)
        os.kill(old, signal.SIGSTOP)
        begun = time.monotonic()
        hangs = await sandbox.run(tasks.sleep.call(60), 0.2)
        assert hangs.status is Status.TIMED_OUT  # on time, although nobody reports its end
        assert time.monotonic() - begun < 0.2 + 1.5
        (tmp_path / "go").touch()
        assert (await returns).status is Status.FAILED
        outcomes = await asyncio.gather(*(sandbox.run(tasks.add.call(1, 1), 20) for _ in range(6)))
        assert [outcome.value for outcome in outcomes] == [2] * 6
        await until(lambda: sandbox.manager.zygote_pids not in ([], [old]))
        assert time.monotonic() - begun < 15
        await until(lambda: not is_alive(old))


# --- starts that fail -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("raise", "broken on purpose"),
        ("exit", "SystemExit: 3"),
        ("os-exit", "ended before"),
        ("killed", "ended before"),
    ],
)
@async_test
async def test_modules_that_do_not_import(
    monkeypatch: pytest.MonkeyPatch, how: str, why: str
) -> None:
    monkeypatch.setenv("BAD_IMPORT", how)
    sandbox = make_sandbox((), modules=(BAD,), sandbox_env=("BAD_IMPORT",))
    with pytest.raises(SandboxUnavailable, match=why):
        await sandbox.start()
    await sandbox.stop()
    assert not cgroups_of(os.getpid())
    assert not newcomers(_KNOWN)
    monkeypatch.setenv("BAD_IMPORT", "print")
    await sandbox.start()  # it was mended
    await sandbox.stop()


@async_test
async def test_a_module_that_is_not_there() -> None:
    with pytest.raises(SandboxUnavailable, match="no_such_module"):
        await make_sandbox((), modules=("no_such_module",)).start()


@async_test
async def test_a_module_with_thousands_of_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_IMPORT", "many")
    async with make_sandbox((), modules=(BAD,), sandbox_env=("BAD_IMPORT",)) as sandbox:
        assert len(sandbox.manager.tasks) > 3000
        assert (await sandbox.run(sandbox_bad_imports.fine.call(), 20)).value == "fine"


@async_test
async def test_a_module_that_hangs_at_import(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_IMPORT", "hang")
    sandbox = make_sandbox(
        (), modules=(BAD,), sandbox_env=("BAD_IMPORT",), sandbox_start_timeout=1.0
    )
    with pytest.raises(SandboxUnavailable, match="sandbox_start_timeout, 1 s"):
        await sandbox.start()
    assert not newcomers(_KNOWN)
    assert not _running("sleep\x003600.25")  # what the module had started is gone, too


def _running(command: str) -> list[str]:
    lines: list[str] = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            lines.append(file.read_text())
    return [line for line in lines if command in line]


@async_test
async def test_stopping_a_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BAD_IMPORT", "hang")
    sandbox = make_sandbox((), modules=(BAD,), sandbox_env=("BAD_IMPORT",))
    starting = asyncio.ensure_future(sandbox.start())
    await until(lambda: sandbox.manager.zygote_pids)
    await sandbox.stop()
    with pytest.raises(SandboxUnavailable):
        await starting
    assert not newcomers(_KNOWN)


@async_test
async def test_a_zygote_that_cannot_come_back(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    flag = tmp_path / "ok"
    flag.touch()
    monkeypatch.setenv("BAD_IMPORT", f"until:{flag}")
    from support import sandbox_bad_imports as bad

    async with make_sandbox((), modules=(BAD,), sandbox_env=("BAD_IMPORT",)) as sandbox:
        assert (await sandbox.run(bad.fine.call(), 20)).value == "fine"
        flag.unlink()
        os.kill(_zygote(sandbox), signal.SIGKILL)
        await until(lambda: not len(sandbox.manager._parking))
        outcome = await sandbox.run(bad.fine.call(), 20)
        assert (outcome.status, outcome.blame) == (Status.START_FAILED, Blame.INFRA)
        assert outcome.stage == "zygote"
        assert "not yet" in outcome.reason
        flag.touch()
        async with asyncio.timeout(20):
            while not (outcome := await sandbox.run(bad.fine.call(), 20)).ok:
                assert outcome.blame is Blame.INFRA


@async_test
async def test_a_cgroup_that_somebody_removes(tmp_path: Path) -> None:
    sandbox = make_sandbox(())
    await sandbox.start()
    if not cgroups_of(os.getpid()):
        pytest.skip("no cgroups here")
    assert (await sandbox.run(tasks.add.call(1, 1), 20)).ok
    (tree,) = [path for path in cgroups_of(os.getpid()) if (path / "cgroup.kill").exists()]
    (tree / "cgroup.kill").write_text("1")  # the parked one as well
    await until(lambda: _remove(tree), "the removal")
    outcomes: list[Outcome] = []
    async with asyncio.timeout(20):
        while not outcomes or not outcomes[-1].ok:
            outcomes.append(await sandbox.run(tasks.add.call(1, 1), 20))
            failed = outcomes[-1].status is Status.START_FAILED
            assert outcomes[-1].ok or (failed and outcomes[-1].blame is Blame.INFRA), outcomes[-1]
    assert cgroups_of(os.getpid())
    await sandbox.stop()
    assert not cgroups_of(os.getpid())


def _remove(tree: Path) -> bool:
    try:
        for leaf in [path for path in tree.iterdir() if path.is_dir()]:
            leaf.rmdir()
        tree.rmdir()
    except OSError:
        return not tree.exists()
    return True


@async_test
async def test_no_descriptors_left(monkeypatch: pytest.MonkeyPatch) -> None:
    async with make_sandbox(()) as sandbox:
        assert (await sandbox.run(tasks.add.call(1, 1), 20)).ok
        real = os.pipe2

        def refuse(flags: int) -> tuple[int, int]:
            raise OSError(24, "Too many open files")

        monkeypatch.setattr("fumehood.worker.sandbox.parking._RETRY_MAX", 0.1)
        monkeypatch.setattr("os.pipe2", refuse)
        outcomes = [await sandbox.run(tasks.add.call(1, 1), 20) for _ in range(3)]
        assert outcomes[-1].status is Status.START_FAILED
        assert (outcomes[-1].blame, outcomes[-1].stage) == (Blame.INFRA, "channels")
        monkeypatch.setattr("os.pipe2", real)
        async with asyncio.timeout(20):
            while not (await sandbox.run(tasks.add.call(1, 1), 20)).ok:
                pass


# --- stops ----------------------------------------------------------------------------------


@DISABLED
@async_test
async def test_stop_while_jobs_run_and_wait(disable: tuple[str, ...], tmp_path: Path) -> None:
    sandbox = make_sandbox(disable, slots=2)
    await sandbox.start()
    ids = tmp_path / "ids"
    jobs = [
        asyncio.ensure_future(sandbox.run(tasks.leak_and_hang.call(1, str(ids)), 60)),
        asyncio.ensure_future(sandbox.run(tasks.sleep.call(60), 60)),
    ]
    await until(lambda: ids.exists() and len(pids_in(ids)) == 1)
    jobs += [asyncio.ensure_future(sandbox.run(tasks.add.call(1, 1), 60)) for _ in range(3)]
    await asyncio.sleep(0)
    await asyncio.gather(sandbox.stop(), sandbox.stop(), sandbox.stop())
    outcomes = await asyncio.gather(*jobs)
    assert [o.status for o in outcomes] == [Status.CANCELLED] * 2 + [Status.START_FAILED] * 3
    assert {o.blame for o in outcomes} == {Blame.INFRA}
    assert not newcomers(_KNOWN)
    assert not any(map(is_alive, pids_in(ids)))
    assert not cgroups_of(os.getpid())
    await sandbox.stop()
    outcome = await sandbox.run(tasks.add.call(1, 1), 20)
    assert (outcome.status, outcome.blame) == (Status.START_FAILED, Blame.INFRA)
    await sandbox.start()
    assert (await sandbox.run(tasks.add.call(1, 1), 20)).value == 2
    await sandbox.stop()


@async_test
async def test_stop_without_a_start() -> None:
    await make_sandbox(()).stop()


@async_test
async def test_stop_with_a_stopped_zygote() -> None:
    sandbox = make_sandbox(())
    await sandbox.start()
    os.kill(_zygote(sandbox), signal.SIGSTOP)
    await sandbox.stop()
    assert not newcomers(_KNOWN)
    assert not cgroups_of(os.getpid())


# --- many -----------------------------------------------------------------------------------


@DISABLED
@async_test
async def test_two_hundred_jobs_with_cancels(disable: tuple[str, ...]) -> None:
    chance = random.Random(7)
    most = 0
    async with make_sandbox(disable, slots=4) as sandbox:
        jobs = [
            asyncio.ensure_future(sandbox.run(tasks.sleep.call(chance.random() * 0.02), 20))
            for _ in range(200)
        ]
        while not all(job.done() for job in jobs):
            most = max(most, sandbox.manager.busy)
            if chance.random() < 0.3:
                chance.choice(jobs).cancel()
            await asyncio.sleep(0.002)
        done = [job.result() for job in jobs if not job.cancelled()]
        assert all(outcome.value == "slept" for outcome in done)
        assert 10 < len(done) < 200
        assert most == 4
        assert (await sandbox.run(tasks.add.call(1, 1), 20)).ok


@DISABLED
@async_test
async def test_thousands_of_jobs_leave_nothing(disable: tuple[str, ...]) -> None:
    async with make_sandbox(disable, slots=2) as sandbox:

        async def run(count: int) -> None:
            for _ in range(count):
                assert (await sandbox.run(tasks.add.call(1, 1), 20)).value == 2

        parking = sandbox.manager._parking

        async def settle() -> tuple[int, int, int]:
            await until(lambda: len(parking) == 3 and not parking._forking)
            leaves = max(
                (len(list(tree.glob("seat-*"))) for tree in cgroups_of(os.getpid())), default=0
            )
            below = len(newcomers(_KNOWN))
            return count_fds(), below, leaves

        await asyncio.gather(run(250), run(250))
        before, memory = await settle(), _memory()
        more = 500 if disable else 1250
        await asyncio.gather(run(more), run(more))
        fds, below, leaves = await settle()
        assert below == before[1]
        assert abs(fds - before[0]) <= 4
        assert leaves <= 5
        assert _memory() - memory < 4 << 20
    assert not newcomers(_KNOWN)
    assert not cgroups_of(os.getpid())


def _memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- the manager's own death ----------------------------------------------------------------


@DISABLED
@pytest.mark.parametrize("with_zygote", [False, True], ids=["alone", "with its zygote"])
@async_test
async def test_a_killed_manager(
    disable: tuple[str, ...], with_zygote: bool, tmp_path: Path
) -> None:
    ids = tmp_path / "ids"
    arguments = [",".join(disable), str(ids), "2"]
    manager = subprocess.Popen(  # noqa: ASYNC220 - it takes no time worth speaking of
        [sys.executable, "-m", "support.sandbox_manager_process", *arguments],
        stdout=subprocess.PIPE,
        cwd=Path(__file__).parents[1],
    )
    assert manager.stdout is not None
    zygote = 0
    try:
        zygote = int(manager.stdout.readline())
        await until(lambda: ids.exists() and len(pids_in(ids)) == 2)
        grandchildren = set(pids_in(ids))
        direct = descendants(manager.pid) - grandchildren
        assert len(direct) >= 3
        trees = cgroups_of(manager.pid)
    finally:
        if with_zygote and zygote:
            os.kill(zygote, signal.SIGSTOP)
        manager.kill()
        if with_zygote and zygote:
            os.kill(zygote, signal.SIGKILL)
        manager.stdout.close()
    await until(lambda: not any(map(is_alive, direct)), "their end", timeout=2.0)
    if not with_zygote:
        await until(lambda: not any(map(is_alive, grandchildren)), "their end", timeout=2.0)
    assert bool(trees) is not bool(disable)
    async with make_sandbox(disable):  # sweeps, even before the dead one was waited for
        assert not any(tree.exists() for tree in trees)
    if not disable:
        assert not any(map(is_alive, grandchildren))
    for pid in grandchildren:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    manager.wait(5)
