"""Tasks that call the kernel directly, for what a sandbox should not have. x86-64 and aarch64."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import platform

from fumehood.common import task

_libc = ctypes.CDLL(None, use_errno=True)
_X86 = platform.machine() == "x86_64"
_X32 = 0x40000000
_NEWUSER, _NEWNS, _NEWNET, _NEWPID = 0x10000000, 0x20000, 0x40000000, 0x20000000
_AT_FDCWD = -100
_SIGCHLD = 17

# Name -> (number on x86-64, on aarch64, arguments). Of linux/arch/x86/entry/syscalls/
# syscall_64.tbl and include/uapi/asm-generic/unistd.h. With these arguments none does anything
# of note, should it be let through.
_NULL = 0
CALLS: dict[str, tuple[int, int, tuple[object, ...]]] = {
    "unshare-user": (272, 97, (_NEWUSER,)),
    "unshare-mount": (272, 97, (_NEWNS,)),
    "unshare-net": (272, 97, (_NEWNET,)),
    "unshare-user-high-bits": (272, 97, ((1 << 32) | _NEWUSER,)),
    "setns": (308, 268, (0, 0)),
    "mount": (165, 40, (b"none", b"/none/here", b"tmpfs", 0, _NULL)),
    "umount": (166, 39, (b"/none/here", 2)),
    "pivot_root": (155, 41, (b"/", b"/")),
    "chroot": (161, 51, (b"/",)),
    "fsopen": (430, 430, (b"tmpfs", 0)),
    "open_tree": (428, 428, (_AT_FDCWD, b"/", 1)),
    "move_mount": (429, 429, (_AT_FDCWD, b"/", _AT_FDCWD, b"/", 0)),
    "mount_setattr": (442, 442, (_AT_FDCWD, b"/", 0, _NULL, 0)),
    "ptrace-attach": (101, 117, (16, "parent", 0, 0)),
    "process_vm_readv": (310, 270, ("parent", _NULL, 0, _NULL, 0, 0)),
    "process_vm_writev": (311, 271, ("parent", _NULL, 0, _NULL, 0, 0)),
    "kcmp": (312, 272, ("parent", "self", 0, 0, 0)),
    "perf_event_open": (298, 241, (_NULL, 0, -1, -1, 0)),
    "bpf": (321, 280, (5, _NULL, 0)),
    "userfaultfd": (323, 282, (0,)),
    "keyctl": (250, 219, (0, -3, 1)),
    "add_key": (248, 217, (b"user", b"hostile", b"x", 1, -4)),
    "request_key": (249, 218, (b"user", b"hostile", _NULL, -4)),
    "io_uring_setup": (425, 425, (1, _NULL)),
    "init_module": (175, 105, (_NULL, 0, b"")),
    "finit_module": (313, 273, (-1, b"", 0)),
    "delete_module": (176, 106, (b"hostile_none", 0)),
    "kexec_load": (246, 104, (0, 0, _NULL, 0)),
    "reboot": (169, 142, (0, 0, 0, _NULL)),
    "swapon": (167, 224, (b"/nonexistent", 0)),
    "acct": (163, 89, (b"/nonexistent",)),
    "settimeofday": (164, 170, (_NULL, _NULL)),
    "sethostname": (170, 161, (b"x", -1)),
    "iopl": (172, 0, (3,)),
    "quotactl": (179, 60, (0, _NULL, 0, _NULL)),
    "syslog": (103, 116, (3, _NULL, 0)),
    "personality": (135, 92, (0x0040000,)),
    "open_by_handle_at": (304, 265, (_AT_FDCWD, _NULL, 0)),
    "fanotify_init": (300, 262, (0, 0)),
    "lookup_dcookie": (212, 18, (0, _NULL, 0)),
    "pidfd_getfd": (438, 438, (-1, 0, 0)),
    "seccomp-listener": (317, 277, (1, 8, _NULL)),
    "unknown-600": (600, 600, ()),
    "vhangup": (153, 58, ()),
}  # fmt: skip


def _number(value: object) -> object:
    if value == "parent":
        return os.getppid()
    if value == "self":
        return os.getpid()
    return value


def _raw(number: int, *arguments: object) -> str:
    ctypes.set_errno(0)
    _libc.syscall.restype = ctypes.c_long
    values = [
        part if isinstance(part, bytes) else ctypes.c_long(int(str(part))) for part in arguments
    ]
    if _libc.syscall(ctypes.c_long(number), *values) >= 0:
        return "done"
    return errno.errorcode.get(ctypes.get_errno(), "?")


@task
def call(name: str) -> str:
    x86, arm, arguments = CALLS[name]
    return _raw(x86 if _X86 else arm, *map(_number, arguments))


@task
def clone_with(flags: int) -> str:
    """A child in new namespaces, by the old clone()."""
    return _born(_libc.syscall(ctypes.c_long(56 if _X86 else 220), flags | _SIGCHLD, 0, 0, 0, 0))


@task
def clone3() -> str:
    """The same by the new one, whose flags lie where no filter can look."""
    arguments = (ctypes.c_uint64 * 11)()
    arguments[0], arguments[4] = _NEWUSER, _SIGCHLD
    size = ctypes.c_size_t(ctypes.sizeof(arguments))
    return _born(_libc.syscall(ctypes.c_long(435), ctypes.byref(arguments), size))


def _born(child: int) -> str:
    if child == 0:
        os._exit(0)
    return "done" if child > 0 else errno.errorcode.get(ctypes.get_errno(), "?")


@task
def x32_call() -> str:
    """The getpid of the x32 table, which a filter for x86-64 alone would let pass."""
    return _raw(_X32 | 39)


@task
def i386_call() -> str:
    """A getpid by int 0x80: another architecture's numbers."""
    code = b"\xb8\x14\x00\x00\x00\xcd\x80\xc3"  # mov eax, 20; int 0x80; ret
    area = mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    area.write(code)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    return "done" if ctypes.CFUNCTYPE(ctypes.c_int)(address)() > 0 else "refused"


@task
def status() -> dict[str, str]:
    """What the kernel says of this process."""
    with open("/proc/self/status") as file:  # noqa: PTH123
        pairs = [line.split(":", 1) for line in file]
    return {name: value.strip() for name, value in pairs}


@task
def threads_work() -> str:
    import threading

    said: list[str] = []
    thread = threading.Thread(target=said.append, args=("worked",))
    thread.start()
    thread.join()
    return said[0]
