"""What a case alone cannot show: clocks that jump, neighbours, slow starts, what cannot die."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import time
from pathlib import Path

import pytest
from support.aio import async_test, until
from support.sandboxes import Bench, cgroups_of, descendants, is_alive, make_settings

from fumehood.common import Blame, Limits, Outcome, Status
from fumehood.worker import Sandbox
from hostile import inside
from hostile.case import Profile
from hostile.fixtures import PROFILES
from hostile.fuse import DeadFileSystem
from hostile.tasks import canary, memory, secrecy, times

MIB = 1 << 20
_MODULES = ("hostile.tasks.canary", "hostile.tasks.memory", "hostile.tasks.times",
            "hostile.tasks.secrecy")  # fmt: skip


def _sandbox(profile: Profile, slots: int = 1, *disable: str) -> Sandbox:
    settings = make_settings(disable, untrusted_requires=())
    return Sandbox(_MODULES, slots, profile, settings=settings)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("days", [-1, 1])
def test_the_wall_clock_jumps(profile: Profile, days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with Bench(_sandbox(profile)) as bench:
        real = time.time
        monkeypatch.setattr(time, "time", lambda: real() + days * 86400)
        started = time.monotonic()
        outcome = bench.run(times.sleep.call(0.3), timeout=5.0)
        assert outcome.value == "slept"
        assert 0.3 <= outcome.usage.wall < 2.0
        outcome = bench.run(times.sleep.call(), timeout=0.3)
        assert outcome.status is Status.TIMED_OUT
        assert time.monotonic() - started < 4.0


@pytest.mark.parametrize("profile", PROFILES)
@async_test
async def test_bombs_hit_nobody_else(profile: Profile) -> None:
    async with _sandbox(profile, 4) as sandbox:
        limits = Limits(memory=48 * MIB)

        async def bomb() -> Outcome:
            return await sandbox.run(memory.heap.call(256 * MIB), 20.0, limits=limits)

        async def neighbour() -> list[Outcome]:
            return [
                await sandbox.run(memory.heap.call(8 * MIB), 20.0, limits=limits) for _ in range(10)
            ]

        beside = asyncio.create_task(neighbour())
        bombs = await asyncio.gather(*(bomb() for _ in range(9)))
        assert {outcome.status for outcome in bombs} == {Status.LIMIT_EXCEEDED}, bombs
        assert [outcome.value for outcome in await beside] == ["unbounded"] * 10


@pytest.mark.parametrize("profile", PROFILES)
@async_test
async def test_a_sandbox_that_does_not_become_ready(
    profile: Profile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fumehood.worker.sandbox.process._START_MAX", 0.4)
    async with _sandbox(profile) as sandbox:
        await until(lambda: inside.in_peace(sandbox.manager))
        (parked,) = inside.waiting(sandbox.manager)
        os.kill(parked.ending.pid, signal.SIGSTOP)
        started = time.monotonic()
        outcome = await sandbox.run(canary.ping.call(1), 0.1)
        assert (outcome.status, outcome.blame) == (Status.START_FAILED, Blame.INFRA), outcome
        assert time.monotonic() - started < 2.0
        assert not is_alive(parked.ending.pid)
        assert (await sandbox.run(canary.ping.call(1), 10.0)).value == 2


def _in_the_kernel() -> list[int]:
    """Processes below this one that wait where no signal reaches."""
    states = {pid: Path(f"/proc/{pid}/stat") for pid in descendants(os.getpid())}
    return [pid for pid, stat in states.items() if stat.exists() and ") D " in stat.read_text()]


@pytest.mark.skipif(
    os.geteuid() != 0 or not Path("/dev/fuse").exists(), reason="root and /dev/fuse are needed"
)
@pytest.mark.parametrize("disable", [(), ("cgroup",)], ids=["cgroup", "no-cgroup"])
@async_test
async def test_what_cannot_be_killed(disable: tuple[str, ...], tmp_path: Path) -> None:
    dead = DeadFileSystem(tmp_path / "dead")
    try:
        dead.__enter__()
    except OSError as exc:
        if exc.errno in (errno.EPERM, errno.ENODEV):
            pytest.skip(f"no FUSE here: {exc}")
        raise
    async with _sandbox("trusted", 1, *disable) as sandbox:
        try:
            started = time.monotonic()
            outcome = await sandbox.run(times.look_at.call(str(dead.where / "x")), 0.5)
            took = time.monotonic() - started
            assert dead.asked.is_set()
            assert outcome.status is Status.TIMED_OUT, outcome
            assert took < 0.5 + 3.5  # the kill is waited for, but not for ever
            # The slot is free, and its seat is not used again.
            assert (await sandbox.run(canary.ping.call(1), 10.0)).value == 2
        finally:
            await asyncio.to_thread(dead.__exit__, None, None, None)
            await until(lambda: not _in_the_kernel(), "the end of what could not be killed")
    assert not cgroups_of(os.getpid())


@pytest.mark.parametrize("profile", PROFILES)
@async_test
async def test_a_new_zygote_has_other_hashes(profile: Profile) -> None:
    """What one job learns of addresses and hash seeds is of no use for ever."""
    async with _sandbox(profile) as sandbox:
        seen: set[str] = set()
        for _ in range(3):
            outcome = await sandbox.run(secrecy.hash_and_address.call(), 10.0)
            seen.add(repr(outcome.value))
            (zygote,) = sandbox.manager.zygote_pids
            os.kill(zygote, signal.SIGKILL)
            await until(lambda old=zygote: sandbox.manager.zygote_pids not in ([], [old]))  # type: ignore[misc]
        assert len(seen) == 3
