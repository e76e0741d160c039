"""Twenty thousand mixed jobs, two nodes, one of them killed midway: one right outcome for each."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from support import jobs
from support.aio import async_test, until
from support.node_process import WorkerProcess, worker
from support.rabbitmq import PrivateNode

from fumehood.client import Client, JobHandle
from fumehood.common import Call, Outcome, Settings, Status
from fumehood.worker.sandbox.killer import descendants_of

pytestmark = [pytest.mark.rabbitmq, pytest.mark.slow, pytest.mark.timeout(400)]

TESTS = Path(__file__).parents[1]
COUNT = 20_000
BIG = 256 << 10
QUEUE = "many"
PATIENCE = 300.0  # seconds for all; about 100 on two cores
SETTINGS = Settings(declare_queues=True)

Expected = tuple[Status, Any]


def mix() -> Iterator[tuple[Call[Any], Expected]]:
    """Jobs in a fixed order, each with what has to become of it."""
    dice = random.Random(7)
    for number in range(COUNT):
        share = dice.random()
        if share < 0.01:
            yield jobs.fill.call(BIG), (Status.SUCCEEDED, bytes(BIG))
        elif share < 0.03:
            yield jobs.nap.call(0.2), (Status.SUCCEEDED, "rested")
        elif share < 0.04:
            yield jobs.crash.call(), (Status.CRASHED, "SIGSEGV")
        elif share < 0.05:
            yield jobs.leave.call(9), (Status.EXITED, 9)
        elif share < 0.10:
            yield jobs.fail.call(str(number)), (Status.FAILED, str(number))
        else:
            yield jobs.fine.call(number), (Status.SUCCEEDED, number * 2)


def seen(outcome: Outcome) -> Expected:
    """What became of a job, in the words of ``mix``."""
    if outcome.ok:
        return outcome.status, outcome.value
    if outcome.error is not None:
        return outcome.status, outcome.error.message
    return outcome.status, outcome.signal or outcome.exit_code


def start_node(stack: ExitStack, rabbit: PrivateNode) -> WorkerProcess:
    options = ["support.jobs", "-q", QUEUE, "-c", "4", "--broker", rabbit.url]
    return stack.enter_context(worker(*options, cwd=TESTS))


def alive(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in "ZX"


def messages(rabbit: PrivateNode) -> dict[str, int]:
    """Messages by queue, unsettled ones included; queues without any are left out."""
    rows = rabbit.ctl("list_queues", "name", "messages", "--no-table-headers").splitlines()
    counts = {name: int(count) for name, count in (row.split() for row in rows if row.strip())}
    return {name: count for name, count in counts.items() if count}


@async_test
async def test_every_job_gets_one_outcome_and_the_right_one(fresh_rabbit: PrivateNode) -> None:
    calls, expected = zip(*mix(), strict=True)
    with ExitStack() as stack:
        nodes = [start_node(stack, fresh_rabbit) for _ in range(2)]
        async with Client(fresh_rabbit.url, settings=SETTINGS) as client:
            handles = await client.enqueue_many(calls, queue=QUEUE, timeout=60.0)
            family = await kill_midway(nodes[0], handles)
            everything = asyncio.gather(*(handle.outcome(PATIENCE) for handle in handles))
            outcomes = await asyncio.wait_for(everything, PATIENCE)
            wrong = [
                (handle.id, outcome.describe(), right)
                for handle, outcome, right in zip(handles, outcomes, expected, strict=True)
                if (seen(outcome), outcome.job_id) != (right, handle.id)
            ]
            assert wrong == []
            assert len({outcome.node for outcome in outcomes}) == 2
            await until(lambda: not messages(fresh_rabbit), "empty queues", timeout=60)
            # An outcome that came twice would be unasked for; few may, where an ack was lost.
            ignored: Counter[str] = client._replies.ignored
            assert set(ignored) <= {"late"}
            assert ignored["late"] <= 4
            family |= descendants_of(nodes[1].process.pid)
            assert nodes[1].stop() == 0
            await until(lambda: not any(map(alive, family)), "no process left")


async def kill_midway(node: WorkerProcess, handles: list[JobHandle[Any]]) -> set[int]:
    """SIGKILL the node when a third of the jobs are done; what it had started."""
    done = COUNT // 3
    await until(handles[done].done, "a third of the jobs", timeout=PATIENCE)
    family = {node.process.pid, *descendants_of(node.process.pid)}
    assert len(family) >= 3
    node.process.kill()
    return family
