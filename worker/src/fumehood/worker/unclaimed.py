"""Outcomes whose reply address is not there: the producer is gone, or not back yet.

A broker that restarts forgets the reply queues, and a node may be connected again seconds before
the producer is. So an outcome that nobody takes is offered again for a while. Its job is settled
meanwhile: producers that left for good are common, and must not hold a node's jobs up.
"""

from __future__ import annotations

import asyncio
import logging
import time
from dataclasses import dataclass, field

from fumehood.broker.interface import Broker
from fumehood.common.errors import BrokerUnavailable, FumehoodError
from fumehood.common.message import Message
from fumehood.worker.remembered import Recent

log = logging.getLogger("fumehood.worker")

_PATIENCE = 30.0  # seconds; a producer tries to reconnect at least every ten
_PAUSE_FIRST, _PAUSE_MAX = 0.1, 3.0  # seconds between two offers
_ADDRESSES_MAX = 1_000
_BYTES_MAX = 64 << 20


@dataclass(slots=True)
class _Address:
    """Outcomes for one reply address, and who offers them."""

    messages: list[Message] = field(default_factory=list[Message])
    offering: asyncio.Task[None] | None = None


class Unclaimed:
    """Outcomes that nobody took yet, by address; bounded in number, size and time."""

    def __init__(self, broker: Broker) -> None:
        self._broker = broker
        self._waiting: dict[str, _Address] = {}
        self._gone = Recent(_ADDRESSES_MAX)  # addresses that were waited for in vain
        self._size = 0

    def __len__(self) -> int:
        """How many outcomes wait."""
        return sum(len(address.messages) for address in self._waiting.values())

    def add(self, reply_to: str, message: Message) -> None:
        """Offer this outcome again, soon."""
        known = reply_to in self._waiting or len(self._waiting) < _ADDRESSES_MAX
        full = self._size + len(message.body) > _BYTES_MAX
        if reply_to in self._gone or full or not known:
            log.info("nobody waits for an outcome", extra={"job": message.correlation_id})
            return
        address = self._waiting.setdefault(reply_to, _Address())
        address.messages.append(message)
        self._size += len(message.body)
        if address.offering is None:
            offer = self._offer(reply_to, address)
            address.offering = asyncio.get_running_loop().create_task(offer)

    def seen(self, reply_to: str) -> None:
        """Somebody holds that address."""
        if len(self._gone):
            self._gone.discard(reply_to)

    async def close(self) -> None:
        """Give up what nobody took."""
        tasks = [address.offering for address in self._waiting.values() if address.offering]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _offer(self, reply_to: str, address: _Address) -> None:
        pause, give_up = _PAUSE_FIRST, time.monotonic() + _PATIENCE
        try:
            while address.messages and time.monotonic() < give_up:
                await asyncio.sleep(pause)
                try:
                    if await self._broker.publish_reply(reply_to, address.messages[0]):
                        self._size -= len(address.messages.pop(0).body)
                        pause = 0.0
                        continue
                except BrokerUnavailable:
                    give_up = time.monotonic() + _PATIENCE  # the producer has no broker, either
                pause = min(_PAUSE_MAX, max(_PAUSE_FIRST, pause * 2))
        except FumehoodError as exc:
            log.warning("an outcome was given up", extra={"cause": str(exc)})
        finally:
            del self._waiting[reply_to]
            self._size -= sum(len(message.body) for message in address.messages)
            if address.messages:
                self._gone.add(reply_to)
                facts = {"reply_to": reply_to, "outcomes": len(address.messages)}
                log.info("nobody came for outcomes", extra=facts)
