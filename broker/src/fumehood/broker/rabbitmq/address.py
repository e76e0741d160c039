"""One host of a RabbitMQ cluster: parsed, checked, and shown without its password."""

from __future__ import annotations

import re
from dataclasses import dataclass

from yarl import URL

from fumehood.common.errors import ConfigurationError

_PORTS = {"amqp": 5672, "amqps": 5671}
_QUERY = {"auth", "cafile", "capath", "certfile", "keyfile", "heartbeat"}
# The user's name is part of a reply address, which is a topic pattern where it is bound.
_USER = re.compile(r"[A-Za-z0-9_.@:+=-]+", re.ASCII)


@dataclass(frozen=True, slots=True, repr=False)
class Address:
    """Where and as whom to connect."""

    url: URL

    @classmethod
    def parse(cls, text: str) -> Address:
        """Read a URL. Raises ``ConfigurationError``, whose text never holds the password."""
        try:
            url = URL(text)
            port = url.port or _PORTS[url.scheme]
        except (ValueError, KeyError):
            raise ConfigurationError("the broker URL cannot be read: check host and port") from None
        if not url.host:
            raise ConfigurationError("the broker URL names no host")
        unknown = sorted(set(url.query) - _QUERY)
        if unknown:
            raise ConfigurationError(
                f"unknown option {unknown[0]!r} in the broker URL of {url.host}: "
                f"known are {', '.join(sorted(_QUERY))}"
            )
        if not _USER.fullmatch(url.user or "guest"):
            raise ConfigurationError("the user name in the broker URL cannot be part of an address")
        return cls(url.with_port(port))

    @property
    def host(self) -> str:
        """Host name or IP address."""
        return self.url.host or ""

    @property
    def port(self) -> int:
        """TCP port."""
        return self.url.port or _PORTS[self.url.scheme]

    @property
    def user(self) -> str:
        """The user name; RabbitMQ's ``guest`` when the URL has none."""
        return self.url.user or "guest"

    @property
    def tls(self) -> bool:
        """Whether the connection is encrypted and the host's certificate verified."""
        return self.url.scheme == "amqps"

    def __str__(self) -> str:
        shown = f"[{self.host}]" if ":" in self.host else self.host
        path = self.url.path if self.url.path != "/" else ""
        return f"{self.url.scheme}://{self.user}@{shown}:{self.port}{path}"

    __repr__ = __str__
