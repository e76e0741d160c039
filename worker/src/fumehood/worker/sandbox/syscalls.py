"""System calls by number: what each architecture calls them, and one way to make them.

Numbers are from Linux's own tables, ``arch/x86/entry/syscalls/syscall_64.tbl`` and
``scripts/syscall.tbl`` (aarch64), as of Linux 7.0. Only calls that the sandbox names are listed.
"""

from __future__ import annotations

import ctypes
import os
import sys
from errno import ENOSYS

#: The highest system call number known here. What lies above has not been judged by anybody.
HIGHEST = 471  # rseq_slice_yield, Linux 7.0

# Name, number on x86-64, number on aarch64; "-" where it does not exist.
_TABLE = """
mount 165 40, umount2 166 39, pivot_root 155 41, chroot 161 51, move_mount 429 429,
open_tree 428 428, open_tree_attr 467 467, fsopen 430 430, fsconfig 431 431, fsmount 432 432,
fspick 433 433, mount_setattr 442 442, statmount 457 457, listmount 458 458, listns 470 470,
unshare 272 97, setns 308 268, sethostname 170 161, setdomainname 171 162, clone 56 220,
clone3 435 435, add_key 248 217, request_key 249 218, keyctl 250 219, bpf 321 280,
perf_event_open 298 241, ptrace 101 117, process_vm_readv 310 270, process_vm_writev 311 271,
process_madvise 440 440, process_mrelease 448 448, kcmp 312 272, pidfd_getfd 438 438,
kexec_load 246 104, kexec_file_load 320 294, init_module 175 105, finit_module 313 273,
delete_module 176 106, create_module 174 -, get_kernel_syms 177 -, query_module 178 -,
reboot 169 142, swapon 167 224, swapoff 168 225, syslog 103 116, acct 163 89, quotactl 179 60,
quotactl_fd 443 443, settimeofday 164 170, clock_settime 227 112, adjtimex 159 171,
clock_adjtime 305 266, personality 135 92, iopl 172 -, ioperm 173 -, modify_ldt 154 -,
vhangup 153 58, name_to_handle_at 303 264, open_by_handle_at 304 265, lookup_dcookie 212 18,
nfsservctl 180 42, _sysctl 156 -, uselib 134 -, fanotify_init 300 262, fanotify_mark 301 263,
set_mempolicy 238 237, set_mempolicy_home_node 450 450, migrate_pages 256 238, move_pages 279 239,
mbind 237 235, ioprio_set 251 30, sched_setscheduler 144 119, sched_setattr 314 274,
prlimit64 302 261, memfd_secret 447 447, mq_open 240 180, mq_unlink 241 181, msgget 68 186,
msgsnd 69 189, msgrcv 70 188, msgctl 71 187, semget 64 190, semop 65 193, semtimedop 220 192,
semctl 66 191, shmget 29 194, shmat 30 196, shmctl 31 195, io_uring_setup 425 425,
io_uring_enter 426 426, io_uring_register 427 427, userfaultfd 323 282, socket 41 198,
socketpair 53 199, ioctl 16 29, fcntl 72 25, prctl 157 167, seccomp 317 277,
landlock_create_ruleset 444 444, landlock_add_rule 445 445, landlock_restrict_self 446 446,
capget 125 90, capset 126 91
"""


class UnknownArchitecture(OSError):
    """This machine's system calls are not known here: what needs their numbers is absent."""


class Architecture:
    """The system calls of one architecture.

    ``machine`` is what ``os.uname`` says, ``audit`` the ``AUDIT_ARCH_*`` value that seccomp sees,
    ``numbers`` the number of each call by name, ``gaps`` half-open ranges of numbers up to
    ``HIGHEST`` that no call has, and ``x32`` whether a second set of calls lies at bit 30.
    """

    __slots__ = ("audit", "gaps", "machine", "numbers", "x32")

    def __init__(
        self, machine: str, column: int, audit: int, gaps: list[tuple[int, int]], *, x32: bool
    ) -> None:
        self.machine = machine
        self.audit = audit
        self.gaps = gaps
        self.x32 = x32
        rows = [entry.split() for entry in _TABLE.replace("\n", " ").split(",")]
        self.numbers = {row[0]: int(row[column]) for row in rows if row[column] != "-"}


#: By the name of the machine. An audit value is the ELF machine, with bits for 64 bit and
#: little endian (``linux/audit.h``).
ARCHITECTURES = {
    "x86_64": Architecture("x86_64", 1, 0xC000003E, [(337, 424)], x32=True),
    "aarch64": Architecture("aarch64", 2, 0xC00000B7, [(244, 260), (295, 424)], x32=False),
}


def _detect() -> Architecture | None:
    # A 32-bit interpreter makes other calls than the machine's name says.
    return ARCHITECTURES.get(os.uname().machine) if sys.maxsize > 1 << 32 else None


_here = _detect()
_numbers = _here.numbers if _here else {}


def architecture(machine: str | None = None) -> Architecture:
    """The named architecture, or that of this process. Raises ``UnknownArchitecture``."""
    found = ARCHITECTURES.get(machine) if machine else _here
    if found is None:
        name = machine or f"{os.uname().machine}, {sys.maxsize.bit_length() + 1} bit"
        raise UnknownArchitecture(ENOSYS, f"no system call numbers are known for {name}")
    return found


# One binding for all, resolved before any fork. A child pays for its first use with copied pages,
# 35 us and more; each further call, whatever its name, then costs a few.
_syscall = ctypes.CDLL(None, use_errno=True).syscall
_syscall.argtypes = [ctypes.c_long] + [ctypes.c_ulong] * 6
_syscall.restype = ctypes.c_long
_get_errno = ctypes.get_errno


def call(  # noqa: PLR0917 - packing and padding words costs a fresh process more
    name: str, a: int = 0, b: int = 0, c: int = 0, d: int = 0, e: int = 0, f: int = 0
) -> int:
    """Make one system call with up to six words; negative ones are sign-extended.

    Raises ``OSError`` that names the call, and ``UnknownArchitecture`` where its number is unknown.
    """
    number = _numbers.get(name)
    if number is None:
        raise UnknownArchitecture(ENOSYS, f"{name} has no known number on {os.uname().machine}")
    result: int = _syscall(number, a, b, c, d, e, f)
    if result == -1:
        code = _get_errno()
        raise OSError(code, f"{name}: {os.strerror(code)}")
    return result
