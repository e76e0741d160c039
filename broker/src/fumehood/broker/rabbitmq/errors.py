"""Vendor errors, translated once: nothing of aiormq, pamqp or the socket crosses the seam."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Generator
from contextlib import contextmanager

from aiormq import exceptions as vendor
from pamqp.exceptions import PAMQPException

from fumehood.common.errors import BrokerUnavailable, ConfigurationError, UnknownQueue

TROUBLE = (
    vendor.AMQPError,
    vendor.ChannelInvalidStateError,
    PAMQPException,
    OSError,
    EOFError,
    TimeoutError,
)


class Refused(Exception):
    """The host answered and will not have us, now or later: a wrong password or vhost."""


def explain(exc: BaseException) -> str:
    """The cause in one line, for people."""
    match exc:
        case TimeoutError():
            return "no answer in time"
        case ConnectionRefusedError():
            return "connection refused"
        case socket.gaierror():
            return "host name not found"
        case ssl.SSLCertVerificationError():
            return f"certificate not accepted: {exc.verify_message}"
        case _:
            pass
    text = " ".join(str(exc).split())
    return text or type(exc).__name__


def is_refusal(exc: BaseException) -> bool:
    """Whether trying again cannot help: wrong credentials, vhost, certificate or port."""
    return isinstance(
        exc,
        Refused
        | vendor.AuthenticationError
        | vendor.IncompatibleProtocolError
        | ssl.SSLCertVerificationError,
    )


@contextmanager
def honest_cancellation() -> Generator[None]:
    """Let ``CancelledError`` mean that somebody cancelled this task, and nothing else.

    aiormq rejects its futures with it when a connection closes.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise vendor.AMQPConnectionError("the connection was closed") from None


@contextmanager
def edge(doing: str) -> Generator[None]:
    """Run AMQP calls; raise ours for theirs. ``doing`` begins the message."""
    try:
        with honest_cancellation():
            yield
    except vendor.ChannelNotFoundEntity as exc:
        raise UnknownQueue(f"{doing}: {explain(exc)}") from None
    except (vendor.ChannelPreconditionFailed, vendor.ChannelAccessRefused) as exc:
        raise ConfigurationError(f"{doing}: {explain(exc)}") from None
    except TROUBLE as exc:
        raise BrokerUnavailable(f"{doing}: {explain(exc)}") from exc
