"""Settling deliveries: collected for one tick of the loop, written at once."""

from __future__ import annotations

from collections.abc import Callable

from fumehood.broker.rabbitmq import wire as bytes_of
from fumehood.broker.rabbitmq.lane import Lane


class Acks:
    """The settlements of one consumer's channel.

    Delivery tags count from 1 on a channel. ``multiple`` acks everything below a tag, so it is used
    only as far as no delivery is unsettled.
    """

    def __init__(self) -> None:
        self.lane: Lane | None = None
        self.unsettled = 0
        self.when_idle: Callable[[], object] | None = None  # once nothing is unsettled
        self._floor = 0  # every tag up to here is settled
        self._settled: set[int] = set()  # settled tags above the floor
        self._acked: list[int] = []
        self._returned: list[bytes] = []
        self._scheduled = False

    @property
    def alive(self) -> bool:
        """Whether the broker can still be told: the channel is the one that delivered."""
        return self.lane is not None and self.lane.alive

    def ack(self, tag: int) -> None:
        """Settle one delivery."""
        self._acked.append(tag)
        self._settle(tag)

    def give_back(self, tag: int) -> None:
        """Requeue one delivery, not as a failure."""
        if self.lane is not None:
            self._returned.append(bytes_of.give_back(self.lane.number, tag))
        self._settle(tag)

    def reject(self, tag: int) -> None:
        """Requeue one delivery as a failure."""
        if self.lane is not None:
            self._returned.append(bytes_of.reject(self.lane.number, tag))
        self._settle(tag)

    def flush(self) -> None:
        """Write what was collected."""
        self._scheduled = False
        lane = self.lane
        if lane is None or not lane.alive or not (self._acked or self._returned):
            return
        while self._floor + 1 in self._settled:
            self._floor += 1
            self._settled.discard(self._floor)
        acked, self._acked = self._acked, []
        # What goes back is written first: a multiple ack must not find it unsettled.
        parts, self._returned = self._returned, []
        parts += self._frames(lane.number, acked)
        lane.send(b"".join(parts))
        if self.when_idle is not None and not self.unsettled:
            self.when_idle()

    def _frames(self, channel: int, acked: list[int]) -> list[bytes]:
        prefix = [tag for tag in acked if tag <= self._floor]
        if len(prefix) < 2:
            return [bytes_of.ack(channel, tag) for tag in acked]
        above = [bytes_of.ack(channel, tag) for tag in acked if tag > self._floor]
        return [bytes_of.ack(channel, max(prefix), multiple=True), *above]

    def _settle(self, tag: int) -> None:
        self._settled.add(tag)
        self.unsettled -= 1
        if not self._scheduled and self.lane is not None:
            self._scheduled = True
            self.lane.wire.loop.call_soon(self.flush)
