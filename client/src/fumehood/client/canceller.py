"""Cancels that nobody waits for: of jobs whose callers were cancelled themselves."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable

from fumehood.common.errors import FumehoodError

log = logging.getLogger("fumehood.client")

_SENDERS = 8  # tasks at most; ten thousand callers may be cancelled at once
_WAITING = 100_000  # cancels at most; beyond that the oldest are given up
_PATIENCE = 5.0  # seconds for one cancel
_GRACE = 1.0  # seconds for what is left when the client closes


class Canceller:
    """Sends cancels in the background: best effort, bounded in tasks, memory and time."""

    def __init__(self, send: Callable[[str], Awaitable[None]]) -> None:
        self._send = send
        self._waiting: deque[str] = deque(maxlen=_WAITING)
        self._senders: set[asyncio.Task[None]] = set()

    def add(self, job_id: str) -> None:
        """Cancel that job soon."""
        self._waiting.append(job_id)
        if len(self._senders) < _SENDERS:
            sender = asyncio.create_task(self._drain(), name="fumehood-cancel")
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)

    async def close(self) -> None:
        """Give what is left a moment, then give it up."""
        if self._senders:
            await asyncio.wait(tuple(self._senders), timeout=_GRACE)
        self._waiting.clear()
        left = tuple(self._senders)
        for sender in left:
            sender.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def _drain(self) -> None:
        while self._waiting:
            job_id = self._waiting.popleft()
            try:
                async with asyncio.timeout(_PATIENCE):
                    await self._send(job_id)
            except (FumehoodError, TimeoutError) as cause:
                # The job ends at its own timeout all the same.
                log.debug("could not cancel a job: %s", cause, extra={"job_id": job_id})
