"""Untrusted jobs beside trusted ones, and a job's own limit of temporary files."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
from support import sandbox_tasks as tasks
from support.sandboxes import Bench, make_settings

from fumehood.common import Limits, Status
from fumehood.worker import Sandbox

MIB = 1 << 20


@pytest.fixture(params=["fork", "spawn"])
def bench(request: pytest.FixtureRequest) -> Iterator[Bench]:
    settings = make_settings(untrusted_requires=(), sandbox_ctx=request.param)
    with Bench(Sandbox([tasks.__name__], 1, "untrusted", settings=settings)) as bench:
        yield bench


def test_a_limit_of_temporary_files_of_its_own(bench: Bench) -> None:
    outcome = bench.run(tasks.fill_tmp.call(8 * MIB), limits=Limits(tmp=4 * MIB))
    assert (outcome.status, outcome.value) == (Status.SUCCEEDED, [errno.ENOSPC, 4 * MIB]), outcome
    outcome = bench.run(tasks.fill_tmp.call(8 * MIB))
    assert outcome.value == [0, 8 * MIB], outcome
    outcome = bench.run(tasks.fill_tmp.call(8 * MIB), limits=Limits(tmp=6 * MIB))
    assert outcome.value[0] == errno.ENOSPC
    assert outcome.profile == "untrusted"
