"""The executor: a delivery's way through a node, top to bottom as named steps.

receive -> read -> admit -> wait for a slot -> run -> settle. Whatever happens on the way, a
delivery ends in exactly one of two ways: its outcome is confirmed by the broker and the job is
acknowledged, or the job is given back.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

from fumehood.broker.interface import Broker, Delivery
from fumehood.common.envelope import Envelope
from fumehood.common.errors import InvalidArguments, MalformedMessage
from fumehood.common.message import Message
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.common.settings import Settings
from fumehood.common.task import check_timeout
from fumehood.worker.outbox import Outbox
from fumehood.worker.remembered import Cancels, Settled, UnsentOutcomes
from fumehood.worker.runner import Runner
from fumehood.worker.sandbox.declared import Declared
from fumehood.worker.sandbox.job import Job
from fumehood.worker.sandbox.options import merge_limits
from fumehood.worker.sandbox.verdict import KillReason
from fumehood.worker.slots import Slots

log = logging.getLogger("fumehood.worker")

_REASON_MAX = 2000  # characters; a reason may quote what somebody sent
_CANCEL_STEP = 0.02  # seconds until a job that was about to start is cancelled again


@dataclass(eq=False, slots=True)
class _Present:
    """A job in this node's hands, from its delivery until that is settled."""

    message: Message
    stage: str = "waiting"  # then "running", then "settling"
    cancelled: bool = False
    acked: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    def comes_again_as(self, delivery: Delivery) -> bool:
        """Whether this is the same message once more: its connection was lost under it."""
        ours, theirs = self.message, delivery.message
        return (
            delivery.redelivered
            and ours.message_id == theirs.message_id
            and ours.reply_to == theirs.reply_to
            and ours.body == theirs.body
        )


class Executor:
    """Runs deliveries for one node, ``slots`` at a time. Holds no connection and no process."""

    def __init__(
        self,
        broker: Broker,
        runner: Runner,
        settings: Settings,
        node: str,
        *,
        slots: int,
        fallback: Runner | None = None,
    ) -> None:
        self._runner = runner
        self._fallback = fallback
        self._settings = settings
        self._cap = settings.limits
        self._node = node
        self._slots = Slots(slots)
        self._present: dict[str, _Present] = {}
        self._cancels = Cancels()
        self._settled = Settled()
        self._unsent = UnsentOutcomes()
        self._outbox = Outbox(broker, settings.publish_timeout)
        self._draining = False
        self._stopping = False

    async def execute(self, delivery: Delivery) -> None:
        """See one delivery through. Never raises for what a job or a message does."""
        try:
            envelope = Envelope.from_message(delivery.message)
        except MalformedMessage as exc:
            await self._settle(delivery, self._refuse(delivery, str(exc)))
            return
        # One job of an id at a time: a second one is the same come again, or waits for its turn.
        while (other := self._present.get(envelope.job_id)) is not None:
            await other.over.wait()
            if other.acked and other.comes_again_as(delivery):
                delivery.ack()
                return
        if delivery.redelivered and self._settled.knows(delivery.message):
            delivery.ack()  # only its acknowledgement was lost
            return
        await self._see_through(envelope, delivery)

    async def _see_through(self, envelope: Envelope, delivery: Delivery) -> None:
        present = self._present[envelope.job_id] = _Present(delivery.message)
        try:
            outcome = await self._decide(envelope, delivery, present)
            present.stage = "settling"
            if outcome is not None:
                self._cancels.end(envelope.job_id)
            present.acked = await self._settle(delivery, outcome)
            if present.acked:
                self._settled.add(delivery.message)
        finally:
            present.stage = "settling"
            del self._present[envelope.job_id]
            present.over.set()

    def cancel(self, job_id: str) -> None:
        """End the job if it is here and has not ended; else remember it, for it may be coming."""
        present = self._present.get(job_id)
        if present is None:
            self._cancels.ask(job_id)
        elif present.stage == "waiting":
            present.cancelled = True
            self._slots.drop(job_id)
        elif present.stage == "running":
            self._end(job_id, present)

    def _end(self, job_id: str, present: _Present) -> None:
        if present.stage != "running" or any(r.cancel(job_id) for r in self._runners):
            return
        # It has its slot and no sandbox yet, or has just ended: look again.
        asyncio.get_running_loop().call_later(_CANCEL_STEP, self._end, job_id, present)

    # --- ending -----------------------------------------------------------------------------

    def drain(self) -> None:
        """Begin no more jobs. Those that wait stay until ``give_back_waiting``."""
        self._draining = True
        self._slots.hold()

    def give_back_waiting(self) -> None:
        """Give back jobs that have not begun; call it when no more are delivered.

        Any sooner, and the broker would deliver them here again.
        """
        self.drain()
        self._slots.close()

    def stop(self) -> None:
        """Begin to end the jobs that run; they are given back. May be repeated."""
        self._stopping = self._outbox.hurry = True
        self.give_back_waiting()
        for runner in self._runners:
            runner.kill_all(KillReason.SHUTDOWN)

    async def close(self) -> None:
        """Let go of everything, when no delivery is left."""
        await self._outbox.close()

    @property
    def _runners(self) -> tuple[Runner, ...]:
        return (self._runner,) if self._fallback is None else (self._runner, self._fallback)

    # --- deciding ---------------------------------------------------------------------------

    async def _decide(
        self, envelope: Envelope, delivery: Delivery, present: _Present
    ) -> Outcome | None:
        """The outcome to publish; None when the job is to be given back."""
        kept = self._unsent.take(delivery.message) if delivery.redelivered else None
        if kept is not None:
            return kept
        outcome = self._admit(envelope, delivery)
        if outcome is None:
            outcome = await self._run(envelope, delivery.queue, present)
        if outcome is None:
            return None
        if outcome.status is Status.CANCELLED and outcome.blame is Blame.INFRA:
            return None  # this node was stopped under it: another one runs it
        if outcome.status is Status.START_FAILED and self._stopping:
            return None
        return self._signed(outcome, envelope.job_id, envelope.task, envelope.attempt)

    def _refuse(self, delivery: Delivery, why: str) -> Outcome:
        message = delivery.message
        log.warning("a message was rejected", extra={"queue": delivery.queue, "cause": why})
        task = message.headers.get("task")
        name = task if isinstance(task, str) else ""
        return self._signed(_rejected(why), message.correlation_id, name, 1)

    def _signed(self, outcome: Outcome, job_id: str, task: str, attempt: int) -> Outcome:
        finished = outcome.finished_at or time.time()
        return replace(
            outcome,
            job_id=job_id,
            task=task,
            attempt=attempt,
            node=self._node,
            finished_at=finished,
        )

    def _admit(self, envelope: Envelope, delivery: Delivery) -> Outcome | None:
        """Why this job is not to be run, as its outcome; None when it is."""
        if self._cancels.take(envelope.job_id):
            return _CANCELLED
        if _expired(envelope):
            return _EXPIRED
        if delivery.acquired_count >= self._settings.max_deliveries:
            reason = f"given up: handed out {delivery.acquired_count} times without a verdict"
            return Outcome(Status.LOST, blame=Blame.INFRA, reason=reason)
        if envelope.task not in self._runner.tasks:
            return _rejected(
                f"no task is named {envelope.task!r} on this node: start one that imports its "
                "module"
            )
        return self._check_bounds(envelope)

    def _check_bounds(self, envelope: Envelope) -> Outcome | None:
        try:
            check_timeout(self._timeout(envelope), self._settings.max_timeout)
        except InvalidArguments as exc:
            return _rejected(str(exc))
        return None

    # --- running ----------------------------------------------------------------------------

    async def _run(self, envelope: Envelope, queue: str, present: _Present) -> Outcome | None:
        """Wait for a slot and run; None when this node is told to stop before that."""
        got = await self._slots.take(envelope.job_id)
        try:
            if present.cancelled:
                return _CANCELLED
            if not got:
                return None
            if _expired(envelope):  # while it waited
                return _EXPIRED
            present.stage = "running"
            return await self._attempt(self._job(envelope, queue))
        finally:
            if got:
                self._slots.free()

    async def _attempt(self, job: Job) -> Outcome:
        outcome = await self._runner.run(job)
        if (
            outcome.status is Status.START_FAILED
            and job.profile == "trusted"
            and self._fallback is not None
            and not self._stopping
        ):
            log.warning(
                "no sandbox could be started: the job runs inline", extra={"job": job.job_id}
            )
            outcome = await self._fallback.run(job)
        return outcome

    def _job(self, envelope: Envelope, queue: str) -> Job:
        declared = self._runner.tasks.get(envelope.task, _UNDECLARED)
        bounds = merge_limits(envelope.limits, declared.limits, self._cap)
        floor = any(fnmatchcase(queue, each) for each in self._settings.untrusted_queues)
        return Job(
            job_id=envelope.job_id,
            task=envelope.task,
            arguments=envelope.arguments,
            timeout=self._timeout(envelope),
            soft_timeout=declared.soft_timeout,
            result_max=bounds.result or 0,
            output_max=bounds.output or 0,
            limits=bounds,
            profile="untrusted" if floor else declared.profile,
            attempt=envelope.attempt,
        )

    def _timeout(self, envelope: Envelope) -> float:
        declared = self._runner.tasks.get(envelope.task, _UNDECLARED)
        return envelope.timeout or declared.timeout or self._settings.sandbox_default_timeout

    # --- settling ---------------------------------------------------------------------------

    async def _settle(self, delivery: Delivery, outcome: Outcome | None) -> bool:
        """Outcome first, acknowledgement after: it is worse to lose an outcome than to run twice.

        Returns whether the job was acknowledged.
        """
        if outcome is None:
            delivery.give_back()
            return False
        reply_to = delivery.message.reply_to
        if reply_to and not await self._outbox.publish(reply_to, outcome):
            self._unsent.add(delivery.message, outcome)
            delivery.give_back()
            return False
        delivery.ack()
        return True


_UNDECLARED = Declared()
_CANCELLED = Outcome(Status.CANCELLED, blame=Blame.POLICY, reason="cancelled before it was started")
_EXPIRED = Outcome(Status.EXPIRED, blame=Blame.LIMIT, reason="expired before it was started")


def _expired(envelope: Envelope) -> bool:
    return envelope.expires is not None and envelope.expires <= time.time() * 1000


def _rejected(why: str) -> Outcome:
    return Outcome(Status.REJECTED, blame=Blame.POLICY, reason=why[:_REASON_MAX])
