"""What exists on the broker: the names of ``docs/protocol.md`` and their arguments."""

from __future__ import annotations

from typing import Any

from aiormq import exceptions as vendor

from fumehood.broker.options import BrokerOptions
from fumehood.broker.rabbitmq.connection import Wire
from fumehood.broker.rabbitmq.errors import edge
from fumehood.broker.rabbitmq.lane import Lane
from fumehood.broker.rabbitmq.reader import LaneUser

JOBS = "fumehood.jobs"
REPLIES = "fumehood.replies"
CONTROL = "fumehood.control"
DEAD = "fumehood.dead"

# Topic where direct would do: only topic exchanges can restrict keys per user (topic permissions).
_EXCHANGES = {JOBS: "topic", REPLIES: "topic", CONTROL: "fanout", DEAD: "topic"}

# A dead letter that an operator looks at and puts back is counted by RabbitMQ 4, and dropped at 20
# without a trace, since nothing stands behind the dead queue. "Unlimited" (-1) is an error before
# 4.0, so this is as good as it gets on all versions.
_DEAD_DELIVERY_LIMIT = 1_000_000

Arguments = dict[str, Any]


def job_queue(queue: str) -> str:
    """The broker's name of a job queue."""
    return f"fumehood.q.{queue}"


def dead_queue(queue: str) -> str:
    """The broker's name of the queue that keeps the dead letters of ``queue``."""
    return f"fumehood.dead.{queue}"


def reply_queue(address: str) -> str:
    """The broker's name of the queue behind a reply address ``<user>.<client>``."""
    return f"fumehood.reply.{address}"


def control_queue(user: str, node: str) -> str:
    """The broker's name of the queue on which one node hears control messages."""
    return f"fumehood.control.{user}.{node}"


def job_arguments(options: BrokerOptions) -> Arguments:
    """Queue arguments of a job queue."""
    arguments = _quorum(options) | {
        "x-dead-letter-exchange": DEAD,
        "x-dead-letter-strategy": "at-least-once",
        "x-overflow": "reject-publish",
        "x-consumer-timeout": options.consumer_timeout_ms,
        "x-delivery-limit": options.delivery_limit,
    }
    if options.max_length is not None:
        arguments["x-max-length"] = options.max_length
    return arguments


def _quorum(options: BrokerOptions) -> Arguments:
    arguments: Arguments = {"x-queue-type": "quorum"}
    if options.quorum_group_size is not None:
        arguments["x-quorum-initial-group-size"] = options.quorum_group_size
    return arguments


async def declare_exchanges(wire: Wire) -> None:
    """Make our exchanges exist, or leave that to whoever may: a producer needs no such right."""
    lane = await wire.open_lane(LaneUser())
    try:
        for name, kind in _EXCHANGES.items():
            await lane.channel.exchange_declare(name, exchange_type=kind, durable=True)
    except vendor.ChannelAccessRefused:
        return
    await lane.channel.close()


async def declare_job_queue(wire: Wire, queue: str, options: BrokerOptions) -> None:
    """Make a job queue and its dead queue exist, bound. Raises our errors."""
    with edge(f"declare queue {queue!r}"):
        await declare_exchanges(wire)
        lane = await wire.open_lane(LaneUser())
        dead = _quorum(options) | {"x-delivery-limit": _DEAD_DELIVERY_LIMIT}
        await _declare_bound(lane, dead_queue(queue), dead, DEAD, queue)
        await _declare_bound(lane, job_queue(queue), job_arguments(options), JOBS, queue)
        await lane.channel.close()


async def _declare_bound(
    lane: Lane, name: str, arguments: Arguments, exchange: str, key: str
) -> None:
    await lane.channel.queue_declare(name, durable=True, arguments=arguments)
    await lane.channel.queue_bind(name, exchange, key)


async def declare_private_queue(lane: Lane, name: str, exchange: str, key: str) -> None:
    """Make a queue that lives and dies with this connection, bound to an exchange."""
    await lane.channel.queue_declare(name, exclusive=True, auto_delete=False)
    await lane.channel.queue_bind(name, exchange, key)
