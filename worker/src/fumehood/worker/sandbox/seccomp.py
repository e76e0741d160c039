"""The system call filter of the ``untrusted`` profile, assembled here and loaded by seccomp(2).

What is not named below is allowed: the filter takes away what reaches the kernel's rarely used
parts, other processes or other machines, and leaves the rest to file permissions, Landlock,
namespaces and limits. Numbers above the last one known are answered with ENOSYS, so that a call
that a newer kernel brings has to be judged here before a task gets it.

Answers. Another architecture's calls and x32 ones end the process by SIGSYS: no honest program
makes them, and their numbers mean something else. Features that programs detect at run time
(clone3, io_uring, userfaultfd) answer ENOSYS, for programs then do without. ``socket`` answers
EACCES, as socket(2) says of one that may not be made. All else answers EPERM. Python makes a
``PermissionError`` of the last two.

Decided, and why:

* System V IPC and POSIX message queues are denied. Their objects outlive a job, and would be
  shared by all jobs of one zygote whatever namespace that is in. Python's own queues and
  semaphores are pipes and files, and go on working.
* ``flock`` and record locks are allowed, for SQLite and others need them. Two jobs that may open
  one file can so signal to each other, as they can by a processor's load; nothing of ours locks
  a file that a job may open. Leases and directory notifications, which stop or watch others'
  use of a shared file, are denied.
* ``execve`` is allowed: a filter sees no paths. Landlock's EXECUTE right decides, but not of
  a memfd; to a task that can map code into its own process that is no gain.
* ``prlimit64`` may set limits of the calling process alone: where jobs share a user id, a limit
  is a way to kill another job. Priorities and affinities of others are left to the user id.
* ``clone`` with CLONE_PARENT is denied as new namespaces are: it would make a child of the zygote.
* ``sched_setscheduler`` may choose the policies that are not real-time; ``sched_setattr`` is denied
  as a whole, for its policy lies behind a pointer, where a filter cannot look.
* ``memfd_secret`` is denied, for its pages leave the reach of whoever inspects the job.

The kernel finds out once, at loading, which numbers are allowed whatever their arguments, and
runs no filter for those (``seccomp_cache_prepare``, Linux 5.11). Only comparisons of the number
and the architecture may come before such a verdict, or it does not.
"""

from __future__ import annotations

import ctypes
from errno import EACCES, ENOSYS, EPERM
from struct import Struct

from fumehood.worker.sandbox.syscalls import HIGHEST, Architecture, architecture, call

# --- the policy -----------------------------------------------------------------------------

#: What only the set-up of a sandbox needs, and what a second filter may therefore deny later.
_SET_UP = """
mount umount2 pivot_root chroot move_mount open_tree open_tree_attr fsopen fsconfig fsmount fspick
mount_setattr unshare setns
"""
_DENIED = """
statmount listmount listns sethostname setdomainname
add_key request_key keyctl
bpf perf_event_open ptrace process_vm_readv process_vm_writev process_madvise process_mrelease kcmp
pidfd_getfd
kexec_load kexec_file_load init_module finit_module delete_module create_module get_kernel_syms
query_module reboot swapon swapoff syslog acct quotactl quotactl_fd _sysctl uselib nfsservctl
settimeofday clock_settime adjtimex clock_adjtime
iopl ioperm modify_ldt vhangup lookup_dcookie name_to_handle_at open_by_handle_at
fanotify_init fanotify_mark
set_mempolicy set_mempolicy_home_node migrate_pages move_pages mbind ioprio_set sched_setattr
memfd_secret
mq_open mq_unlink msgget msgsnd msgrcv msgctl semget semop semtimedop semctl shmget shmat shmctl
"""
_ABSENT = "clone3 io_uring_setup io_uring_enter io_uring_register userfaultfd"

_VERDICTS = {
    "allow": 0x7FFF0000,  # SECCOMP_RET_*, linux/seccomp.h
    "kill": 0x80000000,
    "deny": 0x00050000 | EPERM,
    "forbid": 0x00050000 | EACCES,
    "absent": 0x00050000 | ENOSYS,
}

# NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET, PARENT. Only clone3 takes NEWTIME.
_CLONE_FLAGS = 0x7E028000
_AF_UNIX = 1
_TIOCSTI, _TIOCLINUX, _TIOCSETD = 0x5412, 0x541C, 0x5423
_F_SETLEASE, _F_NOTIFY = 1024, 1026
_POLICIES = (0, 3, 5)  # SCHED_OTHER, SCHED_BATCH, SCHED_IDLE
_RESET_ON_FORK = 0x40000000
# Where the lower halves of the arguments lie in struct seccomp_data; both architectures are
# little-endian.
_FIRST, _SECOND, _THIRD, _THIRD_UPPER = 16, 24, 32, 36

# Calls whose arguments decide: tests of a word, and the verdict if one holds. The first that holds
# decides, else the verdict behind them all. The kernel takes these arguments as 32-bit ones: what
# a program puts into the upper half must not matter. Only a pointer is looked at in both halves.
_Test = tuple[int, str, int, str]
_ARGUMENTS: dict[str, tuple[list[_Test], str]] = {
    "clone": ([(_FIRST, "any", _CLONE_FLAGS, "deny")], "allow"),
    "socket": ([(_FIRST, "equal", _AF_UNIX, "allow")], "forbid"),
    "socketpair": ([(_FIRST, "equal", _AF_UNIX, "allow")], "forbid"),
    "ioctl": (
        [(_SECOND, "equal", it, "deny") for it in (_TIOCSTI, _TIOCLINUX, _TIOCSETD)],
        "allow",
    ),
    "fcntl": ([(_SECOND, "equal", it, "deny") for it in (_F_SETLEASE, _F_NOTIFY)], "allow"),
    "personality": ([(_FIRST, "equal", it, "allow") for it in (0, 0xFFFFFFFF)], "deny"),
    "sched_setscheduler": (
        [(_SECOND, "equal", p | r, "allow") for p in _POLICIES for r in (0, _RESET_ON_FORK)],
        "deny",
    ),
    "prlimit64": (
        [
            (_FIRST, "equal", 0, "allow"),
            (_THIRD, "any", 0xFFFFFFFF, "deny"),
            (_THIRD_UPPER, "any", 0xFFFFFFFF, "deny"),
        ],
        "allow",
    ),
}


# --- the assembler --------------------------------------------------------------------------

_LOAD, _RETURN = 0x20, 0x06  # BPF_LD | BPF_W | BPF_ABS and BPF_RET | BPF_K, linux/bpf_common.h
_JUMPS = {"equal": 0x15, "from": 0x35, "any": 0x45}  # JEQ, JGE, JSET
_instruction = Struct("=HBBI")
_NUMBER, _ARCH = 0, 4  # offsets in struct seccomp_data


class Assembler:
    """Classic BPF with names for places. Jumps go forward only, at most 255 instructions."""

    __slots__ = ("_code", "_places")

    def __init__(self) -> None:
        self._code: list[tuple[int, int, str, str]] = []
        self._places: dict[str, int] = {}

    def place(self, name: str) -> None:
        """Give the next instruction a name."""
        self._places[name] = len(self._code)

    def load(self, offset: int) -> None:
        """Load the 32-bit word at this offset, in bytes, of the data."""
        self._code.append((_LOAD, offset, "", ""))

    def jump(self, how: str, value: int, then: str, otherwise: str = "") -> None:
        """Compare the loaded word; "" is the next instruction. ``how`` is a key of ``_JUMPS``."""
        self._code.append((_JUMPS[how], value, then, otherwise))

    def answer(self, value: int) -> None:
        """End with this verdict."""
        self._code.append((_RETURN, value, "", ""))

    def assemble(self) -> bytes:
        """The program, 8 bytes an instruction. Raises ``ValueError`` for a jump out of reach."""
        return b"".join(
            _instruction.pack(code, self._reach(at, then), self._reach(at, otherwise), value)
            for at, (code, value, then, otherwise) in enumerate(self._code)
        )

    def _reach(self, at: int, name: str) -> int:
        if not name:
            return 0
        distance = self._places[name] - at - 1
        if not 0 <= distance <= 255:
            raise ValueError(f"a jump from {at} to {name} spans {distance} instructions")
        return distance


# --- the program ----------------------------------------------------------------------------

_Points = dict[int, str]
_Ranges = list[tuple[int, str]]


def program(machine: str | None = None) -> bytes:
    """The whole filter for the named machine, or for that of this process; 8 bytes an instruction.

    Raises ``UnknownArchitecture`` where the machine's system calls are not known.
    """
    arch = architecture(machine)
    return _assemble(arch, _ranges(_base(arch) | _rest(arch)) + _beyond(arch))


def base_program(machine: str | None = None) -> bytes:
    """``program`` without what the set-up of a sandbox needs: for the zygote. Raises the same."""
    arch = architecture(machine)
    return _assemble(arch, _ranges(_base(arch)) + _beyond(arch))


def rest_program(machine: str | None = None) -> bytes:
    """What ``base_program`` leaves out: for each sandbox, once it is set up. Raises the same."""
    arch = architecture(machine)
    return _assemble(arch, _ranges(_rest(arch)))


def _base(arch: Architecture) -> _Points:
    points = _named(arch, _DENIED, "deny") | _named(arch, _ABSENT, "absent")
    points |= {arch.numbers[name]: name for name in _ARGUMENTS}
    for begin, end in arch.gaps:
        points |= dict.fromkeys(range(begin, end), "absent")
    return points


def _rest(arch: Architecture) -> _Points:
    return _named(arch, _SET_UP, "deny")


def _named(arch: Architecture, names: str, verdict: str) -> _Points:
    numbers = arch.numbers
    return {numbers[name]: verdict for name in names.split() if name in numbers}


def _beyond(arch: Architecture) -> _Ranges:
    """What holds above ``HIGHEST``: nothing is there, but for x32 from bit 30 to bit 31."""
    above = [(HIGHEST + 1, "absent")]
    return [*above, (1 << 30, "kill"), (1 << 31, "absent")] if arch.x32 else above


def _ranges(points: _Points) -> _Ranges:
    """Where each run of equal verdicts begins, in ascending order; the last has no end."""
    ranges: _Ranges = []
    for number in range(HIGHEST + 1):
        verdict = points.get(number, "allow")
        if not ranges or ranges[-1][1] != verdict:
            ranges.append((number, verdict))
    return ranges


def _assemble(arch: Architecture, ranges: _Ranges) -> bytes:
    code = Assembler()
    code.load(_ARCH)
    code.jump("equal", arch.audit, "", "kill")
    code.load(_NUMBER)
    _search(code, ranges)
    for name in [name for _, name in ranges if name in _ARGUMENTS]:
        _compare_arguments(code, name)
    for verdict, value in _VERDICTS.items():
        code.place(verdict)
        code.answer(value)
    return code.assemble()


def _search(code: Assembler, ranges: _Ranges) -> None:
    """A binary search for the range of the loaded number; ends at the place its verdict names."""
    middle = len(ranges) // 2
    lower, upper = ranges[:middle], ranges[middle:]
    code.jump("from", upper[0][0], _entry(upper), _entry(lower))
    for part in (lower, upper):
        if len(part) > 1:
            code.place(_entry(part))
            _search(code, part)


def _entry(ranges: _Ranges) -> str:
    """Where the search goes on in these ranges: at a verdict once a single one is left."""
    return ranges[0][1] if len(ranges) == 1 else f"{ranges[0][0]} to {ranges[-1][0]}"


def _compare_arguments(code: Assembler, name: str) -> None:
    tests, otherwise = _ARGUMENTS[name]
    code.place(name)
    loaded = -1
    for left, (offset, how, value, verdict) in enumerate(tests, 1 - len(tests)):
        if offset != loaded:
            code.load(offset)
            loaded = offset
        code.jump(how, value, verdict, "" if left else otherwise)


# --- loading --------------------------------------------------------------------------------

_PR_SET_NO_NEW_PRIVS = 38
_SET_MODE_FILTER = 1
_descriptor = Struct("@HP")  # struct sock_fprog


class Filter:
    """A program in the form that the kernel reads: made before a fork, loaded after it.

    Loading takes a fresh child 70 to 100 us, of which 50 are the kernel's for any program at all,
    and making one takes as long again. ``rest_program`` on ``base_program`` saves some 30 of them,
    the whole program in the zygote all.
    """

    __slots__ = ("_address", "_memory")

    def __init__(self, filter_program: bytes) -> None:
        size = len(filter_program)
        instructions = ctypes.create_string_buffer(filter_program, size)
        pointer = ctypes.addressof(instructions)
        descriptor = ctypes.create_string_buffer(
            _descriptor.pack(size // _instruction.size, pointer)
        )
        self._memory = (instructions, descriptor)
        self._address = ctypes.addressof(descriptor)

    def install(self) -> None:
        """Load it for this thread and what it starts, for good; sets no_new_privs first.

        Filters add up: of several verdicts the strictest holds. Raises ``OSError``: EINVAL for
        a program that the kernel does not take, ENOSYS where it has no filters, and
        ``UnknownArchitecture``.
        """
        call("prctl", _PR_SET_NO_NEW_PRIVS, 1)
        call("seccomp", _SET_MODE_FILTER, 0, self._address)


def install(filter_program: bytes) -> None:
    """``Filter(filter_program).install()``, for who is in no hurry. Raises the same."""
    Filter(filter_program).install()
