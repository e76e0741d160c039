"""I8: hostile jobs through a broker. Each message is settled once, each job answered once."""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from typing import Any

import pytest
from support.aio import async_test, until
from support.rabbitmq import PrivateNode
from support.sandboxes import cgroups_of, make_settings

from fumehood.broker import memory
from fumehood.broker.connect import connect
from fumehood.client import Client
from fumehood.common import Blame
from fumehood.worker import Worker
from hostile.case import NO_STACK, Case, Expect, NotRun, Profile
from hostile.cases import KINDS
from hostile.fixtures import PROFILES
from hostile.harness import MODULES
from hostile.outside import Outside, residue, sweep
from hostile.scene import Scene

_PATIENCE = 120.0  # seconds for all of them
_OVER_A_REAL_BROKER = ("times", "exits", "wire")


def _cases(profile: Profile, kinds: tuple[str, ...]) -> list[Case]:
    """Those that a producer can send and that disturb no neighbour."""
    lost = Scene(profile).lost
    return [
        case
        for kind in kinds
        for case in KINDS[kind]
        if not case.alone
        and not case.loses_zygote
        and case.arguments is None
        and case.after is None
        and not isinstance(case.expectation(profile, lost), NotRun)
        and not _is_infra(case.expectation(profile, lost))
    ]


def _is_infra(expected: Any) -> bool:
    """Whether it may be for the node to try again."""
    choices = [expected] if isinstance(expected, Expect) else expected.choices
    return any(choice.blame is Blame.INFRA for choice in choices)


async def _run_all(url: str, queue: str, profile: Profile, cases: list[Case]) -> dict[str, Any]:
    untrusted = (queue,) if profile == "untrusted" else ()
    settings = make_settings(untrusted_queues=untrusted, untrusted_requires=(), declare_queues=True)
    lost = Scene(profile).lost
    found: dict[str, Any] = {}
    worker = Worker(url, modules=MODULES, queues=[queue], concurrency=4, settings=settings)
    with Outside() as outside:
        await worker.start()
        try:
            async with Client(url, settings=settings) as client, asyncio.timeout(_PATIENCE):
                handles = [
                    await client.enqueue(
                        case.call(outside) if callable(case.call) else case.call,
                        queue=queue, timeout=case.timeout, limits=case.limits,
                    )
                    for case in cases
                ]  # fmt: skip
                for case, handle in zip(cases, handles, strict=True):
                    outcome = await handle.outcome()
                    expected = case.expectation(profile, lost)
                    assert not isinstance(expected, NotRun)
                    complaints = expected.complaints(outcome)
                    if any(each != NO_STACK for each in complaints):
                        found[case.id] = complaints
                assert client.pending == 0
                await until(lambda: worker.node.running == 0, "all settled")
        finally:
            await worker.stop()
    return found


@pytest.mark.parametrize("profile", PROFILES)
@async_test
async def test_each_message_is_settled_once(
    profile: Profile, queue_name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settled: Counter[str] = Counter()
    for name in ("ack", "give_back", "reject"):
        monkeypatch.setattr(memory._MemoryDelivery, name, _counting(settled, name))
    answered: Counter[str] = Counter()
    publish = memory.MemoryBroker.publish_reply

    async def count(self: Any, reply_to: str, message: Any) -> bool:
        answered[message.correlation_id] += 1
        return await publish(self, reply_to, message)

    monkeypatch.setattr(memory.MemoryBroker, "publish_reply", count)
    cases = _cases(profile, tuple(KINDS))
    try:
        async with connect(f"memory://{queue_name}") as keeper:  # so that the hub outlives both
            found = await _run_all(f"memory://{queue_name}", queue_name, profile, cases)
            assert keeper.connected
        assert not residue() or profile == "trusted"
    finally:
        sweep()
    assert not found
    assert settled == {"ack": len(cases)}
    assert len(answered) == len(cases)
    assert set(answered.values()) == {1}
    assert not cgroups_of(os.getpid())


def _counting(settled: Counter[str], name: str) -> Any:
    real = getattr(memory._MemoryDelivery, name)

    def settle(self: Any) -> Any:
        settled[name] += 1
        return real(self)

    return settle


@pytest.mark.rabbitmq
@pytest.mark.parametrize("profile", PROFILES)
@async_test
async def test_over_a_real_broker(profile: Profile, rabbit: PrivateNode, queue_name: str) -> None:
    cases = _cases(profile, _OVER_A_REAL_BROKER)
    try:
        assert not await _run_all(rabbit.url, queue_name, profile, cases)
    finally:
        sweep()
