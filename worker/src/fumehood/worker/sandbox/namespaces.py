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
import select
import signal
from _socket import AF_UNIX, SOCK_SEQPACKET, sethostname, socket, socketpair
from marshal import dumps, loads
from typing import NoReturn

from fumehood.worker.sandbox import kernel, mounts, slotuid
from fumehood.worker.sandbox.confinement import Config, NamespaceError, Report
from fumehood.worker.sandbox.layout import plan, stage
from fumehood.worker.sandbox.newroot import Builder

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_HOST = "sandbox"
_NOBODY = 65534
_GRACE = 6000  # milliseconds; the zygote gives its sandboxes 5 s to end
_MAP = "map"  # what the inner process asks the outer one for, where a failure names its stage
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
    pid, link = _fork(lambda link: way.live(link, become))
    _attend(pid, link, config)
    _wait(pid, control_fd)


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
        if _is_closed(link):  # the outer process died before it could take this one along
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
            _write("/proc/self/setgroups", "deny")
            _write("/proc/self/uid_map", f"{self.uid} {self.uid} 1")
            _write("/proc/self/gid_map", f"{self.gid} {self.gid} 1")
        self.report["user"] = True

    def accounts(self) -> dict[str, int]:
        return {"root": 0, "sandbox": self.uid, "nobody": _NOBODY}

    def take_identity(self, link: socket) -> None:
        _keep_sys_admin()


def _enter_user_namespace(link: socket, flags: int) -> None:
    """Enter a new one and become its root. Raises ``OSError``."""
    with stage("user"):
        mounts.unshare(flags)
    link.send(dumps((_MAP, 0, "")))
    if not link.recv(1):
        os._exit(1)
    os.setresgid(0, 0, 0)
    os.setresuid(0, 0, 0)


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


# --- the outer process ----------------------------------------------------------------------


def _has_user_namespaces(config: Config, errors: dict[str, str]) -> bool:
    """Try one: a process that is in one that cannot be used has no way back."""
    pid, link = _fork(lambda link: _enter_user_namespace(link, mounts.NEWUSER))
    try:
        _attend(pid, link, config)
    except NamespaceError as exc:
        errors["user"] = str(exc)
        return False
    _, status = os.waitpid(pid, 0)
    if status:
        errors["user"] = f"its first process ended with wait status {status}"
    return status == 0


def _fork(inner: Callable[[socket], None]) -> tuple[int, socket]:
    """Run ``inner`` in a new process; what it raises goes through the link that both have."""
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    with stage("fork"):
        pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = 1
    try:
        ours.close()
        inner(theirs)
        code = 0
    except NamespaceError as exc:
        theirs.send(dumps((exc.stage, exc.errno, exc.strerror)))
    except OSError as exc:
        theirs.send(dumps(("inner", exc.errno or 0, str(exc))))
    except BaseException as exc:
        theirs.send(dumps(("inner", 0, f"{type(exc).__name__}: {exc}"[:1000])))
    finally:
        os._exit(code)


def _attend(pid: int, link: socket, config: Config) -> None:
    """Serve the inner process until it has become another or is gone; raise what it reports."""
    while frame := link.recv(4096):
        name, number, text = loads(frame)  # noqa: S302 - from a fork of this process
        try:
            if name != _MAP:
                raise NamespaceError(name, number, text)
            with stage("uid_map"):
                _map_ids(pid, config["uids"], config["slots"] + 1)
            link.send(b"1")
        except NamespaceError:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise


def _map_ids(pid: int, base: int, count: int) -> None:
    _write(f"/proc/{pid}/uid_map", f"0 {base} {count}")
    _write(f"/proc/{pid}/gid_map", f"0 {base} {count}")


def _write(path: str, text: str) -> None:
    fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(fd, text.encode())
    finally:
        os.close(fd)


def _is_closed(link: socket) -> bool:
    poll = select.poll()
    poll.register(link.fileno(), 0)  # which leaves the hang-up
    return bool(poll.poll(0))


def _wait(pid: int, control_fd: int) -> NoReturn:
    """Wait for the end of the inner process, or of the manager; then end."""
    _write("/proc/self/comm", "fumehood-outer")
    pidfd = os.pidfd_open(pid)
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    poll.register(control_fd, 0)
    if pidfd not in dict(poll.poll()):
        # The zygote sees that too, unless a module that it imports hangs.
        poll.unregister(control_fd)
        if not poll.poll(_GRACE):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    os._exit(os.WEXITSTATUS(status) if os.WIFEXITED(status) else 128 + os.WTERMSIG(status))
