"""What one attempt may use. Sizes are bytes; text such as ``"8MiB"`` is read as well."""

from __future__ import annotations

from fumehood.common.errors import ConfigurationError
from fumehood.common.values import Value

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

_DECIMAL = {"kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30} | _DECIMAL

#: What the default bounds leave for encoding: 8 MiB of bytes take a few more when encoded.
ENCODING_ALLOWANCE = 1 << 10

_MAX = (1 << 63) - 1  # what an AMQP header holds
_MAX_CPU = 1e9  # seconds; thirty years


def parse_size(size: object) -> int:
    """Bytes of ``size``: a whole number, or text with B, KiB, MiB, GiB, kB, MB or GB behind it.

    Raises ``ConfigurationError``.
    """
    number = _whole(size)
    if number is None and isinstance(size, str):
        number = _size_of_text(size)
    if number is None:
        raise ConfigurationError(f"{size!r} is not a size: write bytes, or text such as '8MiB'")
    if not 0 <= number <= _MAX:
        raise ConfigurationError("a size must lie between 0 and 2**63 - 1 bytes")
    return number


def _whole(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _size_of_text(text: str) -> int | None:
    number = text.strip().rstrip("BKMGTiIkbmgt")
    unit = _UNITS.get(text.strip()[len(number) :].lower())
    whole, point, part = number.rstrip().partition(".")
    if unit is None or not _digits(whole, 18) or (point and not _digits(part, 9)):
        return None
    return int(whole) * unit + int(float(f"0.{part or 0}") * unit)


def _digits(text: str, most: int) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= most


def _count(value: object) -> int:
    number = _whole(value)
    if number is None or not 1 <= number <= _MAX:
        raise ConfigurationError(f"{value!r} is not a count: write a whole number above 0")
    return number


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= _MAX_CPU:
        raise ConfigurationError(f"{value!r} is not a time: write seconds, a number above 0")
    return float(value)


class Limits(Value):
    """Bounds of one attempt; None leaves a bound to the settings of the node.

    Whoever speaks last may only tighten: of the bounds that task, call and operator set, the
    smallest holds.
    """

    __slots__ = (
        "cpu", "file_size", "memory", "open_files", "output", "processes", "result", "tmp",
    )  # fmt: skip

    memory: int | None  # bytes of all that it and its children hold, files in tmp included
    cpu: float | None  # seconds of CPU time, its children's included
    processes: int | None  # processes and threads at one time
    file_size: int | None  # bytes of one file that it writes
    open_files: int | None  # descriptors of one process
    tmp: int | None  # bytes in its private temporary folders; profile "untrusted" only
    output: int | None  # bytes kept of stdout and of stderr, each
    result: int | None  # bytes of the encoded value

    def __init__(
        self,
        *,
        memory: int | str | None = None,
        cpu: float | None = None,
        processes: int | None = None,
        file_size: int | str | None = None,
        open_files: int | None = None,
        tmp: int | str | None = None,
        output: int | str | None = None,
        result: int | str | None = None,
    ) -> None:
        """Sizes are bytes or text. Raises ``ConfigurationError`` for what is no bound."""
        sizes = {
            "memory": memory, "file_size": file_size, "tmp": tmp, "output": output,
            "result": result,
        }  # fmt: skip
        for name, size in sizes.items():
            self._set(**{name: None if size is None else parse_size(size)})
        self._set(
            cpu=None if cpu is None else _seconds(cpu),
            processes=None if processes is None else _count(processes),
            open_files=None if open_files is None else _count(open_files),
        )

    def tightened(self, cap: Limits) -> Limits:
        """The smaller of each bound, where one of the two sets it."""
        merged: dict[str, Any] = {}
        for name in self.__slots__:
            mine, top = getattr(self, name), getattr(cap, name)
            merged[name] = top if mine is None else mine if top is None else min(mine, top)
        return Limits(**merged)

    def to_wire(self) -> dict[str, int | float]:
        """The bounds that are set, as plain data."""
        bounds = {name: getattr(self, name) for name in self.__slots__}
        return {name: bound for name, bound in bounds.items() if bound is not None}

    @classmethod
    def from_wire(cls, data: Mapping[str, Any]) -> Limits:
        """Read ``to_wire`` again; unknown names are an error, for a limit ignored is no limit."""
        unknown = set(data) - set(cls.__slots__)
        if unknown:
            known = list(cls.__slots__)
            raise ConfigurationError(f"unknown limits {sorted(unknown)}: known are {known}")
        return cls(**dict(data))
