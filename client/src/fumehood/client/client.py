"""``Client``: where producers enqueue calls and await their outcomes."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack, overload

from fumehood.broker.connect import connect
from fumehood.broker.interface import Broker, Subscription
from fumehood.broker.options import BrokerOptions
from fumehood.client.batch import make_all, publish_all
from fumehood.client.canceller import Canceller
from fumehood.client.errors import ClientMisused
from fumehood.client.handle import JobHandle
from fumehood.client.job import Expires, Job, JobMaker, JobOptions
from fumehood.client.replies import Replies
from fumehood.common.envelope import cancel_message
from fumehood.common.errors import ClientClosed, UnknownQueue
from fumehood.common.limits import Limits
from fumehood.common.settings import Settings, load_settings
from fumehood.common.task import Call

R = TypeVar("R")


class Client:
    """Enqueues calls and receives their outcomes; ``async with Client(url) as client``.

    ``url`` names the broker (several hosts: a list, or commas between), else ``settings`` does;
    ``settings`` default to ``load_settings()``. A ``broker`` that is passed in must be started, may
    be shared, and is left running. A client belongs to the event loop that started it, and is good
    for one start and one stop.
    """

    def __init__(
        self,
        url: str | Sequence[str] | None = None,
        *,
        settings: Settings | None = None,
        broker: Broker | None = None,
    ) -> None:
        self.settings = load_settings() if settings is None else settings
        self._url = self.settings.broker_url if url is None else url
        self._shared = broker
        self._broker: Broker | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._replies_at = ""
        self._subscription: Subscription | None = None
        self._closed = False
        self._lifecycle = asyncio.Lock()
        self._jobs = JobMaker(self.settings)
        self._replies = Replies(self._jobs.ids.made)
        self._canceller = Canceller(self._cancel_late)
        self._declare = self.settings.declare_queues
        self._declared: set[str] = set()
        self._declaring = asyncio.Lock()

    async def start(self) -> None:
        """Connect and open the reply address; nothing if that is done.

        Raises ``BrokerUnavailable``, ``ConfigurationError`` for a bad URL, ``ClientClosed``.
        """
        async with self._lifecycle:
            if self._closed:
                raise ClientClosed("this client was closed: make a new one")
            if self._broker is None:
                await self._open(self._connect() if self._shared is None else self._shared)

    async def stop(self) -> None:
        """Close: pending handles fail with ``ClientClosed``, their jobs go on. Idempotent."""
        async with self._lifecycle:
            if self._broker is not None and not self._closed:
                self._check_loop()
            self._closed = True
            broker, subscription = self._broker, self._subscription
            if broker is None or subscription is None:
                return
            self._subscription = None
            try:
                await self._canceller.close()
            finally:
                self._replies.close()
                await self._leave(broker, subscription)

    async def enqueue(
        self,
        call: Call[R],
        /,
        *,
        timeout: float | None = None,
        expires: Expires | None = None,
        queue: str | None = None,
        job_id: str | None = None,
        limits: Limits | None = None,
        reply: bool = True,
    ) -> JobHandle[R]:
        """Publish a job; returns once the broker has it safely.

        * ``timeout``: seconds that an attempt may run; else the task's, else the settings'.
        * ``expires``: seconds from now, or an aware datetime; a job not started by then never is.
        * ``queue``: else the task's.
        * ``job_id``: 1 to 128 printable ASCII characters, else a new one. Enqueueing again under
          the id of a pending job joins it: both handles get the first outcome.
        * ``limits``: what they leave open is the task's, then the node's; the settings cap them.
        * ``reply=False``: nobody wants the outcome, and the handle will never have one.

        Before anything is sent, raises ``InvalidArguments``, ``PayloadTooLarge``, ``ClientClosed``,
        ``ClientMisused``; then ``UnknownQueue``, ``QueueFull``, ``BrokerUnavailable``, and
        ``ConfigurationError`` for a declared queue that exists differently. When this is cancelled,
        the job may have been accepted all the same.
        """
        broker = self._ready()
        job = self._jobs.make(
            call,
            self._replies_at if reply else "",
            timeout=timeout,
            expires=expires,
            queue=queue,
            job_id=job_id,
            limits=limits,
        )
        return await self._publish(broker, call, job)

    async def run(
        self, call: Call[R], /, *, job_id: str | None = None, **options: Unpack[JobOptions]
    ) -> R:
        """Enqueue, wait, return the value; options and errors as in ``enqueue`` and ``result``.

        When this is cancelled the job is cancelled too, in the background, unless somebody else in
        this client waits for it. So ``asyncio.timeout`` around it bounds the whole.
        """
        job_id = self._jobs.ids.fresh() if job_id is None else job_id
        try:
            handle = await self.enqueue(call, job_id=job_id, **options)
            return await handle.result()
        except asyncio.CancelledError:
            if not (self._closed or self._replies.waited(job_id)):
                self._canceller.add(job_id)
            raise

    @overload
    async def enqueue_many(
        self, calls: Iterable[Call[R]], /, *, reply: bool = True, **options: Unpack[JobOptions]
    ) -> list[JobHandle[R]]: ...
    @overload
    async def enqueue_many(
        self, calls: Iterable[Call[Any]], /, *, reply: bool = True, **options: Unpack[JobOptions]
    ) -> list[JobHandle[Any]]: ...
    async def enqueue_many(
        self, calls: Iterable[Call[Any]], /, *, reply: bool = True, **options: Unpack[JobOptions]
    ) -> list[JobHandle[Any]]:
        """Publish many jobs, with up to 256 confirms awaited at a time; handles in order.

        All calls are checked before the first is sent: ``InvalidArguments`` or ``PayloadTooLarge``
        means that nothing was. After that, a publish that fails stops further ones, those on their
        way finish, and ``PartlyEnqueued`` tells call by call what was accepted.
        """
        broker = self._ready()
        reply_to = self._replies_at if reply else ""
        listed = list(calls)
        jobs = make_all(listed, lambda call: self._jobs.make(call, reply_to, **options))
        for queue in {job.queue for job in jobs}:
            await self._ensure_queue(broker, queue)
        return await publish_all(len(jobs), lambda i: self._publish(broker, listed[i], jobs[i]))

    @property
    def pending(self) -> int:
        """How many jobs have a living handle here and no outcome yet."""
        return len(self._replies)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        await self.stop()

    def __repr__(self) -> str:
        """Such as ``<Client open, 3 pending>``; never the URL, which may hold a password."""
        state = "closed" if self._closed else "new" if self._broker is None else "open"
        return f"<Client {state}, {self.pending} pending>"

    # --- inside ----------------------------------------------------------------------------

    async def _publish(self, broker: Broker, call: Call[R], job: Job) -> JobHandle[R]:
        envelope = job.envelope
        await self._ensure_queue(broker, job.queue)
        # Expected before it is sent: the outcome may overtake the confirm.
        reply = self._replies.expect(envelope.job_id) if envelope.reply_to else None
        try:
            await broker.publish_job(job.queue, envelope.to_message())
        except BaseException as cause:
            # The traceback keeps this frame, and the frame would keep the reply pending.
            del reply
            if isinstance(cause, UnknownQueue):
                self._declared.discard(job.queue)
            raise
        return JobHandle(envelope.job_id, call.task, reply, self._replies, self._cancel)

    async def _ensure_queue(self, broker: Broker, queue: str) -> None:
        if not self._declare or queue in self._declared:
            return
        async with self._declaring:
            if queue not in self._declared:
                await broker.declare_queue(queue)
                self._declared.add(queue)

    async def _cancel(self, job_id: str) -> None:
        await self._ready().publish_control(cancel_message(job_id))

    async def _cancel_late(self, job_id: str) -> None:
        # What was asked for before the client closed is still sent while it closes.
        if self._broker is not None:
            await self._broker.publish_control(cancel_message(job_id))

    def _ready(self) -> Broker:
        """The broker, if this client may use it here and now."""
        if self._closed:
            raise ClientClosed("this client was closed: make a new one")
        if self._broker is None:
            raise ClientMisused(
                "this client is not started: write `async with Client(...) as client`"
            )
        self._check_loop()
        return self._broker

    def _check_loop(self) -> None:
        if asyncio.get_running_loop() is not self._loop:
            raise ClientMisused("this client was started in another event loop: make one per loop")

    def _connect(self) -> Broker:
        settings = self.settings
        options = BrokerOptions(
            connect_timeout=settings.connect_timeout, publish_timeout=settings.publish_timeout
        )
        return connect(self._url, options=options)

    async def _open(self, broker: Broker) -> None:
        try:
            if broker is not self._shared:
                await broker.start()
            self._replies_at, self._subscription = await broker.open_replies(
                secrets.token_hex(8), self._replies.receive
            )
        except BaseException:
            if broker is not self._shared:
                await broker.stop()
            raise
        self._loop, self._broker = asyncio.get_running_loop(), broker

    async def _leave(self, broker: Broker, subscription: Subscription) -> None:
        try:
            await subscription.close()
        finally:
            if broker is not self._shared:
                await broker.stop()
