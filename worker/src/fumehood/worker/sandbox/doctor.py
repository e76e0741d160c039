"""The doctor: real jobs try what they should not be able to do, and what comes of it is judged.

1. Put targets in place, and try what the node itself can do with them: the positive controls.
2. Start a manager as a node would, for tasks that try the same: the negative controls.
3. Judge what was seen (``judging``). What could not be tried is absent, never an exception.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import time
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

from fumehood.common.codec import encode
from fumehood.common.errors import SandboxUnavailable
from fumehood.common.limits import Limits
from fumehood.common.outcome import Outcome, Status
from fumehood.common.settings import Settings
from fumehood.common.task import Profile
from fumehood.worker.sandbox import acts, killer, witness
from fumehood.worker.sandbox.guarantees import DESCRIPTIONS, PROMISED, Examination
from fumehood.worker.sandbox.job import Job, OnProgress
from fumehood.worker.sandbox.judging import (
    CPU,
    EXIT_CODE,
    HANGS_IN,
    MEMORY,
    PROCESSES,
    TMP,
    Seen,
    finding,
)
from fumehood.worker.sandbox.judging_reach import JUDGES
from fumehood.worker.sandbox.manager import SandboxManager
from fumehood.worker.sandbox.options import manager_config
from fumehood.worker.sandbox.remedies import Host
from fumehood.worker.sandbox.targets import Targets

log = logging.getLogger("fumehood.sandbox")

MODULE = "fumehood.worker.sandbox.probes"

_SLOTS = 3
_ALL_MAX = 20.0  # seconds for all of one profile; it takes one
_JOB_MAX, _JOB_LONGER = 4.0, 8.0  # seconds of one job, and when it is tried again
_HANGS = (0.25, 1.5)  # seconds until the deadline of the job that hangs; at the second try
_LOOK = 0.004  # seconds between looks for a process
_SPINNERS, _SPIN_EACH, _LINGER = 3, 0.06, 0.4  # children, seconds of CPU time of each, seconds
_SPIN_ALONE = 1.5  # seconds of CPU time; RLIMIT_CPU counts whole ones
_RESULT_MAX, _OUTPUT_MAX = 1 << 20, 1 << 16
_MIB = 1 << 20


async def examine(settings: Settings, profile: Profile) -> Examination:
    """What this host holds of each guarantee, as jobs of this profile find it.

    Takes about a second, uses a tenth of a second of CPU time beside it, and 32 MiB for a moment.
    Mechanisms that ``settings.sandbox_disable`` names are not used. Never raises for what fails.
    """
    begun = time.monotonic()
    seen = await _Round(settings, profile).run()
    promised = PROMISED[profile]
    findings = tuple(finding(seen, name, JUDGES[name], promised) for name in DESCRIPTIONS)
    return Examination(profile, findings, time.monotonic() - begun)


class _Round:
    """One examination of one profile."""

    def __init__(self, settings: Settings, profile: Profile) -> None:
        config = manager_config(settings, [MODULE], _SLOTS, profile)
        self._profile: Profile = profile
        self._disabled = config.disabled
        # The settings' own watch over files of code is for those of tasks.
        self._manager = SandboxManager(replace(config, watch_code=False, tmp=TMP))
        self._targets = Targets()
        self._serial = itertools.count(1)
        self._outcomes: dict[str, Outcome] = {}
        self._facts: dict[str, Any] = {}

    async def run(self) -> Seen:
        """Try everything. Whatever fails leaves its part unseen."""
        opening = asyncio.ensure_future(asyncio.to_thread(self._targets.open))
        try:
            return self._seen(await self._try_in_time(opening))
        finally:
            await asyncio.shield(asyncio.ensure_future(self._end(opening)))

    async def _try_in_time(self, opening: asyncio.Future[None]) -> str:
        """What went wrong as a whole, if anything did."""
        try:
            async with asyncio.timeout(_ALL_MAX):
                await self._manager.start()
                await asyncio.shield(opening)
                self._look_around()
                await self._try_all()
        except TimeoutError:
            log.warning("the examination of the host took too long", extra={"limit": _ALL_MAX})
            return f"it was not over after {_ALL_MAX:g} s"
        except Exception as exc:  # of the host, the disk, the zygote: all of them are findings
            return f"{type(exc).__name__}: {exc}"
        return ""

    async def _end(self, opening: asyncio.Future[None]) -> None:
        await self._manager.stop()
        await asyncio.wait((opening,))  # a thread cannot be told to leave off
        if not opening.cancelled():
            opening.exception()  # told already, or of no interest any more
        await asyncio.to_thread(self._targets.close)

    def _seen(self, failure: str) -> Seen:
        report = self._manager.report
        host = Host(
            self._disabled,
            self._facts.pop("missing", {}),
            {"start": failure} if failure else {} if report is None else report["errors"],
            report is not None and report["pid"] and report["mount"] and report["net"],
        )
        return Seen(
            profile=self._profile,
            host=host,
            outcomes=self._outcomes,
            controls=self._targets.controls,
            failure="" if self._outcomes else failure,
            code=tuple(self._targets.code),
            network_namespace=acts.network_namespace(),
            **self._facts,
        )

    def _look_around(self) -> None:
        """What the manager says of itself: it explains findings, and only ever lowers them."""
        seats = self._manager.seats
        tree = seats.tree
        self._facts = {
            "missing": dict(seats.missing),
            "holds": frozenset() if tree is None else tree.holds,
            "driver": "" if tree is None else tree.driver,
            "kills_surely": tree is not None and witness.kills_surely(tree),
            "own_uids": seats.ids is not None,
        }

    def _zygotes(self) -> list[int]:
        """The zygote, and what keeps it in its namespaces, as this process knows them."""
        return [pid for zygote in self._manager.zygote_pids for pid in self._with_inner(zygote)]

    @staticmethod
    def _with_inner(zygote: int) -> list[int]:
        return [zygote, *filter(witness.is_init, killer.children_of(zygote))]

    # --- trying -----------------------------------------------------------------------------

    async def _try_all(self) -> None:
        """All probes, side by side as far as slots go; what is timed comes alone.

        Sandboxes that fail to start make their manager wary of all others: where some did, they are
        tried again one after another, and first those that were asked for nothing special. Where
        the first one fails, which is asked for nothing special either, none would do better.
        """
        await self._hang()
        if self._had_no_sandbox("hang"):
            raise SandboxUnavailable(self._outcomes.pop("hang").reason)
        probes = self._probes()
        await asyncio.gather(*(probe() for probe in probes.values()))
        for names, probe in probes.items():
            if any(map(self._had_no_sandbox, names)):
                await probe()

    def _probes(self) -> dict[tuple[str, ...], Callable[[], Coroutine[Any, Any, object]]]:
        """Probes by the names of their outcomes: without limits, and then with."""
        memory, many = Limits(memory=MEMORY), Limits(processes=PROCESSES)
        return {
            ("stay", "processes", "network"): self._reach,
            ("files",): lambda: self._run("files", "reach_files", *self._paths()),
            ("kernel",): lambda: self._run("kernel", "reach_kernel"),
            ("crash",): lambda: self._run("crash", "crash"),
            ("leave",): lambda: self._run("leave", "leave", EXIT_CODE),
            ("litter", "look"): self._litter,
            ("little heap",): lambda: self._run("little heap", "heap", 8 * _MIB, limits=memory),
            ("heap",): lambda: self._run("heap", "heap", 3 * MEMORY, limits=memory),
            ("memfd",): lambda: self._run("memfd", "memfd", 3 * MEMORY, limits=memory),
            ("forks",): lambda: self._run("forks", "forks", 3 * PROCESSES, limits=many),
            ("little cpu", "cpu together", "cpu alone"): self._spend_cpu,
        }

    def _had_no_sandbox(self, name: str) -> bool:
        outcome = self._outcomes.get(name)
        return outcome is not None and outcome.status is Status.START_FAILED

    async def _hang(self) -> None:
        """Have a job killed that left something; once more, and slower, if nothing came of it."""
        for timeout in _HANGS:
            hanging = self._run("hang", "hang", self._targets.mark, timeout=timeout)
            job = asyncio.ensure_future(hanging)
            try:
                seen = await self._sees_mark(job)
                outcome = await job
            finally:
                job.cancel()
            left = await asyncio.to_thread(self._targets.marked)
            self._facts |= {"was_marked": seen, "still_marked": tuple(left)}
            if (seen and HANGS_IN in outcome.stack) or left or self._had_no_sandbox("hang"):
                return

    async def _sees_mark(self, job: asyncio.Future[Outcome]) -> bool:
        """Whether the process that bears the mark is seen before the job's end."""
        while not job.done():
            for zygote in self._manager.zygote_pids:
                if any(map(self._targets.bears, killer.descendants_of(zygote))):
                    # Asked of one that has forked: before that it had not settled it.
                    reaps = map(witness.leaves_reaping_to_the_kernel, self._with_inner(zygote))
                    self._facts["kernel_reports"] = any(reaps)
                    self._facts["pid_namespace"] = len(self._with_inner(zygote)) > 1
                    return True
            await asyncio.sleep(_LOOK)
        return False

    async def _reach(self) -> None:
        """Reach for other processes, one of which is another job's; then for the network."""
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def on_progress(_: float, message: str, __: Any) -> None:
            if not told.done():
                told.set_result(int(message))

        staying = asyncio.ensure_future(self._run("stay", "stay", on_progress=on_progress))
        try:
            await asyncio.wait((staying, told), return_when=asyncio.FIRST_COMPLETED)
            neighbour = self._targets.neighbour
            if told.done() and neighbour is not None:
                pids = {f"zygote {n}": pid for n, pid in enumerate(self._zygotes(), 1)}
                pids |= {"the node": os.getpid(), "another job": told.result()}
                await self._run("processes", "reach_processes", pids, neighbour.pid)
                # A signal that went through is felt within a moment.
                await asyncio.sleep(_LOOK)
                self._facts["neighbour_lives"] = self._targets.has_neighbour()
        finally:
            staying.cancel()
            await asyncio.wait((staying,))
        where = self._targets.addresses
        await self._run("network", "reach_network", where, self._targets.text)
        self._facts["datagrams"] = frozenset(self._targets.received())

    async def _litter(self) -> None:
        mark = self._targets.mark
        try:
            await self._run("litter", "litter", mark, 4 * TMP)
            await self._run("look", "look_for", mark)
        finally:
            self._facts["litter"] = tuple(self._targets.take_litter())

    async def _spend_cpu(self) -> None:
        limits, together = Limits(cpu=CPU), (_SPINNERS, _SPIN_EACH, _LINGER)
        await self._run("little cpu", "spin", CPU / 10, limits=limits)
        await self._run("cpu together", "spin_together", *together, limits=limits)
        # A second of a whole CPU, which only a host pays that needs to know.
        if not self._outcomes["cpu together"].limit:
            await self._run("cpu alone", "spin", _SPIN_ALONE, limits=limits)

    def _paths(self) -> tuple[list[str], list[str], list[str]]:
        """Code, files out of sight, and the files by which a process joins another cgroup."""
        tree = self._manager.seats.tree
        joins = [] if tree is None else [f"{path}/cgroup.procs" for path in tree.where]
        return self._targets.code, self._targets.hidden, joins

    async def _run(
        self,
        name: str,
        task: str,
        *arguments: Any,
        timeout: float | None = None,
        limits: Limits | None = None,
        on_progress: OnProgress | None = None,
    ) -> Outcome:
        """Run a probe, and once more with more time if it did not come to an end.

        ``timeout`` is for those that are meant to reach it.
        """
        outcome = await self._run_once(task, arguments, timeout or _JOB_MAX, limits, on_progress)
        if timeout is None and outcome.status is Status.TIMED_OUT:
            outcome = await self._run_once(task, arguments, _JOB_LONGER, limits, on_progress)
        self._outcomes[name] = outcome
        return outcome

    def _run_once(
        self,
        task: str,
        arguments: tuple[Any, ...],
        timeout: float,
        limits: Limits | None,
        on_progress: OnProgress | None,
    ) -> Coroutine[Any, Any, Outcome]:
        job = Job(
            job_id=f"doctor-{next(self._serial)}",
            task=f"{MODULE}.{task}",
            # What an operator caps is for tasks: a probe is always the same.
            arguments=b"\x92" + encode(list(arguments)) + encode({}),
            timeout=timeout,
            result_max=_RESULT_MAX,
            output_max=_OUTPUT_MAX,
            limits=limits or Limits(),
            profile=self._profile,
            on_progress=on_progress,
        )
        return self._manager.run(job)
