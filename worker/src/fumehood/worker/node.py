"""A node: one broker connection, one runner, and the jobs in between.

1. Start: get sandboxes ready, then connect, then consume. No job is taken that could not be run.
2. Serve: each delivery becomes a task of its own; each queue's prefetch is the number of slots.
3. Drain: take no more, give back what has not begun, let the rest finish until a deadline.
4. Stop: end what is left, give it back, leave no process behind.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
import time
from collections.abc import Sequence
from fnmatch import fnmatchcase

from fumehood.broker.interface import Broker, Delivery, Subscription
from fumehood.common.envelope import read_control
from fumehood.common.errors import ConfigurationError, MalformedMessage
from fumehood.common.message import Message
from fumehood.common.settings import Settings
from fumehood.worker.executor import Executor
from fumehood.worker.host import reap_orphans
from fumehood.worker.inline import LOST, InlineRunner
from fumehood.worker.runner import Runner
from fumehood.worker.sandbox.profiles import Profiles
from fumehood.worker.sandbox.protection import make_manager

log = logging.getLogger("fumehood.worker")

_END_STEP = 0.05  # seconds until jobs that have not ended are told to once more


class Node:
    """Everything that one worker process supervises. Belongs to one event loop."""

    def __init__(
        self,
        broker: Broker,
        modules: Sequence[str],
        queues: Sequence[str],
        slots: int,
        settings: Settings,
    ) -> None:
        self.name = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(2)}"
        self._broker = broker
        self._queues = list(dict.fromkeys(queues))
        self._slots = slots
        self._modules = list(modules)
        self._settings = settings
        self.runner: Runner = self._make_runner()
        self._fallback = self._make_fallback()
        self._executor = Executor(
            broker, self.runner, settings, self.name, slots=slots, fallback=self._fallback
        )
        self._consumers: list[Subscription] = []
        self._jobs: set[asyncio.Task[None]] = set()
        self._reaping: asyncio.Task[None] | None = None
        self._stopping: asyncio.Task[None] | None = None

    def _make_runner(self) -> Runner:
        if not self._settings.sandbox_enabled:
            log.warning(LOST)
            return InlineRunner(self._modules, self._slots)
        make = make_manager(self._settings, self._modules, self._slots, examine_all=True)
        return Profiles(make)

    def _make_fallback(self) -> Runner | None:
        if not (self._settings.sandbox_fallback and self._settings.sandbox_enabled):
            return None
        return InlineRunner(self._modules, self._slots)

    @property
    def running(self) -> int:
        """Deliveries in this node's hands."""
        return len(self._jobs)

    async def start(self) -> None:
        """Raises ``SandboxUnavailable``, ``BrokerUnavailable``, ``ConfigurationError``."""
        try:
            await self._start_runner()
            self._reaping = asyncio.get_running_loop().create_task(reap_orphans())
            if not self.runner.tasks:  # it would answer every job with a rejection
                raise ConfigurationError(
                    f"no task is declared in {', '.join(self._modules)}: use @task"
                )
            if self._fallback is not None:
                await self._fallback.start()
            await self._broker.start()
            await self._broker.consume_control(self._on_control)
            for queue in self._queues:
                await self._broker.declare_queue(queue)
            for queue in self._queues:
                consumer = await self._broker.consume_jobs(queue, self._slots, self._on_delivery)
                self._consumers.append(consumer)
        except BaseException:
            await self.stop()
            raise
        log.info("the node is ready", extra={"node": self.name, "queues": self._queues})

    async def _start_runner(self) -> None:
        guarded = [queue for queue in self._queues if self._is_untrusted(queue)]
        if not isinstance(self.runner, Profiles):
            if guarded:
                raise ConfigurationError(
                    f"queue {guarded[0]!r} is untrusted, and sandbox_enabled is off"
                )
            await self.runner.start()
            return
        await self.runner.start(untrusted_too=bool(guarded))
        if guarded and self.runner.refusal:
            raise ConfigurationError(f"queue {guarded[0]!r} is untrusted: {self.runner.refusal}")

    def _is_untrusted(self, queue: str) -> bool:
        return any(fnmatchcase(queue, each) for each in self._settings.untrusted_queues)

    async def drain(self, deadline: float) -> None:
        """Take no more jobs; let running ones finish until ``deadline``, a monotonic instant.

        Jobs that run can still be cancelled.
        """
        self._executor.drain()
        consumers, self._consumers = self._consumers, []
        await asyncio.gather(*(consumer.close() for consumer in consumers))
        self._executor.give_back_waiting()
        if self._jobs:
            await asyncio.wait(self._jobs, timeout=max(0.0, deadline - time.monotonic()))

    async def stop(self) -> None:
        """Give back what still runs and end. Idempotent; returns when all has ended."""
        if self._stopping is None:
            self._stopping = asyncio.get_running_loop().create_task(self._stop())
        # Shielded: nobody's haste may leave processes behind.
        await asyncio.shield(self._stopping)

    async def _stop(self) -> None:
        try:
            await self.drain(time.monotonic())
            await self._end_jobs()
            await self._executor.close()
        finally:
            if self._reaping is not None:
                self._reaping.cancel()
            try:
                await self.runner.stop()
                if self._fallback is not None:
                    await self._fallback.stop()
            finally:
                await self._broker.stop()

    async def _end_jobs(self) -> None:
        """End what runs, and wait until it is given back and other outcomes are published."""
        give_up = time.monotonic() + self._settings.publish_timeout
        while self._jobs and time.monotonic() < give_up:
            self._executor.stop()  # again: one may have been about to start
            await asyncio.wait(self._jobs, timeout=_END_STEP)
        left = list(self._jobs)
        for job in left:
            job.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    # --- what the broker brings -------------------------------------------------------------

    def _on_delivery(self, delivery: Delivery) -> None:
        task = asyncio.get_running_loop().create_task(self._execute(delivery))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _execute(self, delivery: Delivery) -> None:
        try:
            await self._executor.execute(delivery)
        except Exception:
            # A fault of this node, not of the job: another node may do better.
            log.exception("a delivery could not be seen through")
            delivery.reject()

    def _on_control(self, message: Message) -> None:
        try:
            what, job_id = read_control(message)
        except MalformedMessage as exc:
            log.warning("a control message was ignored", extra={"cause": str(exc)})
            return
        if what == "cancel" and job_id:
            self._executor.cancel(job_id)
