"""The other side for tests of the client: a broker that does as told, and a node that answers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fumehood.broker import Broker, Delivery, Subscription
from fumehood.broker.interface import OnDelivery, OnMessage
from fumehood.common import Outcome, Status, task
from fumehood.common.arguments import decode_arguments
from fumehood.common.codec import encode
from fumehood.common.envelope import Envelope, outcome_to_message
from fumehood.common.message import Message


@task(name="tests.add", timeout=7.0)
def add(a: int, b: int) -> int:
    return a + b


def succeeded(job_id: str, value: Any = None) -> Message:
    return outcome_to_message(Outcome(Status.SUCCEEDED, job_id, "t", value_bytes=encode(value)))


def ended(job_id: str, status: Status, **facts: Any) -> Message:
    return outcome_to_message(Outcome(status, job_id, "t", **facts))


class _Nothing(Subscription):
    def __init__(self) -> None:
        self.closed = False

    async def close(self) -> None:
        self.closed = True


class StubBroker(Broker):
    """Keeps what it is given; ``publish`` decides how a publish of a job ends."""

    def __init__(self, publish: Callable[[Message], Awaitable[None]] | None = None) -> None:
        self.publish = publish
        self.jobs: list[tuple[str, Message]] = []
        self.controls: list[Message] = []
        self.declared: list[str] = []
        self.calls: list[str] = []
        self.clients: list[str] = []
        self.replies = _Nothing()
        self.on_reply: OnMessage = lambda _: None

    @property
    def connected(self) -> bool:
        return True

    @property
    def envelopes(self) -> list[Envelope]:
        return [Envelope.from_message(message) for _, message in self.jobs]

    @property
    def cancelled(self) -> list[str]:
        return [message.correlation_id for message in self.controls]

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def declare_queue(self, queue: str) -> None:
        await asyncio.sleep(0)
        self.declared.append(queue)

    async def publish_job(
        self, queue: str, message: Message, *, deadline: float | None = None
    ) -> None:
        if self.publish is not None:
            await self.publish(message)
        self.jobs.append((queue, message))

    async def consume_jobs(
        self, queue: str, prefetch: int, on_delivery: OnDelivery
    ) -> Subscription:
        raise NotImplementedError

    async def publish_reply(self, reply_to: str, message: Message) -> bool:
        raise NotImplementedError

    async def open_replies(self, client: str, on_message: OnMessage) -> tuple[str, Subscription]:
        self.clients.append(client)
        self.on_reply = on_message
        return f"user.{client}", self.replies

    async def publish_control(self, message: Message) -> None:
        self.controls.append(message)

    async def consume_control(self, on_message: OnMessage) -> Subscription:
        raise NotImplementedError


Answer = Callable[[Envelope], Outcome | None]


def sums(job: Envelope) -> Outcome:
    """What a node would say to ``add``."""
    args, kwargs = decode_arguments(job.arguments)
    return Outcome(Status.SUCCEEDED, job.job_id, job.task, value_bytes=encode(add(*args, **kwargs)))


class Responder:
    """The least of a node: takes jobs off a queue and answers each as ``answer`` says."""

    def __init__(self, broker: Broker, answer: Answer = sums) -> None:
        self._broker = broker
        self._answer = answer
        self._sending: set[asyncio.Task[None]] = set()
        self.seen: list[Envelope] = []
        self.controls: list[Message] = []
        self.patience = 0.0  # seconds for which an outcome that nobody takes is offered again

    async def serve(self, queue: str, prefetch: int = 1000) -> None:
        await self._broker.declare_queue(queue)
        await self._broker.consume_control(self.controls.append)
        await self._broker.consume_jobs(queue, prefetch, self._take)

    def _take(self, delivery: Delivery) -> None:
        job = Envelope.from_message(delivery.message)
        self.seen.append(job)
        outcome = self._answer(job)
        if outcome is None:
            delivery.ack()
            return
        sending = asyncio.get_running_loop().create_task(self._settle(delivery, job, outcome))
        self._sending.add(sending)
        sending.add_done_callback(self._sending.discard)

    async def _settle(self, delivery: Delivery, job: Envelope, outcome: Outcome) -> None:
        message = outcome_to_message(outcome)
        # As a node does: after a restart of the broker, a producer may be back later than we are.
        end = time.monotonic() + self.patience
        while job.reply_to and not await self._broker.publish_reply(job.reply_to, message):
            if time.monotonic() >= end:
                break
            await asyncio.sleep(0.05)
        delivery.ack()
