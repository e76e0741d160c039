"""A node's memory does not grow with the jobs it has run.

The long version is ``benchmarks/memory.py``; this runs it, shorter, in a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks/memory.py"


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_memory_stays_bounded_over_thousands_of_jobs() -> None:
    # From 1,000 to 6,000: the bounded memories of a node are full at 4,000.
    script = (
        "import asyncio, sys; sys.path.insert(0, sys.argv[1]); import memory;"
        "first, last = asyncio.run(memory.series([1000, 6000]));"
        "print(f'{first:.2f} {last:.2f}'); sys.exit(last - first > memory.BOUND)"
    )
    command = [sys.executable, "-c", script, str(BENCHMARK.parent)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
