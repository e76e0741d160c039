"""Many jobs at once: checked as a whole, published as a pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from fumehood.client.errors import PartlyEnqueued
from fumehood.client.handle import JobHandle
from fumehood.client.job import Job
from fumehood.common.errors import FumehoodError, InvalidArguments
from fumehood.common.task import Call

R = TypeVar("R")

WINDOW = 256  # publishes that wait for their confirms at a time


def make_all(calls: Sequence[Call[R]], make: Callable[[Call[R]], Job]) -> list[Job]:
    """The jobs for all calls; an ``InvalidArguments`` names the call as ``calls[3]``."""
    jobs: list[Job] = []
    for index, call in enumerate(calls):
        try:
            jobs.append(make(call))
        except InvalidArguments as cause:
            raise InvalidArguments(str(cause), f"calls[{index}]") from cause
    return jobs


async def publish_all(
    count: int, publish: Callable[[int], Awaitable[JobHandle[R]]]
) -> list[JobHandle[R]]:
    """``publish`` each index, begun in order, ``WINDOW`` at a time. Raises ``PartlyEnqueued``."""
    handles: dict[int, JobHandle[R]] = {}
    errors: dict[int, FumehoodError] = {}
    rest = iter(range(count))  # shared: each sender takes the next one

    async def send() -> None:
        for index in rest:
            try:
                handles[index] = await publish(index)
            except FumehoodError as cause:
                errors[index] = cause
            if errors:
                return

    async with asyncio.TaskGroup() as senders:
        for _ in range(min(WINDOW, count)):
            senders.create_task(send())
    if errors:
        raise PartlyEnqueued(list(map(handles.get, range(count))), errors) from errors[min(errors)]
    return [handles[index] for index in range(count)]
