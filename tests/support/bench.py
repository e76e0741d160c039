"""An executor on a bench: a memory broker that records, a runner that does as told."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

from fumehood.broker.interface import Delivery, Subscription
from fumehood.broker.memory import MemoryBroker
from fumehood.broker.options import BrokerOptions
from fumehood.common.codec import encode
from fumehood.common.envelope import Envelope, cancel_message, outcome_from_message, read_control
from fumehood.common.errors import BrokerUnavailable
from fumehood.common.message import Message
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.common.settings import Settings
from fumehood.worker.executor import Executor
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.verdict import KillReason
from support.aio import until

TASK = "tests.fine"
QUEUE = "bench"
NO_ARGUMENTS = encode([[], {}])
_numbers = itertools.count(1)

FINE = Outcome(Status.SUCCEEDED, value_bytes=encode("fine"))
NO_SANDBOX = Outcome(Status.START_FAILED, blame=Blame.INFRA, stage="fork")
_KILLED = {
    KillReason.CANCELLED: Outcome(Status.CANCELLED, blame=Blame.POLICY, reason="while it ran"),
    KillReason.SHUTDOWN: Outcome(Status.CANCELLED, blame=Blame.INFRA, reason="shutdown"),
}


class FakeRunner:
    """Answers each job at once with ``answer``, or, with ``hold``, when told to ``finish`` it."""

    def __init__(self, *, hold: bool = False, answer: Outcome = FINE) -> None:
        self.tasks: Mapping[str, Declared] = {TASK: Declared()}
        self.jobs: list[Job] = []
        self.running: dict[str, asyncio.Future[Outcome]] = {}
        self.most = 0  # jobs that ran at the same time
        self.calls: list[str] = []
        self.hold = hold
        self.answer = answer
        self.error: Exception | None = None
        self.deaf = 0  # cancels that come before the job has a sandbox

    async def start(self) -> None:
        self.calls.append("start")

    async def stop(self) -> None:
        self.calls.append("stop")

    @property
    def ids(self) -> list[str]:
        """The jobs that were begun, in order."""
        return [job.job_id for job in self.jobs]

    async def run(self, job: Job) -> Outcome:
        self.jobs.append(job)
        if self.error is not None:
            raise self.error
        if not self.hold:
            return self.answer
        assert job.job_id not in self.running, "one job ran twice at the same time"
        ending: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()
        self.running[job.job_id] = ending
        self.most = max(self.most, len(self.running))
        try:
            return await ending
        finally:
            del self.running[job.job_id]

    def finish(self, job_id: str, outcome: Outcome | None = None) -> None:
        self.running[job_id].set_result(outcome or self.answer)

    def cancel(self, job_id: str) -> bool:
        if self.deaf:
            self.deaf -= 1
            return False
        return self._end(job_id, KillReason.CANCELLED)

    def kill_all(self, reason: KillReason) -> None:
        for job_id in list(self.running):
            self._end(job_id, reason)

    def _end(self, job_id: str, reason: KillReason) -> bool:
        ending = self.running.get(job_id)
        if ending is None or ending.done():
            return False
        ending.set_result(_KILLED[reason])
        return True


class RecordingBroker(MemoryBroker):
    """Records what is confirmed; ``failures`` are raised first, one for each publish."""

    def __init__(self, name: str, record: list[str]) -> None:
        super().__init__(name, BrokerOptions())
        self.record = record
        self.failures: list[Exception] = []
        self.down = False

    async def publish_reply(self, reply_to: str, message: Message) -> bool:
        if self.down:
            raise BrokerUnavailable("down")
        if self.failures:
            raise self.failures.pop(0)
        self.record.append(f"publish {message.correlation_id}")
        wanted = await super().publish_reply(reply_to, message)
        await asyncio.sleep(0.01)  # a confirm takes its time, and an ack must wait for it
        self.record.append(f"confirmed {message.correlation_id}")
        return wanted


class RecordedDelivery(Delivery):
    """A delivery whose settlement is recorded."""

    def __init__(self, inner: Delivery, record: list[str]) -> None:
        self._inner = inner
        self._record = record
        self.message = inner.message
        self.queue = inner.queue
        self.redelivered = inner.redelivered
        self.acquired_count = inner.acquired_count

    def _settle(self, how: str) -> None:
        self._record.append(f"{how} {self.message.correlation_id}")

    def ack(self) -> None:
        self._settle("ack")
        self._inner.ack()

    def give_back(self) -> None:
        self._settle("give_back")
        self._inner.give_back()

    def reject(self) -> None:
        self._settle("reject")
        self._inner.reject()


class Bench:
    """One executor, the queue that feeds it, and the producer that hears its outcomes."""

    def __init__(
        self, runner: FakeRunner, slots: int, fallback: FakeRunner | None, **settings: Any
    ):
        self.name = name = f"bench-{next(_numbers)}"
        self.record: list[str] = []
        self.broker = RecordingBroker(name, self.record)
        self.producer = MemoryBroker(name, BrokerOptions())
        self.runner = runner
        self.settings = Settings(**{"publish_timeout": 1.0, **settings})
        self.executor = Executor(
            self.broker, runner, self.settings, "node-1", slots=slots, fallback=fallback
        )
        self.outcomes: list[Outcome] = []
        self.reply_to = ""
        self.foreign = False  # jobs come from a producer that sets no message_id
        self.replies: Subscription | None = None
        self.consumer: Subscription | None = None
        self.tasks: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        await self.broker.start()
        await self.producer.start()
        await self.broker.declare_queue(QUEUE)
        self.reply_to, self.replies = await self.producer.open_replies("producer", self._on_reply)
        await self.broker.consume_control(lambda m: self.executor.cancel(read_control(m)[1]))
        await self.consume()

    async def consume(self) -> None:
        self.consumer = await self.broker.consume_jobs(QUEUE, 100, self._on_delivery)

    async def lose_connection(self) -> None:
        """What was delivered is delivered again, and settling the first deliveries does nothing."""
        await self.broker_gone_for_a_while()
        await self.consume()

    async def broker_gone_for_a_while(self) -> None:
        """The same, and nothing is delivered until ``consume``."""
        assert self.consumer is not None
        self.consumer.drop()  # type: ignore[attr-defined]

    def _on_reply(self, message: Message) -> None:
        self.outcomes.append(outcome_from_message(message))

    def _on_delivery(self, delivery: Delivery) -> None:
        recorded = RecordedDelivery(delivery, self.record)
        if self.foreign:
            recorded.message = replace(delivery.message, message_id="")
        execute = self.executor.execute(recorded)
        task = asyncio.get_running_loop().create_task(execute)
        self.tasks.add(task)

    async def send(self, job_id: str, *, reply: bool = True, **facts: Any) -> None:
        """Enqueue a job; ``facts`` are fields of its envelope."""
        facts = {"task": TASK, "arguments": NO_ARGUMENTS, **facts}
        reply_to = facts.pop("reply_to", self.reply_to if reply else "")
        await self.send_message(Envelope(job_id=job_id, reply_to=reply_to, **facts).to_message())

    async def send_message(self, message: Message) -> None:
        await self.producer.publish_job(QUEUE, message)

    async def cancel(self, job_id: str) -> None:
        await self.producer.publish_control(cancel_message(job_id))
        await asyncio.sleep(0.005)  # delivered in the next turn of the loop

    async def running(self, *job_ids: str) -> None:
        """Wait until exactly these jobs run."""
        await until(lambda: sorted(self.runner.running) == sorted(job_ids), f"{job_ids} running")

    async def outcome(self, count: int = 1) -> Outcome:
        """Wait until that many outcomes have arrived; the last of them."""
        await until(lambda: len(self.outcomes) >= count, f"{count} outcomes")
        return self.outcomes[count - 1]

    async def recorded(self, what: str, times: int = 1) -> None:
        await until(lambda: self.record.count(what) >= times, what)

    async def idle(self) -> None:
        """Wait until every delivery is settled."""
        await until(lambda: all(task.done() for task in self.tasks), "every delivery settled")
        for task in self.tasks:
            task.result()

    async def close(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.executor.close()
        await self.producer.stop()
        await self.broker.stop()


@asynccontextmanager
async def bench(
    *,
    hold: bool = False,
    answer: Outcome = FINE,
    slots: int = 2,
    fallback: FakeRunner | None = None,
    **settings: Any,
) -> AsyncIterator[Bench]:
    """A running bench; other options are settings."""
    made = Bench(FakeRunner(hold=hold, answer=answer), slots, fallback, **settings)
    await made.open()
    try:
        yield made
    finally:
        await made.close()
