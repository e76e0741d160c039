"""Tasks of a small application. Nodes and producers import this module alike."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path

from fumehood.common import Limits, current_job, task


@task
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@dataclass(frozen=True)
class Count:
    """Words and lines of a text."""

    lines: int
    words: int


@task(queue="default", timeout=10.0, limits=Limits(result="64KiB"))
def count_words(path: Path) -> Count:
    """Count the lines and words of a file that the node can read."""
    text = path.read_text(encoding="utf-8")
    return Count(lines=len(text.splitlines()), words=len(text.split()))


@task(timeout=2.0)
def think(seconds: float) -> str:
    """Take a while; at the timeout the process is killed."""
    job = current_job()
    time.sleep(seconds)
    return f"attempt {job.attempt} had {job.remaining():.1f} s left"


@task
def crash() -> None:
    """Take the process down."""
    os.abort()
