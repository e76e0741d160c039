"""What a task prints: read always, kept up to a bound, counted beyond it."""

from __future__ import annotations

import os

_CHUNK = 64 << 10
_DRAIN_MAX = 2 << 20  # bytes; a pipe holds 1 MiB at most, and by then nobody writes to it any more


class Capture:
    """The reading end of one output pipe."""

    __slots__ = ("_data", "dropped", "fd", "keep")

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.keep = 0  # bytes
        self.dropped = 0  # bytes
        self._data = b""

    def read(self) -> bool:
        """Read once, without waiting. False at the end of the pipe, when nobody can write to it."""
        return self._read() != 0

    def _read(self) -> int | None:
        """Bytes read; None when there are none yet."""
        try:
            chunk = os.read(self.fd, _CHUNK)
        except BlockingIOError:
            return None
        room = self.keep - len(self._data)
        if room > 0:
            self._data += chunk[:room]
        self.dropped += max(0, len(chunk) - max(0, room))
        return len(chunk)

    def drain(self) -> bytes:
        """Read what is left; all that was kept."""
        left = _DRAIN_MAX
        while left > 0 and self._read():
            left -= _CHUNK
        return self._data
