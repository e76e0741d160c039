"""Which system calls a sandbox answers."""

from __future__ import annotations

import platform

from fumehood.common import Outcome, Status
from hostile.case import VIOLATION, AnyOf, Case, Expect, NotRun, crashed, one_of, value
from hostile.tasks import kernel

_FREE = NotRun("a trusted job may ask the kernel for whatever its user may")
_NO = ("EPERM", "EACCES", "ENOSYS", "ENOENT")
_no = one_of(*_NO)


def _not_done(outcome: Outcome) -> bool:
    return bool(outcome.value != "done")


_REFUSED_SOMEHOW = Expect(Status.SUCCEEDED, where={"it is refused": _not_done})
# Of the filter alone; without it these are an ordinary user's right.
_ANYBODYS = {"io_uring_setup", "userfaultfd", "keyctl", "personality", "unshare-user",
             "unshare-user-high-bits", "add_key", "seccomp-listener", "perf_event_open",
             "unshare-mount", "unshare-net", "kcmp", "request_key", "process_vm_readv",
             "process_vm_writev"}  # fmt: skip
_X86 = platform.machine() == "x86_64"


def _own_capabilities_are_none(outcome: Outcome) -> bool:
    names = ("CapInh", "CapPrm", "CapEff", "CapAmb")
    return all(int(outcome.value[name], 16) == 0 for name in names)


def _facts(outcome: Outcome) -> bool:
    return (outcome.value["NoNewPrivs"], outcome.value["Seccomp"]) == ("1", "2")


CASES = [
    *(Case(id=name, call=kernel.call.call(name), trusted=_FREE,
           # A process may filter itself; a listener could only hear of its own children.
           untrusted=one_of(*_NO, "EFAULT") if name == "seccomp-listener" else _no,
           without={"untrusted:seccomp":
                    Expect(Status.SUCCEEDED) if name in _ANYBODYS else _REFUSED_SOMEHOW})
      for name in kernel.CALLS),
    *(Case(id=f"clone-{name}", call=kernel.clone_with.call(flag), trusted=_FREE, untrusted=_no,
           without={"untrusted:seccomp": Expect(Status.SUCCEEDED)})
      for name, flag in (("user", 0x10000000), ("net", 0x40000000), ("mount", 0x20000))),
    Case(id="clone3", call=kernel.clone3.call(), trusted=_FREE, untrusted=value("ENOSYS"),
         without={"untrusted:seccomp": Expect(Status.SUCCEEDED)}),
    Case(id="threads", call=kernel.threads_work.call(), trusted=value("worked")),
    Case(id="capabilities", call=kernel.status.call(), trusted=Expect(Status.SUCCEEDED),
         untrusted=Expect(Status.SUCCEEDED, where={
             "it has no capabilities": _own_capabilities_are_none,
             "it can get no privileges, and is filtered": _facts}),
         without={"untrusted:seccomp": Expect(Status.SUCCEEDED, where={
             "it has no capabilities": _own_capabilities_are_none})}),
]  # fmt: skip
if _X86:
    CASES += [
        # Other tables of numbers: no filter by number means anything for them.
        Case(id="x32", call=kernel.x32_call.call(), trusted=_FREE, untrusted=VIOLATION,
             without={"untrusted:seccomp": one_of("ENOSYS", "done")}),
        Case(id="i386", call=kernel.i386_call.call(), trusted=_FREE,
             untrusted=AnyOf((VIOLATION, crashed("SIGSEGV"))),
             without={"untrusted:seccomp": AnyOf((value("done"), crashed("SIGSEGV")))}),
    ]  # fmt: skip
