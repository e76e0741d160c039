"""What can be tuned about a broker adapter. Every value carries its unit."""

from __future__ import annotations

from dataclasses import dataclass

_DAY_MS = 24 * 60 * 60 * 1000


@dataclass(frozen=True, slots=True)
class BrokerOptions:
    """Settings of one broker handle; the defaults suit a node and a producer alike."""

    connect_timeout: float = 10.0  # seconds that start() may take, over all hosts
    publish_timeout: float = 30.0  # seconds to a confirm when the caller gives no deadline
    heartbeat: int = 10  # seconds between heartbeats asked for; a dead peer is noticed after two
    user_timeout: float = (
        20.0  # seconds that sent bytes may stay unacknowledged by the peer's kernel
    )
    blocked_grace: float = 1.0  # seconds that a publish waits while the broker has an alarm
    stop_timeout: float = 3.0  # seconds for each step of an orderly close, then the socket is cut
    backoff_max: float = 10.0  # seconds; the largest pause between two attempts, before jitter
    publish_window: int = 1000  # messages sent and not yet confirmed
    max_message_bytes: int = 16 * 1024 * 1024  # bytes of body; RabbitMQ 4 refuses more by default
    max_length: int | None = (
        None  # messages ready in one job queue before QueueFull; None: no bound
    )
    consumer_timeout_ms: int = 7 * _DAY_MS  # milliseconds that a job may stay unsettled
    quorum_group_size: int | None = None  # members of a new quorum queue; None: the broker decides
    # Hand-outs of one job before the broker dead-letters it by itself. A node gives up on a
    # poisonous job far earlier, by its own count; and brokers before 4.3 also count a harmless
    # give_back. So this is a backstop for nodes that die without counting, not a policy.
    delivery_limit: int = 1000
