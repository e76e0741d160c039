"""What a doctor claims beside what jobs could really do: a process of its own, for any user.

    python -m support.doctor_claims PROFILE [MASK,MASK...]

Prints one JSON object: ``claims`` by guarantee, and ``observed`` by act.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import secrets
import socket
import sys
import time
from pathlib import Path
from typing import Any

from fumehood.common import Limits, Outcome
from fumehood.common.settings import Settings
from fumehood.common.task import Profile
from fumehood.worker import Sandbox
from fumehood.worker.sandbox.doctor import examine
from support import doctor_acts
from support.sandboxes import make_settings

MIB = 1 << 20
_LIMIT = Limits(memory=48 * MIB)
_HANG = 1.2  # seconds: a program has to start meanwhile


async def main(profile: Profile, disable: tuple[str, ...]) -> dict[str, Any]:
    settings = make_settings(disable, untrusted_requires=())
    examination = await examine(settings, profile)
    claims = {each.guarantee: [each.level, each.by] for each in examination.findings}
    return {"claims": claims, "observed": await _observe(settings, profile)}


async def _observe(settings: Settings, profile: Profile) -> dict[str, Any]:
    async with Sandbox(["support.doctor_acts"], 2, profile, settings=settings) as sandbox:
        heap = await sandbox.run(doctor_acts.fill_list.call(128 * MIB), 10.0, limits=_LIMIT)
        memfd = await sandbox.run(doctor_acts.fill_memfd.call(128 * MIB), 10.0, limits=_LIMIT)
        return {
            "heap": _in_short(heap),
            "memfd": _in_short(memfd),
            **await _see_kill(sandbox),
            **await _see_tcp(sandbox),
            **await _see_tmp(sandbox),
        }


def _in_short(outcome: Outcome) -> str:
    error = outcome.error.type if outcome.error else ""
    return f"{outcome.status} {outcome.limit or error}".strip()


async def _see_kill(sandbox: Sandbox) -> dict[str, Any]:
    mark = f"left-{secrets.token_hex(8)}"
    call = doctor_acts.leave_program_and_hang.call(mark)
    running = asyncio.ensure_future(sandbox.run(call, _HANG))
    before: list[str] = []
    while not running.done() and not before:
        before = _programs(mark)
        await asyncio.sleep(0.02)
    outcome = await running
    return {"hung": _in_short(outcome), "left before": len(before), "left after": _programs(mark)}


def _programs(mark: str) -> list[str]:
    found: list[str] = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.read_bytes().endswith(b"\0" + mark.encode() + b"\0"):
                found.append(path.parent.name)
    return found


async def _see_tcp(sandbox: Sandbox) -> dict[str, Any]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.0)
        await sandbox.run(doctor_acts.post.call(server.getsockname()[1], b"from the job"))
        try:
            connection, _ = server.accept()
        except BlockingIOError:
            return {"tcp": ""}
        with connection:
            connection.settimeout(2.0)
            return {"tcp": connection.recv(100).decode()}


async def _see_tmp(sandbox: Sandbox) -> dict[str, Any]:
    # Code below /tmp makes that folder read-only for untrusted jobs; /var/tmp is theirs anywhere.
    path = Path(f"/var/tmp/test-{secrets.token_hex(8)}")
    try:
        kept = await sandbox.run(doctor_acts.put.call(str(path), "kept"))
        seen = await sandbox.run(doctor_acts.is_there.call(str(path)))
    finally:
        on_host = _take(path)
    return {"tmp": kept.value, "tmp of the host": on_host, "tmp of the next": seen.value}


def _take(path: Path) -> bool:
    """Remove a file; whether it was there."""
    there = path.exists()
    path.unlink(missing_ok=True)
    return there


if __name__ == "__main__":
    logging.getLogger("fumehood").addHandler(logging.NullHandler())
    begun = time.monotonic()
    masks = tuple(filter(None, sys.argv[2].split(","))) if len(sys.argv) > 2 else ()
    chosen: Profile = "untrusted" if sys.argv[1] == "untrusted" else "trusted"
    print(json.dumps({**asyncio.run(main(chosen, masks)), "seconds": time.monotonic() - begun}))
