"""What one attempt may use. Sizes are bytes; text such as ``"8MiB"`` is read as well."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from fumehood.common.errors import ConfigurationError

_UNITS = {"": 1, "B": 1, "KIB": 1 << 10, "MIB": 1 << 20, "GIB": 1 << 30, "KB": 10**3, "MB": 10**6, "GB": 10**9}
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_size(size: int | str) -> int:
    """Bytes of ``size``: a whole number, or text with B, KiB, MiB, GiB, kB, MB or GB behind it."""
    if isinstance(size, int) and not isinstance(size, bool):
        number = size
    else:
        match = _SIZE.fullmatch(size) if isinstance(size, str) else None
        if match is None or match[2].upper() not in _UNITS:
            raise ConfigurationError(f"{size!r} is not a size: write bytes, or text such as '8MiB'")
        number = int(float(match[1]) * _UNITS[match[2].upper()])
    if number < 0:
        raise ConfigurationError(f"a size cannot be negative: {size!r}")
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
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Limits:
        """Read ``to_wire`` again; unknown names are an error, for a limit ignored is no limit."""
        known = {f.name for f in fields(cls)}
        unknown = set(data) - known
        if unknown:
            raise ConfigurationError(f"unknown limits {sorted(unknown)}: this node knows {sorted(known)}")
        return cls(**dict(data))
