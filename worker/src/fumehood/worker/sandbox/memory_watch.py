"""Watching the memory of a job from outside, for hosts whose kernel does not hold it to a limit.

A manager that asks now and then is no limit but a watch, with ways past it:

* memory in a file that is not mapped (a memfd, a file in /dev/shm or another tmpfs, a pipe, a
  socket) belongs to no process, and is not seen;
* what grows and is given back between two looks is not seen; nor does anything stop a job that
  takes all there is before the next look;
* memory of the kernel itself (page tables, descriptors) is not seen.

RLIMIT_AS stops the growth of a process at once, and RLIMIT_FSIZE that of a file in memory: both
complete it.
"""

from __future__ import annotations

from collections.abc import Iterable

# Of /proc/PID/smaps_rollup, from Linux 5.4: what a process shares is divided among those that do.
_FAIR = (b"Pss_Anon:", b"Pss_Shmem:", b"SwapPss:")
# Of /proc/PID/status, which every user may read: what is shared counts for each that shares it.
_FULL = (b"RssAnon:", b"RssShmem:", b"VmSwap:")


def at_most(pids: Iterable[int]) -> int:
    """Bytes that these processes have in memory and swap, what they share counted for each.

    Cheap, some 60 us for each process: while this is below a limit, so is ``resident``.
    """
    return sum(_sum(f"/proc/{pid}/status", _FULL) for pid in pids)


def resident(pids: Iterable[int]) -> int:
    """Bytes that these processes have in memory and swap: their own and what they share.

    Pages of files on disk are not counted, for the kernel can take them back. What a sandbox still
    shares with its zygote counts in part: compare with a look before the job began. Where the
    kernel shows shares to nobody but the owner of a process, it is as ``at_most``. Processes that
    are gone have nothing. Costs some 80 us for each process and 10 us for each MiB that it has.
    """
    return sum(map(_fair_part, pids))


def _fair_part(pid: int) -> int:
    return _sum(f"/proc/{pid}/smaps_rollup", _FAIR) or _sum(f"/proc/{pid}/status", _FULL)


def _sum(path: str, names: tuple[bytes, ...]) -> int:
    """The numbers behind these names, in bytes; 0 where the file cannot be read."""
    try:
        with open(path, "rb", buffering=0) as file:
            lines = file.read().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) << 10 for line in lines if line.startswith(names))
