"""The executor: a delivery's way through a node, top to bottom as named steps.

receive -> read -> admit -> run -> settle. Whatever happens on the way, a delivery ends in exactly
one of two ways: its outcome is confirmed by the broker and the job is acknowledged, or the job is
given back.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from dataclasses import dataclass, replace

from fumehood.broker.interface import Broker, Delivery
from fumehood.common.envelope import Envelope, outcome_to_message
from fumehood.common.errors import BrokerUnavailable, InvalidArguments, MalformedMessage
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.common.settings import Settings
from fumehood.common.task import check_timeout
from fumehood.worker.runner import Runner
from fumehood.worker.sandbox.job import Job

log = logging.getLogger("fumehood.worker")

_REMEMBERED_CANCELS = 10_000


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is to be done with a delivery: publish ``outcome`` and acknowledge, or give it back."""

    outcome: Outcome | None
    reply_to: str = ""


_GIVE_BACK = Verdict(None)


class Executor:
    """Runs deliveries for one node. Holds no connection and no process of its own."""

    def __init__(
        self, broker: Broker, runner: Runner, settings: Settings, node: str, fallback: Runner | None = None
    ) -> None:
        self._broker = broker
        self._runner = runner
        self._fallback = fallback
        self._settings = settings
        self._node = node
        self._cancelled: OrderedDict[str, None] = OrderedDict()
        self.draining = False  # set once: jobs that have not begun are given back

    async def execute(self, delivery: Delivery) -> None:
        """See one delivery through. Never raises for what a job or a message does."""
        verdict = await self._decide(delivery)
        await self._settle(delivery, verdict)

    def cancel(self, job_id: str) -> None:
        """End the job if it runs here; else remember it, for it may be on its way here."""
        if self._runner.cancel(job_id):
            return
        self._cancelled[job_id] = None
        while len(self._cancelled) > _REMEMBERED_CANCELS:
            self._cancelled.popitem(last=False)

    # --- deciding ---------------------------------------------------------------------------

    async def _decide(self, delivery: Delivery) -> Verdict:
        try:
            envelope = Envelope.from_message(delivery.message)
        except MalformedMessage as exc:
            return self._refuse(delivery, str(exc))
        outcome = self._admit(envelope, delivery)
        if outcome is None:
            if self.draining:
                return _GIVE_BACK
            outcome = await self._run(envelope)
        if outcome.status is Status.CANCELLED and outcome.blame is Blame.INFRA:
            return _GIVE_BACK  # this node was stopped under it: another one runs it
        return Verdict(self._signed(outcome, envelope.job_id, envelope.task, envelope.attempt), envelope.reply_to)

    def _refuse(self, delivery: Delivery, why: str) -> Verdict:
        message = delivery.message
        log.warning("a message was rejected", extra={"queue": delivery.queue, "cause": why})
        outcome = Outcome(Status.REJECTED, blame=Blame.POLICY, reason=why)
        task = message.headers.get("task")
        signed = self._signed(outcome, message.correlation_id, task if isinstance(task, str) else "", 1)
        return Verdict(signed, message.reply_to)

    def _signed(self, outcome: Outcome, job_id: str, task: str, attempt: int) -> Outcome:
        finished = outcome.finished_at or time.time()
        return replace(
            outcome, job_id=job_id, task=task, attempt=attempt, node=self._node, finished_at=finished
        )

    def _admit(self, envelope: Envelope, delivery: Delivery) -> Outcome | None:
        """Why this job is not to be run, as its outcome; None when it is."""
        if envelope.job_id in self._cancelled:
            del self._cancelled[envelope.job_id]
            return Outcome(Status.CANCELLED, blame=Blame.POLICY, reason="cancelled before it was started")
        if envelope.expires is not None and envelope.expires <= time.time() * 1000:
            return Outcome(Status.EXPIRED, blame=Blame.LIMIT, reason="expired before it was started")
        if delivery.acquired_count >= self._settings.max_deliveries:
            reason = f"given up: handed out {delivery.acquired_count} times without a verdict"
            return Outcome(Status.LOST, blame=Blame.INFRA, reason=reason)
        if envelope.task not in self._runner.tasks:
            reason = f"no task is named {envelope.task!r} on this node: start one that imports its module"
            return Outcome(Status.REJECTED, blame=Blame.POLICY, reason=reason)
        return self._check_bounds(envelope)

    def _check_bounds(self, envelope: Envelope) -> Outcome | None:
        try:
            check_timeout(self._timeout(envelope), self._settings.max_timeout)
        except InvalidArguments as exc:
            return Outcome(Status.REJECTED, blame=Blame.POLICY, reason=str(exc))
        return None

    # --- running ----------------------------------------------------------------------------

    async def _run(self, envelope: Envelope) -> Outcome:
        job = self._job(envelope)
        outcome = await self._runner.run(job)
        if outcome.status is Status.START_FAILED and self._fallback is not None:
            log.warning("no sandbox could be started: the job runs inline", extra={"job": job.job_id})
            outcome = await self._fallback.run(job)
        return outcome

    def _job(self, envelope: Envelope) -> Job:
        bounds = envelope.limits.tightened(self._settings.limits)
        assert isinstance(bounds.result, int) and isinstance(bounds.output, int)
        return Job(
            job_id=envelope.job_id,
            task=envelope.task,
            arguments=envelope.arguments,
            timeout=self._timeout(envelope),
            result_max=bounds.result,
            output_max=bounds.output,
            attempt=envelope.attempt,
        )

    def _timeout(self, envelope: Envelope) -> float:
        return envelope.timeout or self._settings.sandbox_default_timeout

    # --- settling ---------------------------------------------------------------------------

    async def _settle(self, delivery: Delivery, verdict: Verdict) -> None:
        """Outcome first, acknowledgement after: it is worse to lose an outcome than to run twice."""
        if verdict.outcome is None:
            delivery.give_back()
            return
        if verdict.reply_to:
            try:
                wanted = await self._broker.publish_reply(
                    verdict.reply_to, outcome_to_message(verdict.outcome)
                )
            except BrokerUnavailable as exc:
                log.error("an outcome could not be published: its job will be run again", extra={"cause": exc})
                delivery.give_back()
                return
            if not wanted:
                log.info("nobody waits for an outcome any more", extra={"job": verdict.outcome.job_id})
        delivery.ack()
