"""What one attempt may use. Sizes are bytes; text such as ``"8MiB"`` is read as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fumehood.common.errors import ConfigurationError

_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30} | _DECIMAL
_SIZE = re.compile(r"\s*(\d{1,18})(\.\d{1,9})?\s*([A-Za-z]*)\s*", re.ASCII)

#: What the default bounds leave for encoding: 8 MiB of bytes take a few more when encoded.
ENCODING_ALLOWANCE = 1 << 10

_MAX_SIZE = (1 << 63) - 1  # what an AMQP header holds


def parse_size(size: object) -> int:
    """Bytes of ``size``: a whole number, or text with B, KiB, MiB, GiB, kB, MB or GB behind it.

    Raises ``ConfigurationError``.
    """
    if isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        match = _SIZE.fullmatch(size) if isinstance(size, str) else None
        if match is None or match[3].lower() not in _UNITS:
            raise ConfigurationError(f"{size!r} is not a size: write bytes, or text such as '8MiB'")
        unit = _UNITS[match[3].lower()]
        number = int(match[1]) * unit + int(float(match[2] or 0) * unit)
    if not 0 <= number <= _MAX_SIZE:
        raise ConfigurationError("a size must lie between 0 and 2**63 - 1 bytes")
    return number


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one attempt; None leaves a bound to the settings of the node."""

    output: int | str | None = None  # bytes kept of stdout and of stderr, each
    result: int | str | None = None  # bytes of the encoded value

    def __post_init__(self) -> None:
        """Read sizes written as text."""
        for each in fields(self):
            value = getattr(self, each.name)
            if value is not None:
                object.__setattr__(self, each.name, parse_size(value))

    def tightened(self, cap: Limits) -> Limits:
        """These limits where set, and never above ``cap``."""
        merged: dict[str, int | str | None] = {}
        for each in fields(self):
            mine, top = getattr(self, each.name), getattr(cap, each.name)
            merged[each.name] = top if mine is None else mine if top is None else min(mine, top)
        return replace(self, **merged)

    def to_wire(self) -> dict[str, int]:
        """The bounds that are set, as plain data."""
        bounds = {each.name: getattr(self, each.name) for each in fields(self)}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Limits:
        """Read ``to_wire`` again; unknown names are an error, for a limit ignored is no limit."""
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise ConfigurationError(f"unknown limits {sorted(unknown)}: known are {sorted(known)}")
        return cls(**dict(data))
