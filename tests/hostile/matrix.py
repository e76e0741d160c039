"""The whole matrix: cases, profiles, users, masks, so many times over. ``make hostile`` runs it.

    PYTHONPATH=tests python -m hostile.matrix [--repeat 10] [--busy] [--profile ...] [--kind ...]

Each scene is a process of its own. Its cases run side by side where neighbours do no harm, which is
one more thing for them to withstand. Prints a table, and every complaint; exits with 1 for any.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from hostile import ordinary
from hostile.case import Case, Profile
from hostile.cases import KINDS
from hostile.scene import MASKS, Scene, User

TESTS = Path(__file__).resolve().parents[1]
# A trusted job has no namespaces, filters or ids to lose.
_OF_UNTRUSTED = {"userns", "seccomp"}
# An ordinary user has none to lose, where nobody has delegated one.
_OF_ROOT = {"cgroup", "cgroup-memory", "cgroup-pids"}
_SCENE_MAX = 1800.0  # seconds


@dataclass(frozen=True, slots=True)
class Row:
    """One scene of the matrix."""

    profile: Profile
    user: User
    disable: tuple[str, ...]

    def __str__(self) -> str:
        without = f"without {','.join(self.disable)}" if self.disable else ""
        return f"{self.profile:9} {self.user:6} {without}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the arguments choose; the exit code."""
    options = _parse(arguments)
    if options.here:
        return _run_here(options)
    rows = list(_rows(options))
    failures: list[str] = []
    with _busy(2 if options.busy else 0):
        for turn in range(1, options.repeat + 1):
            for row in rows:
                failures += _run_row(row, turn, options)
    for failure in failures:
        print(failure)
    print(f"{len(rows)} scenes, {options.repeat} times: {len(failures) or 'no'} complaints")
    return bool(failures)


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="hostile.matrix", description=__doc__)
    parser.add_argument("--profile", action="append", choices=("trusted", "untrusted"))
    parser.add_argument("--user", action="append", choices=("root", "nobody"))
    parser.add_argument("--mask", action="append", help="such as cgroup,landlock; 'none' for none")
    parser.add_argument("--kind", action="append", choices=sorted(KINDS))
    parser.add_argument("--case", action="append", help="ids; all by default")
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--slots", type=int, default=4, help="cases at a time")
    parser.add_argument("--busy", action="store_true", help="keep two cores busy meanwhile")
    parser.add_argument("--here", action="store_true", help="one scene, as this user")
    return parser.parse_args(arguments)


def _rows(options: argparse.Namespace) -> Iterator[Row]:
    users: list[User] = options.user or (["root", "nobody"] if os.geteuid() == 0 else ["nobody"])
    masks = [_mask(text) for text in options.mask] if options.mask else MASKS
    for profile in options.profile or ("trusted", "untrusted"):
        for user in users:
            for disable in masks:
                lacks = _OF_UNTRUSTED if profile == "trusted" else set[str]()
                lacks = lacks | (_OF_ROOT if user == "nobody" else set[str]())
                if options.mask or not lacks & set(disable):
                    yield Row(profile, user, disable)


def _mask(text: str) -> tuple[str, ...]:
    return () if text == "none" else tuple(text.split(","))


# --- one scene, in a process of its own -----------------------------------------------------


def _run_row(row: Row, turn: int, options: argparse.Namespace) -> list[str]:
    begun = time.monotonic()
    done = subprocess.run(
        _command(row, options), cwd=TESTS, env={**os.environ, "PYTHONPATH": _python_path()},
        stdout=subprocess.PIPE, text=True, timeout=_SCENE_MAX, check=False,
    )  # fmt: skip
    results = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    counts = Counter(result["result"] for result in results)
    took = time.monotonic() - begun
    print(
        f"{turn:3}  {row!s:40} {counts['holds']:4} hold {counts['fails']:4} fail "
        f"{counts['not run']:4} not run {took:6.1f} s",
        flush=True,
    )
    failures = [
        f"{row} {result['case']}: {text}" for result in results for text in result["complaints"]
    ]
    if done.returncode not in (0, 1) or not results:
        failures.append(f"{row}: the scene ended with {done.returncode}")
    return failures


def _command(row: Row, options: argparse.Namespace) -> list[str]:
    command = [sys.executable, "-m", "hostile.matrix", "--here", "--profile", row.profile]
    command += ["--mask", ",".join(row.disable) or "none", "--slots", str(options.slots)]
    for name in ("kind", "case"):
        for each in getattr(options, name) or ():
            command += [f"--{name}", each]
    if row.user == "nobody" and os.geteuid() == 0:
        return ordinary.command(command, reach=[TESTS.parent])
    return command


def _python_path() -> str:
    return os.pathsep.join(filter(None, [os.environ.get("PYTHONPATH"), str(TESTS)]))


def chosen(options: argparse.Namespace) -> list[Case]:
    """The cases that the options name."""
    kinds = options.kind or list(KINDS)
    cases = [case for kind in kinds for case in KINDS[kind]]
    if options.case:
        cases = [case for case in cases if case.id in options.case]
    return cases


def _run_here(options: argparse.Namespace) -> int:
    from hostile.harness import Stage

    stage = Stage(Scene(options.profile[0], _mask(options.mask[0])), options.slots)
    failed = False
    with stage:
        fit: list[Case] = []
        for case in chosen(options):
            if unfit := stage.plan(case):
                _tell(case.id, "not run", [], why=unfit.why)
            else:
                fit.append(case)
        for batch in in_batches(fit, options.slots):
            for case_id, complaints in stage.check(*batch).items():
                failed |= bool(complaints)
                _tell(case_id, "fails" if complaints else "holds", complaints)
        left = stage.stop()
        _tell("the end", "fails" if left else "holds", left)
    return failed or bool(left)


def in_batches(cases: Iterable[Case], size: int) -> Iterator[list[Case]]:
    """Cases by the handful, quick ones together; one that has to be alone is."""
    batch: list[Case] = []
    for case in sorted(cases, key=lambda case: (case.alone, case.timeout >= 5.0, case.timeout)):
        if case.alone or len(batch) == size:
            if batch:
                yield batch
            batch = []
        batch.append(case)
    if batch:
        yield batch


def _tell(case: str, result: str, complaints: list[str], **more: str) -> None:
    print(
        json.dumps({"case": case, "result": result, "complaints": complaints, **more}), flush=True
    )


@contextmanager
def _busy(count: int) -> Iterator[None]:
    """So many processes that do nothing but take a core each."""
    spin = [sys.executable, "-S", "-c", "while True: pass"]
    processes = [subprocess.Popen(spin) for _ in range(count)]
    try:
        yield
    finally:
        for process in processes:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main())
