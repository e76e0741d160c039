"""Which jobs of a client still have no outcome, and who gets it when it comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from fumehood.client.errors import ClientMisused
from fumehood.common.envelope import outcome_from_message
from fumehood.common.errors import ClientClosed, MalformedMessage
from fumehood.common.message import TYPE_OUTCOME, Message
from fumehood.common.outcome import Outcome

log = logging.getLogger("fumehood.client")

_QUIET = 60.0  # seconds between two warnings about messages that were ignored
_SHOWN = 5  # ids named when a client closes over pending jobs


@dataclass(frozen=True, slots=True)
class Closed:
    """Stands for an outcome that the client will not see: it was closed first.

    A value, not an exception: one set on a future that nobody reads would be complained about.
    """

    pending: int
    ids: tuple[str, ...]

    def error(self, job_id: str) -> ClientClosed:
        """A new error for the handle of that job; a shared one would collect tracebacks."""
        more = ", ..." if self.pending > len(self.ids) else ""
        return ClientClosed(
            f"the client was closed before the outcome of job {job_id} arrived; the job goes on "
            f"({self.pending} were pending: {', '.join(self.ids)}{more})"
        )


Reply = asyncio.Future[Outcome | Closed]


class Replies:
    """The replies that one client awaits, by job id. Belongs to one event loop."""

    def __init__(self, made_here: Callable[[str], bool]) -> None:
        # Weak: a reply lives as long as a handle that can ask for it, so that jobs whose handles
        # were dropped, and enqueues that failed, leave nothing behind without any bookkeeping.
        self._open: WeakValueDictionary[str, Reply] = WeakValueDictionary()
        # Strong, while somebody waits: asyncio itself refers to waiting tasks only weakly.
        self._waits: dict[Reply, int] = {}
        self._made_here = made_here
        self._quiet_until = 0.0
        self._closed = False
        #: Messages ignored so far: "late" (a handle was dropped), "unknown", "malformed".
        self.ignored: Counter[str] = Counter()

    def __len__(self) -> int:
        """How many jobs with a living handle have no outcome yet."""
        return len(self._open)

    def expect(self, job_id: str) -> Reply:
        """The reply of that job; the one already awaited, if there is one.

        The caller keeps it alive: who drops it has nothing to undo. Raises ``ClientClosed``.
        """
        if self._closed:
            raise ClientClosed("the client was closed before the job was sent")
        reply = self._open.get(job_id)
        if reply is None:
            reply = asyncio.get_running_loop().create_future()
            self._open[job_id] = reply
        return reply

    async def wait(self, reply: Reply, timeout: float | None) -> bool:
        """Wait at most ``timeout`` seconds; whether the reply is there. Cancelling harms nobody."""
        if reply.done():
            return True
        if reply.get_loop() is not asyncio.get_running_loop():
            raise ClientMisused("this job was enqueued in another event loop: await it there")
        self._waits[reply] = self._waits.get(reply, 0) + 1
        try:
            done, _ = await asyncio.wait((reply,), timeout=timeout)
        finally:
            left = self._waits.pop(reply) - 1
            if left:
                self._waits[reply] = left
        return bool(done)

    def waited(self, job_id: str) -> bool:
        """Whether anybody waits for that job at this moment."""
        reply = self._open.get(job_id)
        return reply is not None and reply in self._waits

    def receive(self, message: Message) -> None:
        """Take an outcome message. Anybody may write to a reply address, so nothing here raises."""
        job_id = message.correlation_id
        if message.type != TYPE_OUTCOME:
            self._ignore("malformed", job_id, f"its type is {message.type!r}")
            return
        reply = self._open.get(job_id)
        if reply is None:
            self._ignore(
                "late" if self._made_here(job_id) else "unknown", job_id, "nobody awaits it"
            )
            return
        try:
            outcome = outcome_from_message(message)
        except MalformedMessage as cause:
            self._ignore("malformed", job_id, str(cause))
            return
        # Gone from here at once: the first outcome is final, and the id may be used for a new job.
        del self._open[job_id]
        reply.set_result(outcome)

    def close(self) -> None:
        """End every wait with ``ClientClosed``, and expect no more."""
        self._closed = True
        pending = dict(self._open.items())
        closed = Closed(len(pending), tuple(list(pending)[:_SHOWN]))
        self._open.clear()
        for reply in pending.values():
            reply.set_result(closed)

    def _ignore(self, kind: str, job_id: str, why: str) -> None:
        self.ignored[kind] += 1
        if kind == "late":
            log.debug("ignored an outcome whose handle was dropped", extra={"job_id": job_id})
            return
        now = time.monotonic()
        if now < self._quiet_until:
            return
        self._quiet_until = now + _QUIET
        log.warning(
            "ignored %d unknown and %d malformed outcomes so far; now one of job %.150r: %.300s",
            self.ignored["unknown"],
            self.ignored["malformed"],
            job_id,
            why,
        )
