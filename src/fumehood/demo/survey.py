"""Real input: every source file of the running Python's standard library, a job for each."""

from __future__ import annotations

import sysconfig
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from fumehood.client import Client, JobHandle
from fumehood.common.outcome import Outcome
from fumehood.demo import tasks

_CHUNK = 64  # jobs enqueued at a time; at most twice as many are on the broker
_TIMEOUT = 20.0  # seconds for one file
_SHOWN = 5  # paths kept for each reason of failure


@dataclass(slots=True)
class Survey:
    """What was found. Times are seconds."""

    root: str
    files: int
    with_tests: bool  # whether this Python brings its test files, broken ones included
    lines: int = 0
    functions: int = 0
    classes: int = 0
    most_nested: str = ""
    most_complex: str = ""
    outcomes: Counter[str] = field(default_factory=Counter[str])
    failures: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    failure_counts: Counter[str] = field(default_factory=Counter[str])
    slowest: str = ""
    slowest_took: float = 0.0
    took: float = 0.0
    jobs_per_second: float = 0.0
    _nesting: int = 0
    _complexity: int = 0

    def add(self, path: str, outcome: Outcome, facts: tasks.FileFacts | None) -> None:
        """Count one file."""
        self.outcomes[outcome.status.value] += 1
        if outcome.usage.wall > self.slowest_took:
            self.slowest, self.slowest_took = path, round(outcome.usage.wall, 4)
        if facts is None:
            self._add_failure(path, outcome)
            return
        self.lines += facts.lines
        self.functions += facts.functions
        self.classes += facts.classes
        if facts.nesting > self._nesting:
            self._nesting, self.most_nested = facts.nesting, f"{path} ({facts.nesting} levels)"
        if facts.complexity > self._complexity:
            self._complexity = facts.complexity
            self.most_complex = f"{path} ({facts.complexity} ways)"

    def _add_failure(self, path: str, outcome: Outcome) -> None:
        reason = outcome.error.type if outcome.error else outcome.reason
        self.failure_counts[reason] += 1
        paths = self.failures.setdefault(reason, [])
        if len(paths) < _SHOWN:
            paths.append(path)

    def as_dict(self) -> dict[str, Any]:
        """The public facts as plain data."""
        names = [name for name in Survey.__slots__ if not name.startswith("_")]
        return {name: getattr(self, name) for name in names}


def source_files(limit: int | None) -> tuple[Path, list[Path]]:
    """The standard library's folder and its source files, or ``limit`` of them evenly spread."""
    root = Path(sysconfig.get_path("stdlib"))
    foreign = {"site-packages", "dist-packages", "__pycache__"}
    found = [path for path in root.rglob("*.py") if foreign.isdisjoint(path.parts)]
    files = sorted(path for path in found if path.is_file())
    if limit is not None and limit < len(files):
        files = [files[i * len(files) // limit] for i in range(limit)]
    return root, files


async def survey(
    client: Client, root: Path, files: Sequence[Path], on_file: Callable[[], None]
) -> Survey:
    """Measure all files; ``on_file`` is called after each."""
    found = Survey(str(root), len(files), (root / "test/test_grammar.py").is_file())
    started = time.monotonic()
    rest = iter(files)
    pending: deque[tuple[Path, JobHandle[tasks.FileFacts]]] = deque()
    while chunk := list(islice(rest, _CHUNK)):
        calls = [tasks.measure.call(str(path)) for path in chunk]
        handles = await client.enqueue_many(calls, timeout=_TIMEOUT)
        pending += zip(chunk, handles, strict=True)
        while len(pending) > _CHUNK:
            await _take(found, root, *pending.popleft(), on_file)
    while pending:
        await _take(found, root, *pending.popleft(), on_file)
    found.took = round(time.monotonic() - started, 3)
    found.jobs_per_second = round(len(files) / max(found.took, 1e-9), 1)
    return found


async def _take(
    found: Survey,
    root: Path,
    path: Path,
    handle: JobHandle[tasks.FileFacts],
    on_file: Callable[[], None],
) -> None:
    outcome = await handle.outcome()
    facts = await handle.result() if outcome.ok else None
    found.add(path.relative_to(root).as_posix(), outcome, facts)
    on_file()
