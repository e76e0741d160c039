"""Outcomes on their way out: published again while that may help, for a bounded time."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from dataclasses import replace

from fumehood.broker.interface import Broker
from fumehood.common.envelope import outcome_to_message
from fumehood.common.errors import BrokerUnavailable, FumehoodError, PayloadTooLarge
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.worker.unclaimed import Unclaimed

log = logging.getLogger("fumehood.worker")

_REASON_MAX = 2000  # characters
_MESSAGE = "message"  # the limit that an outcome exceeded which the broker does not carry
_PAUSE = 0.5  # seconds, jittered, before an outcome is published again


class Outbox:
    """Publishes outcomes; tries each for about ``timeout`` seconds, or once when in a ``hurry``."""

    def __init__(self, broker: Broker, timeout: float) -> None:
        self._broker = broker
        self._timeout = timeout
        self._unclaimed = Unclaimed(broker)
        self.hurry = False

    async def close(self) -> None:
        """Give up outcomes that nobody took."""
        await self._unclaimed.close()

    async def publish(self, reply_to: str, outcome: Outcome) -> bool:
        """Whether the broker has the outcome, or nobody can have it now.

        It is tried for about ``publish_timeout``: meanwhile the job is held, so that a node whose
        outcomes do not get through takes no more jobs.
        """
        give_up = time.monotonic() + self._timeout
        while True:
            try:
                message = outcome_to_message(outcome)
                if await self._broker.publish_reply(reply_to, message):
                    self._unclaimed.seen(reply_to)
                else:
                    self._unclaimed.add(reply_to, message)
                return True
            except BrokerUnavailable as exc:
                pause = _PAUSE * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
                if self.hurry or time.monotonic() + pause >= give_up:
                    facts = {"job": outcome.job_id, "cause": str(exc)}
                    log.error("an outcome was not published: its job is given back", extra=facts)
                    return False
                await asyncio.sleep(pause)
            except FumehoodError as exc:
                if not isinstance(exc, PayloadTooLarge) or outcome.limit == _MESSAGE:
                    # Trying again cannot help, here or elsewhere.
                    facts = {"job": outcome.job_id, "cause": str(exc)}
                    log.error("an outcome cannot be published", extra=facts)
                    return True
                outcome = _too_large(outcome, str(exc))


def _too_large(outcome: Outcome, why: str) -> Outcome:
    """What is said instead of an outcome that the broker does not carry."""
    reason = f"the outcome ({outcome.status}) is too large to be sent: {why}"
    return replace(
        outcome,
        status=Status.LIMIT_EXCEEDED,
        blame=Blame.LIMIT,
        limit=_MESSAGE,
        reason=reason[:_REASON_MAX],
        value_bytes=None,
        error=None,
        stack="",
        stdout=b"",
        stderr=b"",
        output_dropped=outcome.output_dropped + len(outcome.stdout) + len(outcome.stderr),
    )
