"""Parts of the sandbox by themselves: output, killing, environment, cgroups, exit statuses."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgpack
import pytest
from support.aio import async_test, until
from support.sandboxes import is_alive, wait_for

from fumehood.common.errors import DecodeError
from fumehood.worker.sandbox import cgroup, channel, environment, kernel, killer, protocol
from fumehood.worker.sandbox.capture import Capture
from fumehood.worker.sandbox.poller import Poller


def _fork(function: Callable[[], object]) -> int:
    """A child that does this and exits with 0."""
    pid = os.fork()
    if pid == 0:
        try:
            function()
        finally:
            os._exit(0)
    return pid


# --- capture --------------------------------------------------------------------------------


def _pipe() -> tuple[Capture, int]:
    read, write = os.pipe()
    os.set_blocking(read, False)
    return Capture(read), write


def test_capture_keeps_up_to_its_bound() -> None:
    capture, write = _pipe()
    capture.keep = 5
    os.write(write, b"abc")
    assert capture.read()
    assert capture.read()  # empty is not the end
    os.write(write, b"defgh")
    assert capture.drain() == b"abcde"
    assert capture.dropped == 3
    os.write(write, b"ijk")
    os.close(write)
    assert capture.read()
    assert not capture.read()
    assert (capture.drain(), capture.dropped) == (b"abcde", 6)
    os.close(capture.fd)


def test_capture_does_not_wait_for_a_writer_that_goes_on() -> None:
    capture, write = _pipe()

    def flood() -> None:
        while True:
            os.write(write, bytes(1 << 16))

    pid = _fork(flood)
    assert capture.drain() == b""
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(write)
    os.close(capture.fd)


# --- environment ----------------------------------------------------------------------------


def test_environment() -> None:
    environ = {
        "PATH": "/bin",
        "LC_ALL": "C",
        "PYTHONPATH": "x",
        "OMP_NUM_THREADS": "8",
        "FUMEHOOD_BROKER_URL": "secret",
        "SECRET": "secret",
        "APP_A": "1",
        "APPLE": "2",
    }
    kept = environment.allowed(environ, ["APP_*", "FUMEHOOD_*", "*"])
    assert not [name for name in kept if name.startswith("FUMEHOOD")]
    kept = environment.allowed(environ, ["APP_*"])
    assert kept.items() >= {"PATH": "/bin", "LC_ALL": "C", "PYTHONPATH": "x", "APP_A": "1"}.items()
    assert (kept["OMP_NUM_THREADS"], kept["MKL_NUM_THREADS"]) == ("8", "1")
    assert "APPLE" not in kept
    assert "secret" not in kept.values()


# --- killer ---------------------------------------------------------------------------------


def test_a_tree_is_killed(tmp_path: Path) -> None:
    ids = tmp_path / "ids"

    def grow(depth: int) -> None:
        with ids.open("a") as file:
            file.write(f"{os.getpid()}\n")
        if depth:
            for _ in range(2):
                _fork(lambda: grow(depth - 1))
        time.sleep(60)

    root = _fork(lambda: grow(3))
    wait_for(lambda: ids.exists() and len(ids.read_text().split()) == 15)
    assert len(killer.descendants_of(root)) == 14
    assert killer.kill_tree(root) == 14
    os.waitpid(root, 0)
    pids = [int(pid) for pid in ids.read_text().split()]
    wait_for(lambda: not any(map(is_alive, pids)))
    assert killer.kill_tree(root) == 0
    assert killer.descendants_of(root) == set()


def test_zombies_are_no_processes() -> None:
    pid = _fork(lambda: None)
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert pid in killer.children_of(os.getpid())
    assert not killer.is_alive(pid)
    assert killer.is_alive(os.getpid())
    os.waitpid(pid, 0)
    assert not killer.is_alive(pid)


def test_strays_are_counted_when_they_live() -> None:
    known = killer.children_of(os.getpid())
    one, two = _fork(lambda: time.sleep(60)), _fork(lambda: None)
    os.waitid(os.P_PID, two, os.WEXITED | os.WNOWAIT)
    assert killer.kill_strays(known) == 1
    assert killer.children_of(os.getpid()) == known
    for pid in (one, two):
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, 0)


# --- exit status ----------------------------------------------------------------------------


ENDS = [
    pytest.param(lambda: os._exit(0), 0, id="exit 0"),
    pytest.param(lambda: os._exit(9), 9 << 8, id="exit 9"),
    pytest.param(lambda: os.kill(os.getpid(), signal.SIGKILL), 9, id="SIGKILL"),
    pytest.param(lambda: os.kill(os.getpid(), signal.SIGTERM), 15, id="SIGTERM"),
]


@pytest.mark.parametrize(("end", "status"), ENDS)
def test_the_status_of_a_child(end: Callable[[], object], status: int) -> None:
    pid = _fork(end)
    pidfd = os.pidfd_open(pid)
    wait_for(lambda: not is_alive(pid))
    assert kernel.exit_status(pidfd) == status
    os.close(pidfd)


@pytest.mark.parametrize(("end", "status"), ENDS)
def test_the_status_of_another_ones_child(end: Callable[[], object], status: int) -> None:
    told, tell = os.pipe()
    go, let_go = os.pipe()

    def parent() -> None:
        os.close(let_go)

        def child() -> None:
            os.read(go, 1)
            end()

        pid = _fork(child)
        os.write(tell, str(pid).encode())
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        time.sleep(60)

    middle = _fork(parent)
    pid = int(os.read(told, 20))
    pidfd = os.pidfd_open(pid)
    assert kernel.exit_status(pidfd) is None
    os.close(let_go)
    wait_for(lambda: not is_alive(pid))
    assert kernel.exit_status(pidfd) == status  # a zombie that its parent does not reap
    os.kill(middle, signal.SIGKILL)
    os.waitpid(middle, 0)
    for fd in (told, tell, go, pidfd):
        os.close(fd)


# --- cgroups --------------------------------------------------------------------------------


@pytest.fixture
def tree() -> cgroup.Tree:
    try:
        return cgroup.make_tree()
    except OSError as exc:
        pytest.skip(f"no cgroups here: {exc}")


def test_a_leaf(tree: cgroup.Tree) -> None:
    leaf = tree.leaf()
    assert not leaf.populated()
    pid = _fork(lambda: time.sleep(60))
    os.write(leaf.procs_fd, str(pid).encode())
    assert leaf.populated()
    assert leaf.pids() == [pid]
    (leaf.path / "inner").mkdir()  # as a job could
    leaf.kill()
    os.waitpid(pid, 0)
    wait_for(lambda: not leaf.populated())
    leaf.close()
    assert not leaf.path.exists()
    assert tree.end()
    tree.close()
    assert not tree.path.exists()


def test_a_leaf_that_somebody_removed(tree: cgroup.Tree) -> None:
    leaf = tree.leaf()
    leaf.path.rmdir()
    assert not leaf.populated()
    assert leaf.pids() == []
    leaf.kill()
    leaf.close()
    tree.path.rmdir()
    with pytest.raises(FileNotFoundError):
        tree.leaf()
    assert tree.end()
    tree.close()


def test_stale_trees_are_swept(tree: cgroup.Tree) -> None:
    parent = tree.path.parent
    dead = _fork(lambda: None)
    os.waitpid(dead, 0)
    stale = parent / f"fumehood-{dead}-1-abc"
    other = parent / "fumehood-what-is-this"
    for path in (stale, stale / "seat-1", stale / "seat-1" / "inner", other):
        path.mkdir()
    pid = _fork(lambda: time.sleep(60))
    (stale / "seat-1" / "cgroup.procs").write_text(str(pid))
    again = cgroup.make_tree()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    assert not stale.exists()
    assert not other.exists()
    assert tree.path.exists()  # its owner lives
    again.close()
    tree.close()


def test_the_tree_of_a_zombie_is_stale(tree: cgroup.Tree) -> None:
    zombie = _fork(lambda: time.sleep(60))
    started = cgroup._start_time(zombie)
    stale = tree.path.parent / f"fumehood-{zombie}-{started}-abc"
    stale.mkdir()
    cgroup.make_tree().close()
    assert stale.exists()
    os.kill(zombie, signal.SIGKILL)
    wait_for(lambda: not is_alive(zombie))
    cgroup.make_tree().close()
    assert not stale.exists()
    os.waitpid(zombie, 0)
    tree.close()


# --- poller ---------------------------------------------------------------------------------


@async_test
async def test_a_descriptor_that_a_fork_keeps_open() -> None:
    poller = Poller(asyncio.get_running_loop())
    rounds = 0
    kept, write = os.pipe()
    other, write_other = os.pipe()
    seen: list[bytes] = []
    poller.add(kept, lambda: None)
    poller.add(other, lambda: seen.append(os.read(other, 1)))
    child = _fork(lambda: time.sleep(60))
    poller.forget(kept)
    os.close(kept)
    os.close(write)
    on_ready = poller._on_ready

    def counting() -> None:
        nonlocal rounds
        rounds += 1
        on_ready()

    poller._loop.add_reader(poller._epoll.fileno(), counting)
    os.kill(child, signal.SIGKILL)  # its end of the pipe hangs up first
    os.write(write_other, b"x")
    await until(lambda: seen == [b"x"])
    os.waitpid(child, 0)  # noqa: ASYNC222 - it is dead
    await asyncio.sleep(0.05)
    assert rounds < 20
    poller.close()
    for fd in (other, write_other):
        os.close(fd)


# --- frames ---------------------------------------------------------------------------------


def test_readers_of_frames() -> None:
    body = memoryview(msgpack.packb(["cgroup", 5, "why"]))
    assert channel.read_setup_fault(body) == ("cgroup", 5, "why")
    error = channel.read_result(protocol.ERROR, memoryview(msgpack.packb(["a", "b", "c"])), [], 9)
    assert error.error is not None
    assert error.error.message == "b"
    value = channel.read_result(protocol.VALUE, memoryview(b"12345"), [], 5)
    assert value.value == b"12345"
    large = channel.read_result(protocol.VALUE, memoryview(b"12345"), [], 4)
    assert (large.value, large.too_large) == (None, 5)


@pytest.mark.parametrize("body", [b"", b"\xc1", b"\x90", b"\x93\x01\x02\x03", b"\x93", bytes(99)])
@pytest.mark.parametrize("kind", [protocol.ERROR, protocol.REFUSED, protocol.TOO_LARGE])
def test_frames_that_are_none(kind: bytes, body: bytes) -> None:
    with pytest.raises((ValueError, DecodeError)):
        channel.read_result(kind, memoryview(body), [], 9)
    with pytest.raises((ValueError, DecodeError)):
        channel.read_setup_fault(memoryview(body))


def test_reports_are_rationed() -> None:
    reports = channel.Reports()
    body = memoryview(msgpack.packb([0.5, "x", None]))
    assert sum(reports.read(body, 100.0) is not None for _ in range(1000)) == 20
    assert sum(reports.read(body, 101.0) is not None for _ in range(1000)) == 20
    assert reports.read(memoryview(msgpack.packb([7.0, "", 1])), 102.0) == (1.0, "", 1)
    nan = reports.read(memoryview(msgpack.packb([float("nan"), "", 1])), 102.0)
    assert nan is not None
    assert 0.0 <= nan[0] <= 1.0


# --- as an ordinary user --------------------------------------------------------------------

_ORDINARY = """
import asyncio, sys
from support import sandbox_tasks as tasks
from support.sandboxes import make_sandbox
async def main():
    async with make_sandbox(("cgroup",), slots=2, sandbox_ctx=sys.argv[1]) as box:
        say = lambda outcome: print(outcome.status, outcome.leaked_processes)
        say(await box.run(tasks.add.call(1, 2), 20))
        say(await box.run(tasks.add_async.call(1, 2), 20))
        say(await box.run(tasks.raise_deep.call(2), 20))
        say(await box.run(tasks.crash.call("SIGSEGV"), 20))
        say(await box.run(tasks.exit_now.call(4), 20))
        say(await box.run(tasks.hang.call("busy"), 0.1))
        say(await box.run(tasks.leak.call(2, sys.argv[2]), 20))
        say(await box.run(tasks.give.call(1 << 20), 20))
asyncio.run(main())
"""


# The sources may lie where only root can read: reading is all that is left of root's rights.
_AS_NOBODY = [
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
]


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="root and setpriv are needed"
)
@pytest.mark.parametrize("ctx", ["fork", "spawn"])
def test_as_an_ordinary_user(ctx: str) -> None:
    tests = str(Path(__file__).parents[2])
    ids = Path(f"/dev/shm/fumehood-ids-{os.getpid()}-{ctx}")
    try:
        done = subprocess.run(
            [*_AS_NOBODY, sys.executable, "-c", _ORDINARY, ctx, str(ids)],
            env={**os.environ, "PYTHONPATH": tests, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        said = done.stdout.splitlines()
        # One that made the two may still be about to end, and is counted then.
        assert said.pop(6) in ("succeeded 2", "succeeded 3"), done.stderr
        assert said == [
            "succeeded 0",
            "succeeded 0",
            "failed 0",
            "crashed 0",
            "exited 0",
            "timed_out 0",
            "succeeded 0",
        ], done.stderr
        assert not any(is_alive(int(pid)) for pid in ids.read_text().split())
    finally:
        ids.unlink(missing_ok=True)
