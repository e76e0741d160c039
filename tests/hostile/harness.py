"""The one harness: runs cases in a scene, and looks at the invariants after each.

I1 the manager's loop is never late; I2 the zygote lives, with one thread and the same descriptors;
I3 no process is left; I4 nor anything else; I5 no cgroup after the end; I6 one outcome, the right
one, in time; I7 a canary in the same seat finds everything as it should be. I8, the broker, is
``test_broker``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import gc
import os
import time
from collections.abc import Coroutine, Sequence
from types import TracebackType
from typing import Any, Self

from support.sandboxes import Bench, cgroups_of, make_settings

from fumehood.common import Outcome
from fumehood.worker import Sandbox
from fumehood.worker.sandbox.options import make_job
from hostile import inside, watch
from hostile import outside as outside_module
from hostile.case import NO_STACK, Case, NotRun, describe
from hostile.outside import MARK, Outside
from hostile.peace import Peace
from hostile.scene import Scene
from hostile.tasks import canary

MODULES = tuple(
    f"hostile.tasks.{name}"
    for name in (
        "canary", "disk", "exits", "kernel", "memory", "network", "processes", "results",
        "secrecy", "times", "wire",
    )
)  # fmt: skip
LAG_MAX = 0.1  # seconds that the manager's loop may be late
GROWTH_MAX = 48 << 20  # bytes that one case may add to the manager
_CANARY_TIMEOUT = 20.0
_CANARIES_MAX = 6  # for each slot, until each seat must have been used again
_MARK_VARIABLE = "HOSTILE_MARK"


@dataclasses.dataclass(slots=True)
class Run:
    """One case's run: where it sat, how long it took, and how it ended."""

    case: Case
    outcome: Outcome | None = None
    seat: int | None = None
    took: float = 0.0
    complaints: list[str] = dataclasses.field(default_factory=list[str])


class Stage:
    """A started sandbox in a scene, and what is known of it in peace."""

    def __init__(self, scene: Scene, slots: int = 1) -> None:
        self.scene = scene
        self.lost = scene.lost
        self._slots = slots
        self._serial = 0
        self._closing = contextlib.ExitStack()

    # --- life -------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        try:
            self._start()
        except BaseException:
            self._closing.close()
            raise
        return self

    def _start(self) -> None:
        self.outside = self._closing.enter_context(Outside())
        self._set_environment()
        self._closing.callback(outside_module.sweep)
        self._older = set(cgroups_of(os.getpid()))
        settings = make_settings(
            self.scene.disable, sandbox_env=(_MARK_VARIABLE,), untrusted_requires=()
        )
        sandbox = Sandbox(MODULES, self._slots, self.scene.profile, settings=settings)
        self._settings, self.sandbox = settings, sandbox
        self._bench = self._closing.enter_context(Bench(sandbox))
        self._peace = Peace(sandbox.manager)
        self._faults: list[str] = []
        self._bench._loop.set_exception_handler(self._on_fault)
        self._ticker = watch.Ticker(self._bench._loop)
        self._closing.callback(self._ticker.stop)
        # What a test run has gathered by now is no garbage of a node's, and takes long to look at.
        gc.collect()
        gc.freeze()
        self._closing.callback(gc.unfreeze)
        self._learn()

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.stop()

    def _set_environment(self) -> None:
        for name, text in ((_MARK_VARIABLE, MARK), ("HOSTILE_SECRET", self.outside.secret)):
            os.environ[name] = text
            self._closing.callback(os.environ.pop, name, None)

    def _learn(self) -> None:
        """See every seat in peace, and what the zygote has open once it knows them all."""
        self._peace.forget()
        for _ in range(6 * (self._slots + 1)):
            for run in self._bench.wait(self._canaries_in(set())):
                assert run.outcome is not None
                if not run.outcome.ok:
                    raise AssertionError(f"a canary in peace: {describe(run.outcome)}")
                self._peace.compare(run.seat, run.outcome.value)
        if not self._peace.has_canaries:
            raise AssertionError("no canary could be seen in its seat")
        self._peace.learn()

    def _on_fault(self, _: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        """What the manager's own callbacks raise, which nobody else would hear of."""
        self._faults.append(f"I1: in the loop: {context['message']}: {context.get('exception')!r}")

    def stop(self) -> list[str]:
        """End everything; complaints about what is left then (I5)."""
        self._closing.close()
        left, left_over = watch.marked(MARK), set(cgroups_of(os.getpid())) - self._older
        found = [f"I5: a cgroup is left: {path}" for path in left_over]
        found += [f"I3: processes are left at the end: {left}"] * bool(left)
        return found + self._faults

    # --- cases ------------------------------------------------------------------------------

    def check(self, *cases: Case) -> dict[str, list[str]]:
        """Run cases side by side; complaints by case, where an empty list says that all holds.

        What cannot be told to be the doing of one of several stands under all their names.
        """
        self._ticker.take()
        before = watch.resident()
        runs = self._bench.wait(self._run_all(cases), timeout=300.0)
        lag = self._ticker.take()
        for run in runs:
            run.complaints += self._judge(run)
            self._tidy(run.case)
        common = [f"I1: the loop was {lag:.3f} s late"] * (lag > LAG_MAX)
        common += self._invariants(cases)
        growth = watch.resident() - before
        common += [f"I1: the manager grew by {growth >> 20} MiB"] * (growth > GROWTH_MAX)
        common += self._faults
        self._faults.clear()
        common += self._canaries_after({run.seat for run in runs if run.seat is not None})
        found = {run.case.id: run.complaints for run in runs}
        if common:
            found.setdefault(" | ".join(found), []).extend(common)
        return found

    def plan(self, case: Case) -> NotRun | None:
        """Why a case is not run in this scene, if it is not."""
        expected = case.expectation(self.scene.profile, self.lost)
        return expected if isinstance(expected, NotRun) else None

    async def _run_all(self, cases: Sequence[Case]) -> list[Run]:
        return await asyncio.gather(*map(self._run, cases))

    async def _run(self, case: Case) -> Run:
        call = case.call(self.outside) if callable(case.call) else case.call
        self._serial += 1
        job_id = f"{case.id}-{self._serial}"
        if case.arguments is None:
            coroutine = self.sandbox.run(
                call, case.timeout, job_id=job_id, limits=case.limits, on_progress=_listen
            )
        else:
            job = make_job(call, self._settings, job_id, timeout=case.timeout, limits=case.limits)
            job = dataclasses.replace(job, arguments=case.arguments)
            coroutine = self.sandbox.manager.run(job)
        return await self._attempt(Run(case), job_id, coroutine)

    async def _canary(self) -> Run:
        self._serial += 1
        job_id = f"canary-{self._serial}"
        call = canary.canary.call(MARK)
        coroutine = self.sandbox.run(call, _CANARY_TIMEOUT, job_id=job_id)
        return await self._attempt(Run(_CANARY), job_id, coroutine)

    async def _attempt(self, run: Run, job_id: str, coroutine: Coroutine[Any, Any, Outcome]) -> Run:
        begun = time.monotonic()
        job = asyncio.ensure_future(coroutine)
        while not job.done() and run.seat is None:
            await asyncio.sleep(0)
            run.seat = inside.seat_of(self.sandbox.manager, job_id)
            begun = time.monotonic()
            if run.seat is None:
                await asyncio.sleep(0.0005)
        run.outcome = outcome = await job
        run.took = time.monotonic() - begun
        if outcome.job_id != job_id:
            run.complaints.append(f"I6: the outcome of another job: {outcome.job_id!r}")
        return run

    def _judge(self, run: Run) -> list[str]:
        """I6: the right outcome, in time."""
        case, outcome = run.case, run.outcome
        assert outcome is not None
        expected = case.expectation(self.scene.profile, self.lost)
        assert not isinstance(expected, NotRun), f"{case.id} is not for this scene"
        found = [
            f"I6: {each}"
            for each in expected.complaints(outcome)
            if each != NO_STACK or self._slots == 1
        ]
        if run.took > case.timeout + case.late:
            found.append(f"I6: it took {run.took:.2f} s, its timeout is {case.timeout:g} s")
        if outcome.ok != (outcome.value_bytes is not None):
            found.append("I6: a value without success, or the other way round")
        if case.after is not None:
            found += [text for text in [case.after(self.outside)] if text]
        return found

    def _tidy(self, case: Case) -> None:
        if case.tidy is not None and self.scene.profile == "trusted":
            case.tidy(self.outside)

    # --- invariants -------------------------------------------------------------------------

    def _invariants(self, cases: Sequence[Case]) -> list[str]:
        self._peace.settle()
        found = self._peace.complaints(self.outside)
        if self._peace.is_new():
            if not any(case.loses_zygote & {*self.lost, self.scene.profile} for case in cases):
                found.append("I2: the zygote is not the same any more")
            self._learn()
        return found

    def _canaries_after(self, seats: set[int]) -> list[str]:
        """I7: canaries until one has sat in each of the seats, all of them compared."""
        found: list[str] = []
        left = set(seats)
        for _ in range(_CANARIES_MAX):
            for told in self._bench.wait(self._canaries_in(left)):
                assert told.outcome is not None
                left.discard(told.seat or 0)
                if told.outcome.ok:
                    found += self._peace.compare(told.seat, told.outcome.value)
                else:
                    found.append(f"I7: the canary: {describe(told.outcome)}")
            if not left or found:
                return found
        # One that stays below others in the pile is compared when it is used next.
        return found

    async def _canaries_in(self, seats: set[int]) -> list[Run]:
        """One canary for each slot, these seats first of those that are free."""
        inside.free_seats(self.sandbox.manager).sort(key=lambda seat: seat.number in seats)
        return await asyncio.gather(*(self._canary() for _ in range(self._slots)))


def _listen(fraction: float, message: str, data: Any) -> None:
    """Reports are none of a hostile case's concern, but for how many come."""


_CANARY = Case(id="canary", call=canary.ping.call(1), trusted=NotRun("never by itself"))
