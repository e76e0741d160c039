"""The seam between Fumehood and a message broker.

Every adapter passes ``tests/conformance``. What holds for all of them:

* A publish returns only when the broker has the message safely, and raises ``UnknownQueue``,
  ``QueueFull`` or ``BrokerUnavailable`` otherwise. Vendor errors never cross this seam.
* A delivery is handed over by a plain call that must return at once; nothing runs inside it.
* A delivery is settled once. Settling one whose connection is gone does nothing: the broker
  gives that job back by itself.
* Consumption survives broker trouble: after an outage every consumer is there again, without
  the caller's doing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from fumehood.common.message import Message


class Delivery(ABC):
    """One job message in a node's hands, not yet settled."""

    __slots__ = ()

    message: Message
    queue: str
    redelivered: bool
    acquired_count: int  # times that the broker handed this message out before; 0 the first time

    @abstractmethod
    def ack(self) -> None:
        """Settle: the job is done with. Sent soon, not awaited; a lost ack means a redelivery."""

    @abstractmethod
    def give_back(self) -> None:
        """Return the job unharmed for another node to take (a shutdown, not a failure)."""

    @abstractmethod
    def reject(self) -> None:
        """Return the job counted as a failed delivery."""


OnDelivery = Callable[[Delivery], None]
OnMessage = Callable[[Message], None]


class Subscription(ABC):
    """A standing wish to receive messages; kept alive across broker trouble until closed."""

    @abstractmethod
    async def close(self) -> None:
        """Stop receiving. Deliveries already handed over stay valid. Idempotent."""


class Broker(ABC):
    """A connection to a broker, kept alive: ``start`` once, ``stop`` once, rebuilt in between."""

    @abstractmethod
    async def start(self) -> None:
        """Connect. Raises ``BrokerUnavailable`` when no host answers within the connect timeout."""

    @abstractmethod
    async def stop(self) -> None:
        """Flush pending acks, close every connection, fail what still waits. Idempotent."""

    @abstractmethod
    async def declare_queue(self, queue: str) -> None:
        """Make the job queue ``queue`` exist.

        Raises ``ConfigurationError`` if it exists differently.
        """

    @abstractmethod
    async def publish_job(
        self, queue: str, message: Message, *, deadline: float | None = None
    ) -> None:
        """Put a job on ``queue`` and wait until it is safe there.

        ``deadline`` is an instant of ``time.monotonic()``; without one the adapter's own
        publish timeout holds. Raises ``UnknownQueue``, ``QueueFull``, ``BrokerUnavailable``.
        """

    @abstractmethod
    async def consume_jobs(
        self, queue: str, prefetch: int, on_delivery: OnDelivery
    ) -> Subscription:
        """Receive jobs of ``queue``, at most ``prefetch`` unsettled at a time."""

    @abstractmethod
    async def publish_reply(self, reply_to: str, message: Message) -> bool:
        """Send an outcome, confirmed. False when nobody holds that reply address any more.

        Raises ``BrokerUnavailable`` when it cannot be confirmed.
        """

    @abstractmethod
    async def open_replies(self, client: str, on_message: OnMessage) -> tuple[str, Subscription]:
        """Open a reply address for this client and receive its outcomes.

        Returns the address, to be sent as ``reply_to``; it stays the same across reconnects.
        """

    @abstractmethod
    async def publish_control(self, message: Message) -> None:
        """Send a control message (a cancel) to every node that listens now."""

    @abstractmethod
    async def consume_control(self, on_message: OnMessage) -> Subscription:
        """Receive control messages from now on."""

    @property
    @abstractmethod
    def connected(self) -> bool:
        """Whether the broker can be used at this moment."""

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()
