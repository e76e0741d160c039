"""What a broker carries: a body, headers and the few AMQP properties that Fumehood uses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

CONTENT_TYPE = "application/msgpack"
TYPE_JOB = "job"
TYPE_OUTCOME = "outcome"
TYPE_CONTROL = "control"


@dataclass(frozen=True, slots=True)
class Message:
    """One message, free of any vendor's types.

    ``message_id`` is set by the publisher, anew for each publish attempt; it is never the job's id,
    which is ``correlation_id``. Header values are str, int, float, bool or bytes.
    """

    body: bytes
    type: str
    correlation_id: str = ""
    reply_to: str = ""
    content_type: str = CONTENT_TYPE
    headers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    message_id: str = ""
