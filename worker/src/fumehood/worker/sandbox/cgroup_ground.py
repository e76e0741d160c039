"""The directories of a cgroup, one in each hierarchy that it takes, and which those are here."""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from fumehood.worker.sandbox import cgroup_files, cgroup_sweep, cgroup_v2
from fumehood.worker.sandbox.cgroup_files import Processes
from fumehood.worker.sandbox.cgroup_host import Host
from fumehood.worker.sandbox.cgroup_v1 import LIMITING, STANDING_IN, KillLoop
from fumehood.worker.sandbox.cgroup_v2 import KillFile

Driver = Literal["v2", "v1", "hybrid", "kill-only"]

#: What a controller is for, in the words of ``Tree.holds``.
PURPOSE = {"memory": "memory", "pids": "processes", "cpuacct": "cpu", "freezer": "kill"}


@dataclass(slots=True)
class Ground:
    """The directories of one cgroup: one in each hierarchy that is needed."""

    v2: Path | None = None
    controllers: frozenset[str] = frozenset()  # those that the children of ``v2`` have
    v1: dict[str, Path] = field(default_factory=dict[str, Path])  # by controller
    kill_file: bool = True  # whether cgroup.kill may be used

    @property
    def paths(self) -> list[Path]:
        """Each directory once; first the one whose list of processes counts."""
        order = sorted(self.v1, key=("freezer", "pids", "memory", "cpuacct").index)
        found = [self.v1[name] for name in order]
        return list(dict.fromkeys(found if self.v2 is None else [self.v2, *found]))

    @property
    def driver(self) -> Driver:
        """What it is made of, in one word."""
        if self.v2 is None:
            return "v1"
        if self.v1:
            return "hybrid"
        return "v2" if self.controllers else "kill-only"

    def below(self, name: str) -> Ground:
        """A child of it, with its directories made. Raises ``OSError``, and then none is."""
        paths = self.paths
        made: list[Path] = []
        try:
            for path in paths:
                (path / name).mkdir()
                made.append(path / name)
        except OSError:
            for path in made:
                cgroup_files.remove(path)
            raise
        v1 = {controller: path / name for controller, path in self.v1.items()}
        v2 = None if self.v2 is None else self.v2 / name
        return Ground(v2, self.controllers, v1, self.kill_file)

    def killer(self, processes: Processes | None) -> KillFile | KillLoop:
        """What kills everything in it."""
        if self.v2 is not None and self.kill_file:
            with contextlib.suppress(OSError):
                return KillFile(self.v2)
        freezer = self.v1.get("freezer") if self.v2 is None else self.v2
        if freezer is not None and self.v2 == freezer and not (freezer / "cgroup.freeze").exists():
            freezer = None  # before Linux 5.2
        return KillLoop(self.paths[0], freezer, processes)

    def pids_path(self) -> Path | None:
        """The directory of its pids controller."""
        return self.v2 if "pids" in self.controllers else self.v1.get("pids")

    def remove(self) -> None:
        """Remove its directories, and what was made below them, as far as they are empty."""
        for path in self.paths:
            cgroup_files.remove(path)


def claim(host: Host, disabled: frozenset[str]) -> tuple[Ground, dict[str, str]]:
    """Make the directories of a tree, and say why what is missing is, by its purpose.

    v2 first; v1 for the limits that v2 does not have here, and for all where there is no v2. What
    dead managers have left is swept before. A ground without a path is none.
    """
    name = cgroup_sweep.new_name(os.getpid())
    wanted = frozenset(each for each in LIMITING if f"cgroup-{each}" not in disabled)
    missing = {PURPOSE[each]: "it is disabled" for each in LIMITING if each not in wanted}
    ground = Ground(kill_file="cgroup.kill" not in disabled)
    base, lacking = _choose_v2(host, disabled, wanted)
    _sweep(host, base)
    if base is not None:
        try:
            _claim_v2(ground, base, name, wanted - lacking.keys())
        except OSError as exc:
            lacking |= dict.fromkeys(wanted - lacking.keys(), _why_not(base, exc))
            lacking["v2"] = _why_not(base, exc)
    stand_ins = STANDING_IN if ground.v2 is None else ()
    for controller in (*sorted(wanted - ground.controllers), *stand_ins):
        why = _claim_v1(ground, host, controller, name, disabled)
        if why is not None:
            reasons = [lacking.get(controller, lacking.get("v2")), why]
            missing[PURPOSE[controller]] = "; ".join(filter(None, reasons))
    if ground.v2 is None:
        missing["populated"] = lacking["v2"]
        if "pids" in ground.v1:
            missing.pop("kill", None)  # nothing can fork while the processes are killed
    return ground, missing


def _choose_v2(
    host: Host, disabled: frozenset[str], wanted: frozenset[str]
) -> tuple[Path | None, dict[str, str]]:
    """Where a tree can be in v2; what is lacking there, by controller, or "v2" for all of it."""
    if "cgroup-v2" in disabled:
        return None, {"v2": "cgroup v2 is disabled"}
    if host.v2 is None:
        return None, {"v2": "no cgroup v2 is mounted that shows this process"}
    return cgroup_v2.find_room(host.v2, wanted)


def _sweep(host: Host, base: Path | None) -> None:
    places = [host.v2, *(host.v1.get(name) for name in (*LIMITING, *STANDING_IN))]
    own = [place.own for place in places if place is not None]
    cgroup_sweep.sweep(own if base is None else [base, *own])


def _claim_v2(ground: Ground, base: Path, name: str, controllers: frozenset[str]) -> None:
    path = base / name
    path.mkdir()
    try:
        cgroup_v2.pass_on(path, controllers)
    except OSError:
        path.rmdir()
        raise
    ground.v2, ground.controllers = path, controllers


def _claim_v1(
    ground: Ground, host: Host, controller: str, name: str, disabled: frozenset[str]
) -> str | None:
    """Make the directory for one controller; else say why not."""
    for mask in ("cgroup-v1", f"cgroup-{controller}"):
        if mask in disabled:
            return f"{mask} is disabled"
    place = host.v1.get(controller)
    if place is None:
        return f"no cgroup v1 with the {controller} controller is mounted that shows this process"
    path = place.own / name
    try:
        if path not in ground.v1.values():  # mounted together with another
            path.mkdir()
    except OSError as exc:
        return _why_not(place.own, exc)
    ground.v1[controller] = path
    return None


def _why_not(base: Path, exc: OSError) -> str:
    return f"no cgroup can be made in {base}: {exc.strerror or exc}"
