"""The namespaces of an untrusted zygote, made once, before it is one.

Two processes come of the one that the manager started. The outer one stays where it is and waits.
The inner one is the first process of a PID namespace, builds its root, and becomes the zygote. Each
dies with the other, and both with the manager's end of the control socket.

With root's rights, the root is built before the user namespace is entered: code may lie where only
root can go. Inside, the mounts are then locked, and network, PIDs and host name belong to the host,
so that not even root in there can change them. Without root's rights the user namespace comes
first, and gives the rights for the rest; there are no ids for slots then.
"""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import signal
from _socket import sethostname, socket
from typing import NoReturn

from fumehood.worker.sandbox import kernel, mounts, outer, slotuid
from fumehood.worker.sandbox.confinement import Config, NamespaceError, Report
from fumehood.worker.sandbox.layout import plan, stage
from fumehood.worker.sandbox.newroot import Builder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HOST = "sandbox"
_NOBODY = 65534
_PR_SET_PDEATHSIG, _PR_CAP_AMBIENT, _PR_CAP_AMBIENT_RAISE = 1, 47, 2
_CAP_SYS_ADMIN = 21
_CAPS_VERSION = 0x20080522  # _LINUX_CAPABILITY_VERSION_3

_libc = ctypes.CDLL(None, use_errno=True)


def confine(config: Config, control_fd: int, become: Callable[[Report], NoReturn]) -> NoReturn:
    """Make the namespaces; call ``become`` in the process that is first in them.

    The calling process becomes the outer one, and ends with the inner one's exit code.
    ``control_fd`` is a socket whose other end is the manager's. Raises ``NamespaceError`` in the
    caller, for what failed in either process, with nothing left behind; ``become`` has to exec.
    """
    disabled = "userns" in config["disabled"]
    errors = {"user": "disabled"} if disabled else {}
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if os.geteuid() == 0:
        user = not disabled and _has_user_namespaces(config, errors)
        way: _Way = _AsRoot(config, errors, user)
    elif not disabled:
        way = _AsUser(config, errors)
    else:
        become(_report(config, errors))
    way.prepare()
    with stage("pid"):
        mounts.unshare(mounts.NEWPID)
    pid, link = outer.fork(lambda link: way.live(link, become))
    outer.attend(pid, link, config["uids"], config["slots"] + 1)
    outer.wait(pid, control_fd)


def _report(config: Config, errors: dict[str, str]) -> Report:
    return {
        "user": False, "pid": False, "net": False, "mount": False, "ipc": False, "uts": False,
        "cgroup": False, "slots": 0, "first": 0, "cwd": config["cwd"], "errors": errors,
    }  # fmt: skip


# --- the inner process ----------------------------------------------------------------------


class _Way:
    """The steps, and what differs with the rights that there are."""

    uid, gid = 0, 0  # the owner of what modules write while they are imported

    def __init__(self, config: Config, errors: dict[str, str]) -> None:
        self.config = config
        self.report = _report(config, errors)

    def prepare(self) -> None:
        """In the outer process, before it forks."""

    def take_identity(self, link: socket) -> None:
        """In the inner process, the last step before it becomes something else."""

    def accounts(self) -> dict[str, int]:
        """Names for the ids that are to be seen inside."""
        raise NotImplementedError

    def live(self, link: socket, become: Callable[[Report], NoReturn]) -> None:
        """All of the inner process. Raises ``NamespaceError``."""
        # Before the network is left behind, for accounts may come from there.
        builder = Builder(plan(self.config), self.config)
        self._leave("mount", mounts.NEWNS)
        self._leave("net", mounts.NEWNET)
        self._leave("ipc", mounts.NEWIPC)
        for name, flag in (("uts", mounts.NEWUTS), ("cgroup", mounts.NEWCGROUP)):
            try:
                self._leave(name, flag)
            except NamespaceError as exc:  # they hide names, and are not what holds a job
                self.report["errors"][name] = str(exc)
        if self.report["uts"]:
            with stage("uts"):
                sethostname(_HOST)
                mounts.set_domain(b"(none)")
        builder.build(self.uid, self.gid, self.accounts())
        self.report["pid"] = True
        self.report["errors"].update(builder.errors)
        with stage("identity"):
            self.take_identity(link)
            # After the identity, for a change of that clears it.
            kernel.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        self._check_code()
        if outer.is_gone(link):  # the outer process died before it could take this one along
            os._exit(1)
        with stage("exec"):
            become(self.report)

    def _leave(self, name: str, flag: int) -> None:
        with stage(name):
            mounts.unshare(flag)
        self.report[name] = True  # type: ignore[literal-required]

    def _check_code(self) -> None:
        """What only the host's root may read, nobody can read in here."""
        for path in (*self.config["path"], self.config["cwd"]):
            if os.path.exists(path) and not os.access(path, os.R_OK):
                self.report["errors"].setdefault(path, "it is not readable for others")
        try:
            os.chdir(self.config["cwd"])
        except OSError:
            self.report["cwd"] = "/"


class _AsRoot(_Way):
    """With the rights of the host's root: ids for slots, and a user namespace where there is one.

    Without a user namespace the zygote stays the host's root, in namespaces of its own.
    """

    def __init__(self, config: Config, errors: dict[str, str], user: bool) -> None:
        super().__init__(config, errors)
        base = config["uids"]
        self.report["user"] = user
        self.report["slots"] = config["slots"]
        self.report["first"] = 0 if user else base
        if user:
            self.uid = self.gid = base

    def prepare(self) -> None:
        base, count = self.config["uids"], self.config["slots"] + 1
        if base <= 0 or not slotuid.is_mapped(base, count):
            detail = f"ids {base} to {base + count - 1} do not exist here"
            raise NamespaceError("uids", errno.EINVAL, detail)

    def accounts(self) -> dict[str, int]:
        first = self.report["first"]
        slots = {f"slot{k}": first + k for k in range(1, self.config["slots"] + 1)}
        return {"root": 0, **slots, "nobody": _NOBODY}

    def take_identity(self, link: socket) -> None:
        os.setgroups([])
        if self.report["user"]:
            # With the mounts, so that none that was inherited can be changed or taken away.
            _enter_user_namespace(link, mounts.NEWUSER | mounts.NEWNS)
        else:
            first = self.report["first"] + 1
            os.setresgid(0, first, 0)  # is it possible? Better asked now than in each sandbox
            os.setresuid(0, first, 0)
            os.setresuid(0, 0, 0)
            os.setresgid(0, 0, 0)


class _AsUser(_Way):
    """With no rights but those that a user namespace gives: the one id is the node's own."""

    def __init__(self, config: Config, errors: dict[str, str]) -> None:
        super().__init__(config, errors)
        self.uid, self.gid = os.geteuid(), os.getegid()

    def prepare(self) -> None:
        with stage("user"):
            mounts.unshare(mounts.NEWUSER)
        with stage("uid_map"):
            outer.write("/proc/self/setgroups", "deny")
            outer.write("/proc/self/uid_map", f"{self.uid} {self.uid} 1")
            outer.write("/proc/self/gid_map", f"{self.gid} {self.gid} 1")
        self.report["user"] = True

    def accounts(self) -> dict[str, int]:
        return {"root": 0, "sandbox": self.uid, "nobody": _NOBODY}

    def take_identity(self, link: socket) -> None:
        _keep_sys_admin()


def _enter_user_namespace(link: socket, flags: int) -> None:
    """Enter a new one and become its root. Raises ``OSError``."""
    with stage("user"):
        mounts.unshare(flags)
    outer.ask_for_map(link)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


def _has_user_namespaces(config: Config, errors: dict[str, str]) -> bool:
    """Try one: a process that is in one that cannot be used has no way back."""
    pid, link = outer.fork(lambda link: _enter_user_namespace(link, mounts.NEWUSER))
    try:
        outer.attend(pid, link, config["uids"], config["slots"] + 1)
    except NamespaceError as exc:
        errors["user"] = str(exc)
        return False
    _, status = os.waitpid(pid, 0)
    if status:
        errors["user"] = f"its first process ended with wait status {status}"
    return status == 0


def _keep_sys_admin() -> None:
    """Keep the right to mount through the exec, which takes all rights from who is not root."""
    header = (ctypes.c_uint32 * 2)(_CAPS_VERSION, 0)
    data = (ctypes.c_uint32 * 6)()  # effective, permitted, inheritable: low words, then high ones
    if _libc.capget(header, data) == 0:
        data[2] |= 1 << _CAP_SYS_ADMIN
        if _libc.capset(header, data) == 0:
            wide = [ctypes.c_ulong(n) for n in (_PR_CAP_AMBIENT_RAISE, _CAP_SYS_ADMIN, 0, 0)]
            if _libc.prctl(_PR_CAP_AMBIENT, *wide) == 0:
                return
    number = ctypes.get_errno()
    raise OSError(number, f"capabilities: {os.strerror(number)}")
