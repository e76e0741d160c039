"""What the rivals run: the smallest job, and when it began. Imports no more than that takes."""

import time


def add(left: int, right: int) -> tuple[int, float]:
    """The sum, and the monotonic clock, which all processes of a host share."""
    started = time.monotonic()
    return left + right, started
