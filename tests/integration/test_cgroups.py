"""Cgroups as limits: every driver that this host has, with real processes that break them."""

from __future__ import annotations

import contextlib
import mmap
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

import pytest
from support.sandboxes import count_fds, is_alive, wait_for

from fumehood.worker.sandbox import cgroup, cgroup_host, cgroup_probe, memory_watch
from fumehood.worker.sandbox.cgroup_host import Place
from fumehood.worker.sandbox.cgroup_leaf import RESIDUE_MAX
from fumehood.worker.sandbox.cgroup_v2 import NODE

MIB = 1 << 20
LIMIT = 48 * MIB
SHM = Path("/dev/shm")


@pytest.fixture(params=["", "cgroup.kill", "cgroup-v2"], ids=["best", "kill-loop", "v1"])
def tree(request: pytest.FixtureRequest) -> Iterator[cgroup.Tree]:
    """A tree with limits, made in each way that this host has; all of it is gone afterwards."""
    try:
        made = cgroup.make_tree(frozenset({request.param}))
    except cgroup.NoCgroups as exc:
        pytest.skip(f"not on this host: {exc.missing['kill']}")
    yield made
    wait_for(made.end)
    made.close()
    assert not left_of(made)


@pytest.fixture
def leaf(tree: cgroup.Tree) -> Iterator[cgroup.Leaf]:
    """A leaf that counts from here on."""
    with leaf_of(tree) as made:
        yield made


@contextlib.contextmanager
def leaf_of(tree: cgroup.Tree) -> Iterator[cgroup.Leaf]:
    made = tree.leaf()
    made.begin()
    try:
        yield made
    finally:
        made.kill()
        wait_for(lambda: not made.populated())
        made.close()


def need(tree: cgroup.Tree, purpose: str) -> None:
    if purpose not in tree.holds:
        pytest.skip(tree.missing[purpose])


def left_of(tree: cgroup.Tree) -> list[Path]:
    return list(Path("/sys/fs/cgroup").rglob(tree.path.name))


def fork_into(leaf: cgroup.Leaf, function: Callable[[], object]) -> int:
    """A child that joins as sandboxes do, does this, and exits with 0."""
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            for fd in leaf.procs_fds:
                os.write(fd, b"0")
            function()
            os._exit(0)
        os._exit(1)
    return pid


def exit_code(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def run_in(leaf: cgroup.Leaf, function: Callable[[], object]) -> int:
    return exit_code(fork_into(leaf, function))


def idle() -> NoReturn:
    while True:
        time.sleep(60)


def touch(amount: int) -> bytes:
    return b"x" * amount


def burn(seconds: float) -> None:
    end = time.process_time() + seconds
    while time.process_time() < end:
        pass


# --- what a tree holds ----------------------------------------------------------------------


def test_what_is_held_and_what_is_missing(tree: cgroup.Tree) -> None:
    everything = {"kill", "memory", "processes", "cpu", "populated"}
    assert tree.holds | tree.missing.keys() == everything
    assert not tree.holds & tree.missing.keys()
    assert all(tree.missing.values())
    assert {"kill", "cpu"} <= tree.holds
    assert ("populated" in tree.holds) == (tree.driver != "v1")
    with leaf_of(tree) as leaf:
        assert (leaf.memory is not None) == ("memory" in tree.holds)
        assert (leaf.processes is not None) == ("processes" in tree.holds)
        assert (leaf.events_fd >= 0) == ("populated" in tree.holds)
        assert all(Path(f"/proc/self/fd/{fd}").is_file() for fd in leaf.procs_fds)
        assert leaf.kills_surely


@pytest.mark.parametrize(
    ("masks", "missing", "code"),
    [
        ({"cgroup-memory"}, {"memory"}, 1),
        ({"cgroup-pids"}, {"processes"}, -signal.SIGKILL),
        ({"cgroup-memory", "cgroup-pids"}, {"memory", "processes"}, 0),
    ],
)
def test_what_is_masked_is_missing(masks: set[str], missing: set[str], code: int) -> None:
    whole = _tree_or_skip(frozenset())
    whole.close()
    tree = cgroup.make_tree(frozenset(masks))
    assert tree.missing.keys() == whole.missing.keys() | missing
    with leaf_of(tree) as leaf:
        leaf.limit(4 * MIB, 1)  # what is not held is passed over
        assert run_in(leaf, lambda: os.fork() and touch(16 * MIB)) == code
        assert leaf.seen().process_limit_hits == (0 if "processes" in missing else 1)
        if "memory" in missing:
            assert leaf.seen().peak_memory is None
            assert leaf.residue() == 0
    tree.close()
    assert not left_of(tree)


def test_all_is_masked() -> None:
    with pytest.raises(cgroup.NoCgroups, match="disabled") as raised:
        cgroup.make_tree(frozenset({"cgroup"}))
    assert raised.value.missing.keys() == {"kill", "memory", "processes", "cpu", "populated"}
    with pytest.raises(cgroup.NoCgroups):
        cgroup.make_tree(frozenset({"cgroup-v1", "cgroup-v2"}))


def _tree_or_skip(disabled: frozenset[str]) -> cgroup.Tree:
    try:
        return cgroup.make_tree(disabled)
    except cgroup.NoCgroups as exc:
        pytest.skip(f"not on this host: {exc.missing['kill']}")


# --- what is tried out ----------------------------------------------------------------------


def test_a_leaf_that_works_has_no_faults(tree: cgroup.Tree) -> None:
    with leaf_of(tree) as leaf:
        assert cgroup_probe.faults(leaf, tree.holds) == {}


@pytest.mark.parametrize("purpose", ["kill", "memory", "processes"])
def test_a_cgroup_that_does_not_hold_its_processes_is_a_fault(
    tree: cgroup.Tree, purpose: str
) -> None:
    need(tree, purpose)
    with leaf_of(tree) as leaf, leaf_of(tree) as other:
        at = {leaf.purpose_of(number): number for number in range(len(leaf.procs_fds))}
        if purpose not in at:
            pytest.skip("one cgroup does it all")
        own, leaf.procs_fds[at[purpose]] = leaf.procs_fds[at[purpose]], other.procs_fds[at[purpose]]
        found = cgroup_probe.faults(leaf, tree.holds)
        leaf.procs_fds[at[purpose]] = own
        assert purpose in found
        if purpose != "kill":
            assert found.keys() == {purpose}


def test_a_cgroup_that_cannot_be_joined_is_a_fault(tree: cgroup.Tree) -> None:
    with leaf_of(tree) as leaf:
        read_only = os.open(leaf.path / "cgroup.procs", os.O_RDONLY)
        own, leaf.procs_fds[0] = leaf.procs_fds[0], read_only
        assert "cannot join" in cgroup_probe.faults(leaf, tree.holds)["kill"]
        leaf.procs_fds[0] = own
        os.close(read_only)


def test_what_does_not_work_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = _tree_or_skip(frozenset())
    need(whole, "memory")
    monkeypatch.setattr(cgroup, "_tried", {})

    def no_memory(_leaf: cgroup.Leaf, purposes: frozenset[str]) -> dict[str, str]:
        return {"memory": "it ignores limits"} if "memory" in purposes else {}

    monkeypatch.setattr(cgroup_probe, "faults", no_memory)
    tree = cgroup.make_tree(frozenset())
    assert whole.holds - tree.holds == {"memory"}
    assert tree.missing["memory"] == "it ignores limits"
    tree.close()
    monkeypatch.setattr(cgroup, "_tried", {})
    monkeypatch.setattr(cgroup_probe, "faults", lambda _leaf, _purposes: {"kill": "it does not"})
    with pytest.raises(cgroup.NoCgroups, match="it does not"):
        cgroup.make_tree(frozenset())
    whole.close()
    trees = [path for where in whole.where for path in where.glob(f"fumehood-{os.getpid()}-*")]
    assert not trees


# --- killing --------------------------------------------------------------------------------


def _spread() -> NoReturn:
    """Daemons that left their parent, their session and their group."""
    for _ in range(4):
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                idle()
            os._exit(0)
    idle()


def test_a_kill_reaches_all_and_nobody_else(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    with leaf_of(tree) as other:
        innocent = fork_into(other, idle)
        pid = fork_into(leaf, _spread)
        wait_for(lambda: len(leaf.pids()) >= 5)
        inner = leaf.path / "inner"
        inner.mkdir()  # as a job could
        inside = fork_into(leaf, idle)
        (inner / "cgroup.procs").write_text(str(inside))
        wait_for(lambda: inside in leaf.pids())
        pids = leaf.pids()
        leaf.kill()
        assert exit_code(pid) == exit_code(inside) == -signal.SIGKILL
        wait_for(lambda: not leaf.populated())
        assert not any(map(is_alive, pids))
        assert is_alive(innocent)
        other.kill()
        assert exit_code(innocent) == -signal.SIGKILL


def test_a_kill_wins_against_a_fork_storm(leaf: cgroup.Leaf) -> None:
    def storm() -> None:
        while True:
            with contextlib.suppress(OSError):
                os.fork()

    leaf.limit(None, 64 if leaf.processes else None)
    pid = fork_into(leaf, storm)
    wait_for(lambda: len(leaf.pids()) > 30)
    leaf.kill()
    assert exit_code(pid) == -signal.SIGKILL
    wait_for(lambda: not leaf.populated(), timeout=5)
    leaf.begin()
    assert run_in(leaf, lambda: os.waitpid(os.fork() or os._exit(0), 0)) == 0  # the door is open


def test_a_tree_ends_with_all_its_leaves(tree: cgroup.Tree) -> None:
    leaves = [tree.leaf(), tree.leaf()]
    pids = [fork_into(leaf, idle) for leaf in leaves]
    wait_for(lambda: all(leaf.populated() for leaf in leaves))
    assert not tree.end()
    assert [exit_code(pid) for pid in pids] == [-signal.SIGKILL] * 2
    wait_for(tree.end)
    for leaf in leaves:
        leaf.close()


def test_a_leaf_can_be_used_again(leaf: cgroup.Leaf) -> None:
    for _ in range(3):
        leaf.limit(LIMIT, 8)
        leaf.begin()
        assert run_in(leaf, lambda: os.waitpid(os.fork() or os._exit(0), 0)) == 0
        pid = fork_into(leaf, idle)
        wait_for(leaf.pids)
        leaf.kill()
        assert exit_code(pid) == -signal.SIGKILL
        wait_for(lambda: not leaf.populated())
        assert leaf.seen().oom_kills == 0


def test_an_end_is_an_event(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "populated")
    pid = fork_into(leaf, idle)
    wait_for(leaf.populated)
    poll = select.poll()
    poll.register(leaf.events_fd, select.POLLPRI)
    assert poll.poll(0) == []
    os.kill(pid, signal.SIGKILL)
    assert [fd for fd, _ in poll.poll(20_000)] == [leaf.events_fd]
    assert not leaf.populated()
    assert exit_code(pid) == -signal.SIGKILL


def test_a_leaf_gives_all_its_descriptors_back(tree: cgroup.Tree) -> None:
    before = count_fds()
    with leaf_of(tree) as leaf:
        leaf.limit(LIMIT, 8)
        assert before + 4 <= count_fds() <= before + 14
    assert count_fds() == before
    below = tree.path / "seat-2"
    below.mkdir()  # the next one cannot be made
    with pytest.raises(FileExistsError):
        tree.leaf()
    assert count_fds() == before
    assert list(Path("/sys/fs/cgroup").rglob(f"{tree.path.name}/seat-2")) == [below]
    below.rmdir()


def test_a_leaf_of_which_everything_was_removed(tree: cgroup.Tree) -> None:
    leaf = tree.leaf()
    leaf.limit(LIMIT, 8)
    for path in Path("/sys/fs/cgroup").rglob(f"{tree.path.name}/{leaf.path.name}"):
        path.rmdir()
    leaf.begin()
    assert (leaf.populated(), leaf.pids(), leaf.residue()) == (False, [], 0)
    assert (leaf.seen().oom_kills, leaf.seen().process_limit_hits) == (0, 0)
    assert not leaf.oom_killed()
    leaf.kill()
    leaf.close()


# --- memory ---------------------------------------------------------------------------------


def _shared_map() -> None:
    held = mmap.mmap(-1, 4 * LIMIT)
    for at in range(0, 4 * LIMIT, mmap.PAGESIZE):
        held[at] = 1


def _memfd() -> None:
    fd = os.memfd_create("bomb")
    while os.write(fd, bytes(MIB)):
        pass


def _shm_file() -> None:
    with (SHM / f"fumehood-bomb-{os.getppid()}").open("wb", buffering=0) as file:
        while file.write(bytes(MIB)):
            pass


def _in_grandchild() -> None:
    child = os.fork()
    if child == 0:
        touch(4 * LIMIT)
        os._exit(0)
    os.waitpid(child, 0)


BOMBS: dict[str, Callable[[], object]] = {
    "heap": lambda: touch(4 * LIMIT),
    "shared map": _shared_map,
    "memfd": _memfd,
    "file in /dev/shm": _shm_file,
    "grandchild": _in_grandchild,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_is_killed_and_counted(tree: cgroup.Tree, leaf: cgroup.Leaf, bomb: str) -> None:
    need(tree, "memory")
    with leaf_of(tree) as other:
        other.limit(LIMIT, None)
        innocent = fork_into(other, idle)
        leaf.limit(LIMIT, None)
        leaf.begin()
        try:
            code = run_in(leaf, BOMBS[bomb])
            seen = leaf.seen()
        finally:
            (SHM / f"fumehood-bomb-{os.getpid()}").unlink(missing_ok=True)
        grouped = tree.driver == "v2"  # where one dies, all die
        assert code == (0 if bomb == "grandchild" and not grouped else -signal.SIGKILL)
        assert seen.oom_kills >= 1
        assert leaf.oom_killed()
        assert seen.at_memory_limit
        if seen.peak_memory is not None:
            assert LIMIT - 2 * MIB <= seen.peak_memory <= LIMIT
        assert is_alive(innocent)
        assert (other.seen().oom_kills, other.oom_killed()) == (0, False)
        other.kill()
        assert exit_code(innocent) == -signal.SIGKILL


def test_memory_that_runs_out_is_an_event(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "memory")
    if leaf.oom_fd < 0:
        pytest.skip("this kernel has no event for it")
    poll = select.poll()
    poll.register(leaf.oom_fd, leaf.oom_events)
    leaf.limit(LIMIT, None)
    leaf.begin()
    leaf.oom_killed()
    assert poll.poll(0) == []
    bystander = fork_into(leaf, idle)  # of the same job
    bomb = fork_into(leaf, lambda: touch(4 * LIMIT))
    assert [fd for fd, _ in poll.poll(20_000)] == [leaf.oom_fd]
    wait_for(leaf.oom_killed)
    assert poll.poll(0) == []
    if tree.driver != "v2":
        assert is_alive(bystander)
        leaf.kill()
    assert exit_code(bomb) == exit_code(bystander) == -signal.SIGKILL


def test_every_job_has_its_own_peak_and_counts(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "memory")
    leaf.limit(LIMIT, None)
    leaf.begin()
    assert run_in(leaf, lambda: touch(4 * LIMIT)) == -signal.SIGKILL
    assert leaf.seen().oom_kills >= 1
    leaf.begin()
    assert leaf.seen().oom_kills == 0
    assert not leaf.oom_killed()
    assert run_in(leaf, lambda: touch(8 * MIB)) == 0
    seen = leaf.seen()
    assert (seen.oom_kills, seen.at_memory_limit) == (0, False)
    if seen.peak_memory is None:
        pytest.skip("this kernel counts one peak in the life of a cgroup")
    assert 8 * MIB <= seen.peak_memory <= 20 * MIB


def test_limits_go_up_and_down_and_away(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "memory")
    for limit, code in (
        (LIMIT, -signal.SIGKILL),
        (4 * LIMIT, 0),
        (LIMIT, -signal.SIGKILL),
        (None, 0),
        (LIMIT // 2, -signal.SIGKILL),
    ):
        leaf.limit(limit, None)
        leaf.begin()
        assert run_in(leaf, lambda: touch(2 * LIMIT)) == code
        assert bool(leaf.seen().oom_kills) == (code != 0)


def test_a_limit_below_what_is_in_use(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "memory")
    told, tell = os.pipe()

    def hold() -> NoReturn:
        held = b"x" * LIMIT
        os.write(tell, b"%d" % len(held))
        idle()

    leaf.limit(None, None)
    pid = fork_into(leaf, hold)
    os.read(told, 64)
    with pytest.raises(OSError, match="memory"):
        leaf.limit(LIMIT // 2, None)
    assert is_alive(pid)
    assert leaf.seen().oom_kills == 0
    leaf.limit(2 * LIMIT, None)
    leaf.kill()
    assert exit_code(pid) == -signal.SIGKILL
    os.close(told)
    os.close(tell)


def test_what_a_job_leaves_in_the_page_cache(
    tree: cgroup.Tree, leaf: cgroup.Leaf, tmp_path: Path
) -> None:
    need(tree, "memory")
    file = tmp_path / "left"
    if _is_in_memory(tmp_path):
        pytest.skip("no disk here")
    assert run_in(leaf, lambda: file.write_bytes(bytes(2 * RESIDUE_MAX))) == 0
    assert leaf.residue() > RESIDUE_MAX
    assert not leaf.is_clean()
    assert leaf.clean()
    leaf.limit(3 * RESIDUE_MAX, None)  # were all of it still in the way, it would be too much
    leaf.begin()
    assert run_in(leaf, lambda: touch(2 * RESIDUE_MAX)) == 0
    assert leaf.seen().oom_kills == 0


def test_what_a_job_leaves_in_tmpfs(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "memory")
    file = SHM / f"fumehood-left-{os.getpid()}"
    leaf.limit(LIMIT, None)
    try:
        assert run_in(leaf, lambda: file.write_bytes(bytes(2 * RESIDUE_MAX))) == 0
        assert not leaf.clean()
        leaf.begin()
        assert run_in(leaf, lambda: None) == 0
        assert leaf.seen().peak_memory is None  # nearly all of it was another job's
        leaf.begin()
        assert run_in(leaf, lambda: touch(4 * LIMIT)) == -signal.SIGKILL
        peak = leaf.seen().peak_memory
        assert peak is not None
        assert LIMIT - 2 * MIB <= peak <= LIMIT
    finally:
        file.unlink()
    assert leaf.clean()
    assert leaf.is_clean()


def _is_in_memory(path: Path) -> bool:
    kind = subprocess.run(
        ["stat", "-f", "-c", "%T", str(path)], capture_output=True, text=True, check=True
    )
    return kind.stdout.strip() in {"tmpfs", "ramfs"}


# --- processes and CPU time -----------------------------------------------------------------


def test_a_limit_on_processes(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "processes")
    go, let_go = os.pipe()
    told, tell = os.pipe()

    def fork_on() -> None:
        os.read(go, 1)
        made = 0
        with contextlib.suppress(BlockingIOError):  # EAGAIN
            while True:
                _ = os.fork() or idle()
                made += 1
        os.write(tell, b"%d" % made)

    with leaf_of(tree) as other:
        other.limit(None, 8)
        for limit in (8, 3, 8):
            pid = fork_into(leaf, fork_on)
            wait_for(leaf.pids)
            leaf.limit(None, limit)
            leaf.begin()
            os.write(let_go, b"g")
            assert exit_code(pid) == 0
            assert os.read(told, 64) == b"%d" % (limit - 1)  # itself is one
            assert leaf.seen().process_limit_hits == 1
            leaf.kill()
            wait_for(lambda: not leaf.populated())
        assert run_in(other, lambda: os.waitpid(os.fork() or os._exit(0), 0)) == 0
        assert other.seen().process_limit_hits == 0
    for fd in (go, let_go, told, tell):
        os.close(fd)


def test_zombies_of_the_last_job_are_not_counted(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "processes")
    told, tell = os.pipe()

    def fork_on() -> None:
        os.read(told, 1)
        made = 0
        with contextlib.suppress(BlockingIOError):
            while made < 100:
                _ = os.fork() or idle()
                made += 1

    leaf.limit(None, 4)
    zombies = [fork_into(leaf, lambda: None) for _ in range(3)]
    wait_for(lambda: not leaf.populated() and not any(map(is_alive, zombies)))
    parked = fork_into(leaf, fork_on)
    wait_for(leaf.pids)
    leaf.limit(None, 4)
    leaf.begin()
    os.write(tell, b"g")
    assert exit_code(parked) == 0
    assert (len(leaf.pids()), leaf.seen().process_limit_hits) == (3, 1)
    for pid in zombies:
        os.waitpid(pid, 0)
    os.close(told)
    os.close(tell)


def test_a_limit_that_is_set_already_costs_no_write(tree: cgroup.Tree, leaf: cgroup.Leaf) -> None:
    need(tree, "processes")
    leaf.limit(LIMIT, 8)
    (file,) = [
        path / "pids.max"
        for path in Path("/sys/fs/cgroup").rglob(f"{tree.path.name}/{leaf.path.name}")
        if (path / "pids.max").exists()
    ]
    file.write_text("9")
    leaf.limit(LIMIT, 8)
    assert file.read_text() == "9\n"
    leaf.limit(LIMIT, 7)
    assert file.read_text() == "7\n"


def test_cpu_time_of_the_dead(leaf: cgroup.Leaf) -> None:
    def let_others_burn() -> None:
        for _ in range(2):
            if os.fork() == 0:
                burn(0.1)
                os._exit(0)
        for _ in range(2):
            os.wait()

    assert run_in(leaf, let_others_burn) == 0
    first = leaf.seen().cpu
    assert first is not None
    assert 0.18 <= first <= 2.0
    leaf.begin()
    cpu = leaf.cpu()
    assert cpu is not None
    assert cpu < 0.05
    assert run_in(leaf, lambda: burn(0.1)) == 0
    cpu = leaf.cpu()
    assert cpu is not None
    assert 0.09 <= cpu <= first + 0.5


# --- hierarchies ----------------------------------------------------------------------------


def test_stale_trees_are_swept_from_all_hierarchies() -> None:
    tree = _tree_or_skip(frozenset())
    dead = os.fork() or os._exit(0)
    os.waitpid(dead, 0)
    others = Path("/proc/self/ns/pid").stat().st_ino + 1
    stale = [parent / f"fumehood-{dead}-1-abc" for parent in tree.where]
    foreign = [parent / f"fumehood-{dead}-1-{others:x}.abc" for parent in tree.where]
    for path in (*stale, *foreign):
        (path / "seat-1" / "inner").mkdir(parents=True)
    pid = os.fork() or idle()
    for path in stale:
        (path / "seat-1" / "inner" / "cgroup.procs").write_text(str(pid))
    cgroup.make_tree(frozenset({"cgroup-memory"})).close()
    assert exit_code(pid) == -signal.SIGKILL
    assert not any(path.exists() for path in stale)
    assert all(path.exists() for path in foreign)  # who knows whether their owner lives
    for path in foreign:
        for part in (path / "seat-1" / "inner", path / "seat-1", path):
            part.rmdir()
    tree.close()


def test_a_stale_tree_beside_the_own_cgroup() -> None:
    tree = _tree_or_skip(frozenset())
    unit = tree.path.parent / f"fumehood.unit-{os.getpid()}"
    stale = unit / "fumehood-999999999-1-abc"
    (stale / "seat-1").mkdir(parents=True)
    # The one that looks stands beside the unit, in a cgroup of its own.
    beside = unit.with_name(f"{unit.name}-beside")
    beside.mkdir()
    _report(_REPORT, unit=beside)
    assert not stale.exists()
    for path in (unit, *beside.glob("*/"), beside):
        path.rmdir()
    tree.close()


def test_places_in_containers() -> None:
    mounts = (
        "30 23 0:26 / /sys/fs/cgroup ro - tmpfs tmpfs rw\n"
        r"31 30 0:27 /docker/ab /sys/fs/cgroup/cpu\040set ro shared:1 master:2 - cgroup cgroup "
        "rw,cpu,cpuacct\n"
        "32 30 0:28 /docker/ab /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory\n"
        "33 30 0:29 /other /sys/fs/cgroup/pids ro - cgroup cgroup rw,pids\n"
        "34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw,nsdelegate\n"
    )
    own = (
        "5:name=systemd:/docker/ab\n"
        "4:pids:/docker/ab\n"
        "3:memory:/docker/ab/sub\n"
        "2:cpu,cpuacct:/docker/ab\n"
        "0::/a b:c\n"
    )
    host = cgroup_host.parse(mounts, own)
    top = Path("/sys/fs/cgroup")
    assert host.v2 == Place(top / "unified" / "a b:c", "/a b:c")
    assert host.v1 == {
        "memory": Place(top / "memory/sub", "/docker/ab/sub"),
        "cpu": Place(top / "cpu set", "/docker/ab"),
        "cpuacct": Place(top / "cpu set", "/docker/ab"),
    }
    outside = cgroup_host.parse("30 1 0:1 / /c rw - cgroup2 none rw\n", "0::/../x\n")
    assert outside.v2 is None
    beside = cgroup_host.parse("30 1 0:1 /a /c rw - cgroup2 none rw\n", "0::/ab\n")
    assert beside.v2 is None


# --- delegation -----------------------------------------------------------------------------

_REPORT = """
from fumehood.worker.sandbox import cgroup
try:
    tree = cgroup.make_tree(frozenset())
    print(tree.driver, ",".join(sorted(tree.holds)), tree.path.parent, flush=True)
    missing = tree.missing
    tree.close()
except cgroup.NoCgroups as exc:
    print("none", exc.missing, flush=True)
print(open("/proc/self/cgroup").read().splitlines()[-1].removeprefix("0::"), flush=True)
"""
# The sources may lie where only root can read: reading is all that is left of root's rights.
_AS_NOBODY = (
    *("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+dac_read_search", "--ambient-caps=+dac_read_search"),
)
as_nobody = pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="root and setpriv are needed"
)


def _report(script: str, *user: str, unit: Path | None = None) -> list[str]:
    """What a process says that was started in ``unit``, or here, as somebody else maybe."""
    enter = () if unit is None else ("sh", "-c", 'echo 0 >"$0/cgroup.procs" && exec "$@"', unit)
    done = subprocess.run(
        [*enter, *user, sys.executable, "-c", script],
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.fixture
def unit() -> Iterator[Path]:
    """A cgroup as a service has it, with the controllers of v2, and nobody in it."""
    host = cgroup_host.read()
    if os.getuid() or host.v2 is None:
        pytest.skip("needs root and cgroup v2")
    top = host.v2.own
    has = set((top / "cgroup.controllers").read_text().split())
    if not {"memory", "pids"} <= has:
        pytest.skip("cgroup v2 has no memory or pids controller here")
    try:
        (top / "cgroup.subtree_control").write_text("+memory +pids")
    except OSError as exc:
        pytest.skip(f"this cgroup cannot have units: {exc}")
    made = top / f"unit-{os.getpid()}"
    made.mkdir()
    yield made
    for here, _, _ in os.walk(made, topdown=False):
        Path(here).rmdir()


_ALL = "cpu,kill,memory,populated,processes"


def test_a_unit_of_its_own(unit: Path) -> None:
    name = f"/{unit.name}/{NODE}"
    lines = _report(_REPORT + _REPORT, unit=unit)
    assert lines == [f"v2 {_ALL} {unit}", name, f"v2 {_ALL} {unit}", name]


def test_a_delegated_unit_with_others_in_it(unit: Path) -> None:
    with _sleeper_in(unit) as other:
        os.setxattr(unit, "user.delegate", b"1")
        assert _report(_REPORT, unit=unit)[0] == f"v2 {_ALL} {unit}"
        assert (unit / NODE / "cgroup.procs").read_text() == f"{other}\n"


def test_a_session_with_others_in_it(unit: Path) -> None:
    with _sleeper_in(unit):
        lines = _report(_REPORT, unit=unit)
        assert lines == [f"v2 {_ALL} {unit.parent}", f"/{unit.name}"]  # beside it


def test_a_unit_with_one_controller(unit: Path) -> None:
    inner = unit / "inner"
    inner.mkdir()
    (unit / "cgroup.subtree_control").write_text("+pids")
    lines = _report(_REPORT + "print(missing)", unit=inner)
    assert lines[0] == f"v2 cpu,kill,populated,processes {inner}"
    assert "no memory controller" in lines[-1]


@as_nobody
def test_a_unit_of_an_ordinary_user(unit: Path) -> None:
    for path in (unit, unit / "cgroup.procs", unit / "cgroup.subtree_control"):
        os.chown(path, 65534, 65534)
    assert _report(_REPORT, *_AS_NOBODY, unit=unit)[0] == f"v2 {_ALL} {unit}"


@as_nobody
def test_a_session_of_an_ordinary_user(unit: Path) -> None:
    with _sleeper_in(unit):
        line = _report(_REPORT, *_AS_NOBODY, unit=unit)[0]
    assert line.startswith("none ")
    assert "Permission denied" in line


@as_nobody
def test_an_ordinary_user_without_delegation() -> None:
    line = _report(_REPORT, *_AS_NOBODY)[0]
    assert line.startswith("none ")
    for purpose in ("kill", "memory", "processes", "cpu", "populated"):
        assert f"'{purpose}': " in line


@contextlib.contextmanager
def _sleeper_in(unit: Path) -> Iterator[int]:
    with subprocess.Popen(["sleep", "60"]) as process:
        (unit / "cgroup.procs").write_text(str(process.pid))
        yield process.pid
        process.kill()


# --- without cgroups ------------------------------------------------------------------------


@contextlib.contextmanager
def _holding(function: Callable[[], object]) -> Iterator[int]:
    """A process that has what ``function`` returns."""
    told, tell = os.pipe()
    pid = os.fork()
    if pid == 0:
        held = function()
        os.write(tell, b"x" if held is not None else b"")
        idle()
    os.read(told, 1)
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(told)
        os.close(tell)


def _filled_map() -> mmap.mmap:
    held = mmap.mmap(-1, LIMIT)
    held[:] = b"x" * LIMIT
    return held


def _filled_memfd() -> int:
    fd = os.memfd_create("hidden")
    os.write(fd, bytes(LIMIT))
    return fd


def test_memory_is_seen_from_outside() -> None:
    with _holding(lambda: b"") as pid:
        bare, bare_at_most = memory_watch.resident([pid]), memory_watch.at_most([pid])
    assert 0 < bare <= bare_at_most
    for function in (lambda: b"x" * LIMIT, _filled_map):
        with _holding(function) as pid:
            assert abs(memory_watch.resident([pid]) - bare - LIMIT) < 8 * MIB
            assert abs(memory_watch.at_most([pid]) - bare_at_most - LIMIT) < 8 * MIB
    assert memory_watch.resident([pid]) == memory_watch.at_most([pid]) == 0  # it is gone


def test_shared_memory_counts_once() -> None:
    with _holding(lambda: b"") as one, _holding(lambda: b"") as two:
        bare, bare_at_most = memory_watch.resident([one, two]), memory_watch.at_most([one, two])
    held = _filled_map()
    with _holding(lambda: max(held[:])) as one, _holding(lambda: max(held[:])) as two:
        held.close()  # they alone have it
        assert abs(memory_watch.resident([one, two]) - bare - LIMIT) < 8 * MIB
        assert abs(memory_watch.at_most([one, two]) - bare_at_most - 2 * LIMIT) < 8 * MIB


def test_the_way_past_the_watch() -> None:
    with _holding(_filled_memfd) as pid:
        assert memory_watch.at_most([pid]) < memory_watch.at_most([os.getpid()]) + LIMIT // 2


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv is needed")
@pytest.mark.skipif(os.getuid() != 0, reason="root is needed to become somebody else")
def test_memory_of_somebody_else() -> None:
    with _holding(_filled_map) as pid:
        watch = Path(memory_watch.__file__).read_text()
        script = f"{watch}\nprint(resident([{pid}]))"
        done = subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
        )
        assert int(done.stdout) == memory_watch.at_most([pid]), done.stderr
