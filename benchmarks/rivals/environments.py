"""The environments that rivals run in: ``python benchmarks/rivals/environments.py [RIVAL ...]``.

Each rival has a virtual environment of its own below ``benchmarks/.venvs``, made when it is first
asked for, from the pinned hashes in ``requirements/bench-RIVAL.txt``. RQ needs a Redis besides: the
one on PATH, else Debian's package, unpacked there and not installed, so that no service is started.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
VENVS = ROOT / "benchmarks" / ".venvs"
#: The environment without anything in it, for the standard library's own pool.
STDLIB = "stdlib"
RIVALS = ("asyncmq", "pebble", "rq")
_TIMEOUT = 90.0  # seconds that one step may take
_ALL_MAX = 600.0  # seconds for all, where this is called to make them ahead of time
# What redis-server is made of beyond a minimal Debian; the program itself is in redis-tools.
_REDIS_PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1")
_REASON_MAX = 160  # characters


class Unavailable(Exception):
    """Something that is to be measured cannot be had here; its text says why, in one line."""


def environment(rival: str, end: float) -> Path:
    """The interpreter of this rival's environment. Raises ``Unavailable``.

    Also when it cannot be made by ``end``, an instant of the monotonic clock in seconds.
    """
    folder = VENVS / rival
    python, stamp = folder / "bin" / "python", folder / "stamp"
    pins = None if rival == STDLIB else ROOT / "requirements" / f"bench-{rival}.txt"
    wanted = _digest(pins)
    if python.exists() and stamp.exists() and stamp.read_text() == wanted:
        return python
    print(f"making an environment for {rival}", file=sys.stderr, flush=True)
    make = [sys.executable, "-m", "venv", "--clear", *([] if pins else ["--without-pip"])]
    _run([*make, str(folder)], f"no environment for {rival}", end)
    if pins is not None:
        install = [str(python), "-m", "pip", "install", "--quiet", "--no-input"]
        install += ["--disable-pip-version-check", "--require-hashes", "-r", str(pins)]
        _run(install, f"pip cannot install {rival}", end)
    stamp.write_text(wanted)
    return python


def _digest(pins: Path | None) -> str:
    """What an environment was made from: another is made when it changes."""
    text = sys.version.encode() + (b"" if pins is None else pins.read_bytes())
    return hashlib.sha256(text).hexdigest()


def redis_server(end: float) -> tuple[str, dict[str, str]]:
    """A redis-server, and the environment variables that it needs. As ``environment``."""
    found = shutil.which("redis-server")
    if found is not None:
        return found, {}
    unpacked = VENVS / "redis"
    program = unpacked / "usr/bin/redis-server"
    libraries = os.pathsep.join(str(path) for path in unpacked.glob("usr/lib/*-linux-gnu"))
    if not program.exists():
        _unpack_redis(unpacked, end)
        return redis_server(end)
    return str(program), {"LD_LIBRARY_PATH": libraries}


def _unpack_redis(folder: Path, end: float) -> None:
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise Unavailable(f"there is no redis-server, and no {tool} to get one with")
    print("fetching redis-server", file=sys.stderr, flush=True)
    packages = folder / "packages"
    packages.mkdir(parents=True, exist_ok=True)
    fetch = ["apt-get", "download", "--quiet", *_REDIS_PACKAGES]
    try:
        _run(fetch, "", end, packages)
    except Unavailable:  # with lists that are old, or none yet
        _run(["apt-get", "update", "--quiet"], "apt-get update failed", end)
        _run(fetch, "there is no redis-server, and apt-get cannot fetch it", end, packages)
    for package in packages.glob("*.deb"):
        _run(["dpkg-deb", "-x", str(package), str(folder)], f"cannot unpack {package.name}", end)
    if not (folder / "usr/bin/redis-server").exists():
        raise Unavailable("Debian's packages did not hold a redis-server")


def _run(command: Sequence[str], failure: str, end: float, cwd: Path | None = None) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=max(0.0, min(_TIMEOUT, end - time.monotonic())),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise Unavailable(f"{failure}: {_plain(exc)}"[:_REASON_MAX]) from exc
    if done.returncode:
        said = [line.strip() for line in (done.stderr + done.stdout).splitlines() if line.strip()]
        errors = [line for line in said if line.lower().startswith(("error", "e:"))] or said
        why = errors[0] if errors else f"exit code {done.returncode}"
        raise Unavailable(f"{failure}: {why}"[:_REASON_MAX])


def _plain(exc: OSError | subprocess.TimeoutExpired) -> str:
    if isinstance(exc, OSError):
        return exc.strerror or str(exc)
    return f"it took more than {exc.timeout:.0f} s"


def main(rivals: Sequence[str]) -> int:
    """Make these environments, or all; 1 when one cannot be made."""
    failed = False
    end = time.monotonic() + _ALL_MAX
    for rival in rivals or (*RIVALS, STDLIB, "redis"):
        try:
            made = redis_server(end)[0] if rival == "redis" else environment(rival, end)
            print(f"{rival}: {made}")
        except Unavailable as exc:
            failed = True
            print(f"{rival}: {exc}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
