"""As little as a task can do, so that what is measured is everything around it."""

from __future__ import annotations

import time

from fumehood.common import task


@task
def add(left: int, right: int) -> int:
    """The smallest job."""
    return left + right


@task
def hang(seconds: float) -> None:
    """A job to be killed."""
    time.sleep(seconds)


@task
def spin() -> None:
    """A job to be killed that wants a whole core until then."""
    while True:
        pass
