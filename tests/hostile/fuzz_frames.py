"""Fuzz the manager's reader of frames by coverage, with atheris; not part of any test run.

    PYTHONPATH=tests python -m hostile.fuzz_frames -max_total_time=300

The input is a list of frames, each with two bytes of length before it. Ends with an error at the
first input for which the reader raises, takes too long, or grows beyond ``-rss_limit_mb``.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def main() -> int:
    """Run until a fault is found or the time is up; 2 where atheris is not installed."""
    try:
        atheris: Any = importlib.import_module("atheris")
    except ImportError:
        print("atheris is not installed: pip install atheris", file=sys.stderr)
        return 2
    with atheris.instrument_imports(include=["fumehood"]):
        from hostile.frames import feed

    def one(data: bytes) -> None:
        feed(_split(data))

    atheris.Setup(sys.argv, one)
    atheris.Fuzz()
    return 0


def _split(data: bytes) -> list[bytes]:
    frames: list[bytes] = []
    while len(data) > 2 and len(frames) < 16:
        size = int.from_bytes(data[:2], "big") % 4096
        frames.append(data[2 : 2 + size])
        data = data[2 + size :]
    return frames


if __name__ == "__main__":
    sys.exit(main())
