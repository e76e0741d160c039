"""Publishing with confirms, many at a time.

All publishes of one loop tick leave in one write. Each waits on a future of its own, which the
broker's confirm, the message's return, the deadline or the end of the channel resolves.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from enum import Enum
from secrets import token_hex

from fumehood.broker.rabbitmq import wire as bytes_of
from fumehood.broker.rabbitmq.connection import Supervisor, Wire
from fumehood.broker.rabbitmq.errors import edge
from fumehood.broker.rabbitmq.lane import Lane
from fumehood.broker.rabbitmq.reader import LaneUser
from fumehood.broker.rabbitmq.topology import declare_exchanges
from fumehood.common.errors import BrokerUnavailable, FumehoodError, PayloadTooLarge
from fumehood.common.message import Message

log = logging.getLogger("fumehood.broker")

# The publisher has a connection to itself and always this channel, so that frames can be packed
# before it is known which generation of the connection will carry them.
_CHANNEL = 1
_BATCH = 256 * 1024  # bytes in one write; past it the socket's own back-pressure is awaited
_SETUP_TIMEOUT = 10.0  # seconds to open the channel and see to the exchanges
_PAUSE = 0.2  # seconds before the channel is tried again


class Verdict(Enum):
    """What the broker said about one publish."""

    CONFIRMED = "confirmed"
    RETURNED = "returned"  # no queue is bound under this key
    REFUSED = "refused"  # a queue is full


class _Publish:
    """One message on its way."""

    __slots__ = ("future", "message_id", "payload", "returned", "size")

    def __init__(
        self, message_id: str, payload: list[bytes], future: asyncio.Future[Verdict]
    ) -> None:
        self.message_id = message_id
        self.payload = payload  # emptied once written: a late confirm must not hold the body
        self.size = sum(map(len, payload))
        self.future = future
        self.returned = False


class Publisher(LaneUser):
    """The publishing side of one broker handle."""

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor
        self._options = supervisor.options
        self._lane: Lane | None = None
        self._frame_max = 131_072  # bytes, until a broker says otherwise
        self._prefix = token_hex(6)
        self._count = 0
        self._outbox: deque[_Publish] = deque()
        self._pending: dict[int, _Publish] = {}  # by delivery tag: sent, not confirmed
        self._by_id: dict[str, _Publish] = {}  # the same, by message id
        self._sent = 0  # the last delivery tag used on this channel
        self._confirmed = 0  # every tag up to here is confirmed
        self._scheduled = False
        self._draining = False
        self._blocked_since: float | None = None
        self._grace: asyncio.TimerHandle | None = None
        self._keeper: asyncio.Task[None] | None = None
        supervisor.on_blocked = self._on_blocked

    @property
    def ready(self) -> bool:
        """Whether a message would leave at once."""
        return self._lane is not None and self._lane.usable and self._supervisor.blocked is None

    async def start(self) -> None:
        """Open a channel, and keep one open. Raises our errors when the first cannot be had."""
        try:
            lane = await self._open(await self._supervisor.ready())
        except TimeoutError:
            raise BrokerUnavailable("the publisher's channel was not opened in time") from None
        self._lane = lane
        self._keeper = asyncio.create_task(self._keep(lane), name="fumehood-publisher")

    async def stop(self) -> None:
        """Fail what still waits, and publish no more."""
        keeper, self._keeper = self._keeper, None
        if keeper is not None:
            keeper.cancel()
            await asyncio.wait({keeper})
        if self._grace is not None:
            self._grace.cancel()
        self._fail(self._take_all(), "the broker handle was stopped")

    async def publish(
        self,
        exchange: str,
        routing_key: str,
        message: Message,
        *,
        mandatory: bool = True,
        persistent: bool = True,
        deadline: float | None = None,
    ) -> Verdict:
        """Send one message and wait for the broker's word.

        ``deadline`` is an instant of ``time.monotonic()``. Raises ``BrokerUnavailable`` when it
        passes, when the connection is lost in between or while the broker takes no messages.
        """
        self._check(message)
        loop = asyncio.get_running_loop()
        timeout = self._options.publish_timeout
        if deadline is not None:
            timeout = deadline - time.monotonic()
        self._count += 1
        message_id = f"{self._prefix}-{self._count:x}"
        payload = [bytes_of.publish_method(_CHANNEL, exchange, routing_key, mandatory)]
        payload += bytes_of.content(
            _CHANNEL, message, message_id, persistent=persistent, frame_max=self._frame_max
        )
        entry = _Publish(message_id, payload, loop.create_future())
        self._outbox.append(entry)
        self._schedule()
        timer = loop.call_later(max(timeout, 0.0), self._expire, entry)
        try:
            return await entry.future
        finally:
            timer.cancel()
            entry.payload = []

    def _check(self, message: Message) -> None:
        if self._keeper is None:
            raise BrokerUnavailable("the broker handle is not started, or was stopped")
        if len(message.body) > self._options.max_message_bytes:
            limit = self._options.max_message_bytes
            raise PayloadTooLarge(f"a body of {len(message.body)} bytes is over {limit}")
        since = self._blocked_since
        if since is not None and time.monotonic() - since >= self._options.blocked_grace:
            raise BrokerUnavailable(self._blocked_text())

    # --- sending ----------------------------------------------------------------------------

    def _schedule(self) -> None:
        if not self._scheduled:
            self._scheduled = True
            asyncio.get_running_loop().call_soon(self._flush)

    def _flush(self) -> None:
        self._scheduled = False
        lane = self._lane
        if lane is None or self._draining or self._blocked_since is not None:
            return
        if not lane.usable:
            return  # what has not been sent can wait for the next connection
        parts: list[bytes] = []
        size = 0
        room = self._options.publish_window - len(self._pending)
        while self._outbox and room > 0 and size < _BATCH:
            entry = self._outbox.popleft()
            if entry.future.done():
                continue
            self._sent += 1
            self._pending[self._sent] = entry
            self._by_id[entry.message_id] = entry
            parts += entry.payload
            size += entry.size
            entry.payload = []
            room -= 1
        if parts:
            self._write(lane, b"".join(parts), large=size >= _BATCH)

    def _write(self, lane: Lane, payload: bytes, *, large: bool) -> None:
        if not large:
            lane.send(payload)
            return
        drained = asyncio.get_running_loop().create_future()
        drained.add_done_callback(self._on_drained)
        self._draining = True
        lane.send(payload, drained)

    def _on_drained(self, _: asyncio.Future[None]) -> None:
        self._draining = False
        self._schedule()

    # --- what the broker says ---------------------------------------------------------------

    def on_confirm(self, tag: int, multiple: bool, positive: bool) -> None:
        """basic.ack or basic.nack; work in proportion to what it confirms."""
        if not multiple:
            self._settle(tag, positive)
        else:
            while self._confirmed < tag:
                self._confirmed += 1
                self._settle(self._confirmed, positive)
        if self._outbox:
            self._schedule()

    def _settle(self, tag: int, positive: bool) -> None:
        entry = self._pending.pop(tag, None)
        if entry is None:
            return
        del self._by_id[entry.message_id]
        if entry.future.done():
            return
        if not positive:
            entry.future.set_result(Verdict.REFUSED)
        else:
            entry.future.set_result(Verdict.RETURNED if entry.returned else Verdict.CONFIRMED)

    def on_return(self, content: bytes_of.Content) -> None:
        """basic.return: it comes before the confirm of the same message."""
        entry = self._by_id.get(content.message_id)
        if entry is not None:
            entry.returned = True

    # --- trouble ----------------------------------------------------------------------------

    def _expire(self, entry: _Publish) -> None:
        if entry.future.done():
            return
        if self._blocked_since is not None:
            text = self._blocked_text()
        elif self._lane is None or not self._lane.usable:
            text = f"no connection to the broker: {self._supervisor.last_trouble}"
        else:
            text = "the broker did not confirm the message in time"
        entry.future.set_exception(BrokerUnavailable(text))

    def _on_blocked(self, reason: str | None) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None
        if reason is None:
            self._blocked_since = None
            self._schedule()
            return
        log.warning("broker takes no messages", extra={"reason": reason})
        self._blocked_since = time.monotonic()
        loop = asyncio.get_running_loop()
        self._grace = loop.call_later(self._options.blocked_grace, self._fail_blocked)

    def _fail_blocked(self) -> None:
        # What was sent keeps its tag: its confirm arrives when the alarm is over.
        waiting = [*self._pending.values(), *self._outbox]
        self._outbox.clear()
        self._fail(waiting, self._blocked_text())

    def _blocked_text(self) -> str:
        return f"the broker takes no messages now: {self._supervisor.blocked}"

    def _take_all(self) -> list[_Publish]:
        waiting = [*self._take_pending(), *self._outbox]
        self._outbox.clear()
        return waiting

    def _take_pending(self) -> list[_Publish]:
        pending = list(self._pending.values())
        self._pending.clear()
        self._by_id.clear()
        self._sent = self._confirmed = 0
        return pending

    @staticmethod
    def _fail(entries: list[_Publish], text: str) -> None:
        for entry in entries:
            if not entry.future.done():
                entry.future.set_exception(BrokerUnavailable(text))

    # --- keeping a channel open -------------------------------------------------------------

    async def _keep(self, lane: Lane) -> None:
        while True:
            why = await self._serve(lane)
            log.warning("publisher channel lost", extra={"cause": why})
            lane = await self._reopen()

    async def _reopen(self) -> Lane:
        while True:
            wire = await self._supervisor.ready()
            try:
                return await self._open(wire)
            except (FumehoodError, TimeoutError) as exc:
                log.warning("publisher channel not opened", extra={"cause": str(exc)})
                await asyncio.sleep(_PAUSE)

    async def _open(self, wire: Wire) -> Lane:
        async with asyncio.timeout(_SETUP_TIMEOUT):
            with edge("open the publisher's channel"):
                await declare_exchanges(wire)
                return await wire.open_lane(self, confirms=True, number=_CHANNEL)

    async def _serve(self, lane: Lane) -> str:
        self._frame_max = min(lane.wire.frame_max, self._frame_max)
        self._lane = lane
        self._draining = False
        self._schedule()
        try:
            return await asyncio.shield(lane.ended)
        finally:
            self._lane = None
            text = "the connection was lost before the broker confirmed the message"
            self._fail(self._take_pending(), text)
