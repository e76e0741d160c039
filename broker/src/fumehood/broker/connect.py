"""From a URL to the adapter that speaks to it."""

from __future__ import annotations

import re
from collections.abc import Sequence

from fumehood.broker.interface import Broker
from fumehood.broker.options import BrokerOptions
from fumehood.common.errors import ConfigurationError

SUPPORTED = ("amqp://", "amqps://", "memory://")

# A comma separates URLs only where a new scheme follows: passwords may hold commas.
_SEPARATOR = re.compile(r"\s*,\s*(?=[A-Za-z][A-Za-z0-9+.-]*://)")


def connect(url: str | Sequence[str], *, options: BrokerOptions | None = None) -> Broker:
    """Return the broker that ``url`` names, not yet started.

    Several hosts of one cluster are a list of URLs, or one string with commas between them. Raises
    ``ConfigurationError`` for a URL that cannot be used; its text never shows a password.
    """
    urls = _split(url)
    schemes = {_scheme(each) for each in urls}
    if schemes == {"memory"}:
        return _memory(urls, options or BrokerOptions())
    if schemes <= {"amqp", "amqps"}:
        from fumehood.broker.rabbitmq.broker import RabbitBroker

        return RabbitBroker(urls, options or BrokerOptions())
    raise ConfigurationError("the URLs of one broker must all be of one kind, memory or amqp")


def _split(url: str | Sequence[str]) -> list[str]:
    given = [url] if isinstance(url, str) else list(url)
    urls = [part.strip() for text in given for part in _SEPARATOR.split(text) if part.strip()]
    if not urls:
        raise ConfigurationError(f"no broker URL given: {_supported()}")
    return urls


def _scheme(url: str) -> str:
    scheme, found, _ = url.partition("://")
    if not found or f"{scheme.lower()}://" not in SUPPORTED:
        shown = f"scheme {scheme!r}" if found and scheme.isalnum() else "a URL without a scheme"
        raise ConfigurationError(f"no broker adapter for {shown}: {_supported()}")
    return scheme.lower()


def _supported() -> str:
    return "supported are " + ", ".join(SUPPORTED)


def _memory(urls: Sequence[str], options: BrokerOptions) -> Broker:
    from fumehood.broker.memory import MemoryBroker

    if len(urls) > 1:
        raise ConfigurationError("a memory broker has one URL: there is nothing to fail over to")
    return MemoryBroker(urls[0].partition("://")[2].strip("/"), options)
