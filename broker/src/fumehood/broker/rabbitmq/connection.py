"""One connection to a cluster, kept alive: the only place that connects and reconnects."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Callable
from typing import Any

from aiormq import exceptions as vendor
from aiormq.abc import ChannelFrame
from aiormq.connection import Connection, FrameReceiver, TransportFactory
from pamqp import commands as spec
from pamqp import frame as amqp_frame
from pamqp.base import Frame
from pamqp.frame import FrameTypes
from tenacity import AsyncRetrying, retry_if_exception, wait_random_exponential
from yarl import URL

from fumehood.broker.options import BrokerOptions
from fumehood.broker.rabbitmq.address import Address
from fumehood.broker.rabbitmq.errors import (
    TROUBLE,
    Refused,
    explain,
    honest_cancellation,
    is_refusal,
)
from fumehood.broker.rabbitmq.lane import Lane
from fumehood.broker.rabbitmq.reader import FrameReader, LaneUser
from fumehood.common.errors import BrokerUnavailable

log = logging.getLogger("fumehood.broker")

_READ_BUFFER = 1024 * 1024  # bytes; asyncio's 64 KiB would pause the socket for every large frame
_FIRST_BACKOFF = 0.1  # seconds

Streams = tuple[FrameReader, asyncio.StreamWriter]
OnBlocked = Callable[[str | None], None]


class _Opened(TransportFactory):
    """Hands aiormq a socket that is already connected, with our options on it."""

    def __init__(self, streams: Streams) -> None:
        self._streams = streams

    async def create(self, url: URL, **kwargs: Any) -> Streams:
        return self._streams


class Wire(Connection):
    """One live AMQP connection, of one generation."""

    HEARTBEAT_GRACE_MULTIPLIER = 2  # the protocol's own rule; aiormq waits for three

    def __init__(self, address: Address, streams: Streams, heartbeat: int, name: str) -> None:
        url = address.url
        if "heartbeat" not in url.query:
            url = url.update_query(heartbeat=str(heartbeat))
        super().__init__(
            url,
            transport_factory=_Opened(streams),
            client_properties={"connection_name": name, "product": "fumehood"},
        )
        # Nothing of ours may wait for room here: acks and batches are put without awaiting. What is
        # in flight is bounded by the publish window and by prefetch instead.
        self.frames: asyncio.Queue[ChannelFrame] = asyncio.Queue()
        self.write_queue = self.frames
        self.reader = streams[0]
        self.address = address
        self.generation = 0
        self.on_blocked: OnBlocked | None = None
        self._transport = streams[1].transport

    @property
    def end(self) -> asyncio.Future[Any]:
        """A future of its own for each caller, done when the connection is closed."""
        closing: Any = self.closing  # pyright: ignore[reportUnknownMemberType, reportUnknownVariableType]
        return closing  # type: ignore[no-any-return]

    @property
    def frame_max(self) -> int:
        """Bytes of the largest frame that both sides accept."""
        return self.connection_tune.frame_max or 131_072

    async def open_lane(self, user: LaneUser, *, confirms: bool = False, number: int = 0) -> Lane:
        """Open a channel, under this number or the lowest free one above 1.

        1 is for those who have to know their number beforehand.
        """
        number = number or next(n for n in range(2, 65_536) if n not in self.channels)
        if number in self.channels:
            raise vendor.ChannelInvalidStateError(f"channel {number} is still closing")
        lane = Lane(self, number, user, confirms=confirms)
        await lane.channel.open()
        return lane

    async def shut(self, timeout: float) -> None:
        """Close in order, or cut the socket after ``timeout`` seconds."""
        closing = asyncio.ensure_future(self.close())
        try:
            await asyncio.wait({closing}, timeout=timeout)
            if not closing.done():
                self.cut()
                await asyncio.wait({closing}, timeout=timeout)
        finally:
            self.cut()
            closing.cancel()

    def cut(self) -> None:
        """Drop the socket at once."""
        self._transport.abort()

    @staticmethod
    async def _rpc(
        request: Frame,
        writer: asyncio.StreamWriter,
        frame_receiver: FrameReceiver,
        wait_response: bool = True,
    ) -> FrameTypes | None:
        # aiormq's own reports a refused vhost as an unexpected frame and loses the broker's reason.
        writer.write(amqp_frame.marshal(request, 0))
        await writer.drain()
        if not wait_response:
            return None
        _, _, answer = await frame_receiver.get_frame()
        if isinstance(answer, spec.Connection.Close):
            _raise_closed(answer)
        return answer

    # aiormq has no public hook for these two frames; defining the names that it calls is the way to
    # learn of an alarm. The memory alarm test fails if they ever change.
    async def _Connection__handle_connection_blocked(  # noqa: N802
        self, frame: spec.Connection.Blocked
    ) -> None:
        if self.on_blocked:
            self.on_blocked(frame.reason or "resource alarm")

    async def _Connection__handle_connection_unblocked(  # noqa: N802
        self, _: spec.Connection.Unblocked
    ) -> None:
        if self.on_blocked:
            self.on_blocked(None)


def _raise_closed(answer: spec.Connection.Close) -> None:
    text = answer.reply_text or ""
    if answer.reply_code == 403:
        raise Refused(f"wrong user name or password: {text}")
    if answer.reply_code == 530:
        raise Refused(f"vhost not usable: {text}")
    raise vendor.ConnectionClosed(answer.reply_code, text)


async def open_wire(address: Address, options: BrokerOptions, name: str) -> Wire:
    """Connect and log in. Raises vendor errors, ``OSError`` or ``Refused``."""
    context = await asyncio.to_thread(_tls_context, address) if address.tls else None
    streams = await _open_streams(address, context)
    try:
        _set_socket_options(streams[1], options)
        wire = Wire(address, streams, options.heartbeat, name)
        with honest_cancellation():
            await wire.connect()  # pyright: ignore[reportUnknownMemberType]
    except BaseException:
        streams[1].transport.abort()
        raise
    return wire


async def _open_streams(address: Address, context: ssl.SSLContext | None) -> Streams:
    loop = asyncio.get_running_loop()
    reader = FrameReader(_READ_BUFFER, loop)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    transport, _ = await loop.create_connection(
        lambda: protocol, address.host, address.port, ssl=context
    )
    return reader, asyncio.StreamWriter(transport, protocol, reader, loop)


def _tls_context(address: Address) -> ssl.SSLContext:
    query = address.url.query
    context = ssl.create_default_context(cafile=query.get("cafile"), capath=query.get("capath"))
    if "certfile" in query:
        context.load_cert_chain(query["certfile"], query.get("keyfile"))
    return context


def _set_socket_options(writer: asyncio.StreamWriter, options: BrokerOptions) -> None:
    raw = writer.get_extra_info("socket")
    if raw is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
        milliseconds = int(options.user_timeout * 1000)
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class NoHost(Exception):
    """One round over all hosts failed. ``final`` when every one of them refused us for good."""

    def __init__(self, causes: dict[str, str], final: bool) -> None:
        super().__init__("; ".join(f"{host} ({cause})" for host, cause in causes.items()))
        self.final = final


class Supervisor:
    """Keeps one connection to one of several hosts, and counts its generations."""

    def __init__(self, purpose: str, addresses: list[Address], options: BrokerOptions) -> None:
        self.purpose = purpose
        self.options = options
        self.generation = 0
        self.wire: Wire | None = None
        self.blocked: str | None = None  # the broker's reason while it does not take messages
        self.on_blocked: OnBlocked | None = None
        self.last_trouble = "not connected yet"
        self._addresses = addresses
        self._turn = 0
        self._up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Connect for the first time. Raises ``BrokerUnavailable`` after ``connect_timeout``."""
        timeout = self.options.connect_timeout
        try:
            async with asyncio.timeout(timeout):
                wire = await self._connect(give_up_on_refusal=True)
        except NoHost as exc:
            raise BrokerUnavailable(f"the broker refused the connection: {exc}") from None
        except TimeoutError:
            raise BrokerUnavailable(
                f"no broker answered within {timeout:g} s: {self.last_trouble}"
            ) from None
        self._adopt(wire)
        self._keeper = asyncio.create_task(self._keep(), name=f"fumehood-{self.purpose}")

    async def stop(self) -> None:
        """Close the connection for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.wait({self._keeper})
        wire, self.wire = self.wire, None
        if wire is not None:
            await wire.shut(self.options.stop_timeout)

    async def ready(self) -> Wire:
        """The live connection; waits for one without a limit of its own."""
        while True:
            wire = self.wire
            if wire is None or not self._up.is_set():
                await self._up.wait()
            elif wire.is_opened:
                return wire
            else:
                await asyncio.wait({wire.end})
                await asyncio.sleep(0)  # the keeper, woken too, takes this wire away

    async def _keep(self) -> None:
        while True:
            try:
                if self.wire is not None:
                    await asyncio.wait({self.wire.end})
                    self._lost(self.wire)
                self._adopt(await self._connect(give_up_on_refusal=False))
            except Exception:
                log.exception("broker supervisor failed", extra={"purpose": self.purpose})
                await asyncio.sleep(self.options.backoff_max)

    def _lost(self, wire: Wire) -> None:
        self.wire = None
        self._up.clear()
        closing = wire.end
        exc = closing.exception() if closing.done() and not closing.cancelled() else None
        self.last_trouble = f"{wire.address} ({explain(exc) if exc else 'closed'})"
        self._set_blocked(None)
        wire.cut()
        extra = {"purpose": self.purpose, "cause": self.last_trouble}
        log.warning("broker connection lost", extra=extra)

    async def _connect(self, *, give_up_on_refusal: bool) -> Wire:
        def worth_retrying(exc: BaseException) -> bool:
            return isinstance(exc, NoHost) and not (exc.final and give_up_on_refusal)

        async for attempt in AsyncRetrying(
            wait=wait_random_exponential(_FIRST_BACKOFF, self.options.backoff_max),
            retry=retry_if_exception(worth_retrying),
            reraise=True,
        ):
            with attempt:
                return await self._try_hosts()
        raise AssertionError("retries have no end")

    def _adopt(self, wire: Wire) -> None:
        self.generation += 1
        wire.generation = self.generation
        wire.on_blocked = self._set_blocked
        self.wire = wire
        self._up.set()
        address = str(wire.address)
        extra = {"purpose": self.purpose, "address": address, "generation": self.generation}
        log.info("broker connected", extra=extra)

    async def _try_hosts(self) -> Wire:
        causes: dict[str, str] = {}
        refusals = 0
        share = self.options.connect_timeout / len(self._addresses)
        for _ in self._addresses:
            address = self._addresses[self._turn % len(self._addresses)]
            self.last_trouble = "; ".join(
                [
                    *(f"{host} ({why})" for host, why in causes.items()),
                    f"{address} (no answer in time)",
                ]
            )
            try:
                async with asyncio.timeout(share):
                    return await open_wire(address, self.options, f"fumehood-{self.purpose}")
            except (Refused, *TROUBLE) as exc:
                causes[str(address)] = explain(exc)
                refusals += is_refusal(exc)
                self._turn += 1  # the next round starts with another host
        trouble = NoHost(causes, final=refusals == len(self._addresses))
        self.last_trouble = str(trouble)
        log.warning("no broker host usable", extra={"purpose": self.purpose, "cause": str(trouble)})
        raise trouble

    def _set_blocked(self, reason: str | None) -> None:
        if reason == self.blocked:
            return
        self.blocked = reason
        if self.on_blocked:
            self.on_blocked(reason)
