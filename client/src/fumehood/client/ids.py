"""Ids of jobs: unique without asking anybody, in order of time, cheap to make."""

from __future__ import annotations

import itertools
import secrets
import time

from fumehood.common.errors import InvalidArguments

MAX_JOB_ID = 128  # bytes


class JobIds:
    """Makes ids of 32 hexadecimal digits: 12 of the time in ms, 12 random per client, 8 counted.

    They sort by the time at which they were made, and among those of one client strictly so.
    """

    def __init__(self) -> None:
        self._tag = secrets.token_hex(6)
        self._count = itertools.count()
        self._latest = 0

    def fresh(self) -> str:
        """A new id."""
        # The latest time seen stands in when the clock is set back, so that order survives it.
        self._latest = now = max(time.time_ns() // 1_000_000, self._latest)
        return f"{now:012x}{self._tag}{next(self._count) & 0xFFFFFFFF:08x}"

    def made(self, job_id: str) -> bool:
        """Whether ``job_id`` looks like one of ours."""
        return len(job_id) == 32 and job_id[12:24] == self._tag


def check_job_id(job_id: object) -> str:
    """``job_id`` if it is 1 to 128 printable ASCII characters, else ``InvalidArguments``."""
    if not isinstance(job_id, str):
        raise InvalidArguments(f"must be text, not {type(job_id).__name__}", "job_id")
    if not (0 < len(job_id) <= MAX_JOB_ID and job_id.isascii() and job_id.isprintable()):
        raise InvalidArguments(
            f"must be 1 to {MAX_JOB_ID} printable ASCII characters, not {job_id[:150]!r}", "job_id"
        )
    return job_id
