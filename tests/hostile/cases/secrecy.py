"""What tasks may see and change of what is not theirs."""

from __future__ import annotations

import json
import os
import sys

from fumehood.common import Outcome, Status
from hostile.case import (
    REFUSED,
    AnyOf,
    Case,
    Expect,
    NotRun,
    denied,
    exited,
    failed,
    one_of,
    succeeded,
    value,
)
from hostile.outside import MARK
from hostile.tasks import processes, secrecy

_MANAGER = os.getpid()
_HARMFUL = NotRun("a trusted job may change whatever its user may")
_VISIBLE = NotRun("a trusted job may see whatever its user may")
_CODE = [__file__, os.__file__, sys.executable, json.__file__, "/etc/passwd", "/bin/sh"]
# In a namespace of its own there is no such process; else it is not readable.
_HIDDEN = one_of("ESRCH", *REFUSED)
_UNCONFINED = {"untrusted:landlock+namespaces": NotRun("nothing is left that could deny it")}


def _same_user_sees(outcome: Outcome) -> bool:
    return not [each for each in outcome.value if each.startswith("os.environ")]


CASES = [
    *(Case(id=f"parent-{name}", call=secrecy.open_of.call(0, name), trusted=_VISIBLE,
           untrusted=one_of("done", "ESRCH", *REFUSED) if name == "maps" else _HIDDEN)
      for name in ("environ", "mem", "maps", "fd")),
    *(Case(id=f"manager-{name}", call=secrecy.open_of.call(_MANAGER, name), trusted=_VISIBLE,
           untrusted=_HIDDEN, without=_UNCONFINED)
      for name in ("environ", "mem", "maps", "fd")),
    Case(id="secrets-in-sight", call=secrecy.secrets_in_sight.call(),
         # Of the node itself a job of its user, or root's, can read; an untrusted one cannot.
         trusted=succeeded(its_own_environment_has_none=_same_user_sees),
         untrusted=value([]), without=_UNCONFINED),
    Case(id="secrets-in-memory", call=secrecy.secrets_in_memory.call(), trusted=value(0),
         untrusted=AnyOf((value(0), failed("PermissionError")))),
    Case(id="descriptors", call=secrecy.descriptors.call(), trusted=value([])),
    Case(id="secret-file", call=lambda o: secrecy.read_file.call(str(o.secret_file)),
         trusted=value("done"), untrusted=denied, without=_UNCONFINED),
    *(Case(id=f"file{path.replace('/', '-')}", call=secrecy.read_file.call(path),
           trusted=_VISIBLE, untrusted=denied)
      for path in ("/etc/shadow", "/root/.bashrc", "/proc/kcore", "/dev/vda", "/dev/mem",
                   "/proc/kallsyms-none", "/var/run/docker.sock")),
    *(Case(id=f"folder{path.replace('/', '-')}", call=secrecy.list_folder.call(path),
           trusted=_VISIBLE, without={"untrusted:namespaces": succeeded()},
           untrusted=Expect(Status.SUCCEEDED, where={
               "nothing of the host's": lambda o: not [n for n in o.value if n.startswith((
                   ".bash", ".ssh", "lost+found", "outside-", "hostile-"))]}))
      for path in ("/root", "/home", "/tmp", "/var/tmp", "/var/lib", "/mnt")),

    Case(id="overwrite-code", call=secrecy.overwrite.call(_CODE), trusted=_HARMFUL,
         untrusted=value([]), without=_UNCONFINED),
    Case(id="add-code", call=secrecy.make_beside.call(_CODE, MARK), trusted=_HARMFUL,
         untrusted=value([]), without=_UNCONFINED),
    Case(id="settings-of-the-kernel", call=secrecy.settings_of_the_kernel.call(),
         trusted=_HARMFUL, untrusted=value([])),
    Case(id="leave-the-cgroup", call=secrecy.leave_the_cgroup.call(), trusted=_HARMFUL,
         untrusted=one_of("no cgroup in sight", *REFUSED)),
    Case(id="cgroup-files", call=secrecy.cgroup_files.call(), trusted=_HARMFUL,
         untrusted=value([])),

    Case(id="patches", call=secrecy.patch_everything.call(),
         # It may be unable to hand its own value over; nobody else is.
         trusted=AnyOf((value("patched"), failed(), exited(70), exited(0)))),
    Case(id="forged-value", call=secrecy.forge_by_patching.call(), trusted=one_of(1, 42)),
    Case(id="forged-exit", call=secrecy.forge_the_exit.call(), timeout=1.0,
         trusted=AnyOf((failed("ValueError"), exited(70), Expect(Status.PROTOCOL_ERROR),
                        Expect(Status.TIMED_OUT), Expect(Status.EXITED)))),
    *(Case(id=f"chance-{number}", call=secrecy.chance.call(),
           trusted=Expect(Status.SUCCEEDED, where={
               "nothing repeats itself": lambda o: _differs(o.value)}))
      for number in range(3)),
    Case(id="channel", call=secrecy.inspect_channel.call(), trusted=succeeded()),
    Case(id="terminal", call=secrecy.terminal.call(),
         trusted=one_of("ENXIO", "ENOTTY", "ENODEV", *REFUSED)),
    Case(id="self-signal", call=processes.signal_outside.call(0, 0), trusted=value("done")),
]  # fmt: skip

_seen: set[str] = set()


def _differs(numbers: list[str]) -> bool:
    """Whether none of these numbers came before, in this process's life."""
    known = _seen & set(numbers)
    _seen.update(numbers)
    return not known
