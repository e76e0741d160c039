"""Which names a broker can carry: one rule for all adapters."""

from __future__ import annotations

import re
from functools import lru_cache

from fumehood.common.errors import InvalidArguments

MAX_QUEUE_NAME = 200  # characters; with our longest prefix it stays below AMQP's 255 bytes
MAX_CLIENT_NAME = 100  # characters

# Neither "*" nor "#": in a topic exchange those are patterns, and a queue name is a routing key.
_QUEUE = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.:-]*[A-Za-z0-9_])?", re.ASCII)
_CLIENT = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


@lru_cache(maxsize=1024)
def check_queue_name(queue: str) -> str:
    """Return ``queue``. Raises ``InvalidArguments`` when no broker could carry it as a name."""
    if len(queue) > MAX_QUEUE_NAME or not _QUEUE.fullmatch(queue):
        raise InvalidArguments(
            f"{queue[:80]!r} is not a queue name: use 1 to {MAX_QUEUE_NAME} letters, digits and "
            "'_', '-', '.', ':', with a letter, digit or '_' at both ends",
            path="queue",
        )
    return queue


def check_client_name(client: str) -> str:
    """Return ``client``. Raises ``InvalidArguments`` when it cannot be part of a reply address."""
    if len(client) > MAX_CLIENT_NAME or not _CLIENT.fullmatch(client):
        raise InvalidArguments(
            f"{client[:80]!r} is not a client name: use 1 to {MAX_CLIENT_NAME} letters, digits, "
            "'_' and '-'",
            path="client",
        )
    return client
