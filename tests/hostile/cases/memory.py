"""What becomes of tasks that take more memory than they may."""

from __future__ import annotations

import zlib
from typing import Any

from fumehood.common import Limits, Outcome, Status
from hostile.case import (
    AnyOf,
    Case,
    Expect,
    crashed,
    exceeded,
    exited,
    failed,
    succeeded,
    timed_out,
    value,
)
from hostile.outside import IPC_KEY, MARK, sweep
from hostile.tasks import memory

MIB = 1 << 20
_LIMIT = Limits(memory=64 * MIB)
_MOST = 256 * MIB
_RAISED = failed("MemoryError")


def _peak(outcome: Outcome) -> bool:
    near = outcome.peak is None or 48 * MIB <= outcome.peak <= 72 * MIB
    return outcome.limit_value == 64 * MIB and near


_OOM = Expect(Status.LIMIT_EXCEEDED, limit="memory", where={"limit and peak are told": _peak})
# Without a count of all pages, a bound of the address space or of what a watch can see is left:
# an exception, a kill on the manager's own word, or nothing at all for what is shared.
_HEAP_WITHOUT = AnyOf((exceeded("memory"), _RAISED))
_SHARED_WITHOUT = AnyOf((exceeded("memory"), failed("Error"), value("unbounded")))


def _tidy(_: Any) -> None:
    sweep()


CASES = [
    Case(id="heap", call=memory.heap.call(_MOST), limits=_LIMIT, trusted=_OOM,
         without={"cgroup-memory": _HEAP_WITHOUT}),
    Case(id="objects", call=memory.many_objects.call(_MOST), limits=_LIMIT, trusted=_OOM,
         without={"cgroup-memory": _HEAP_WITHOUT}),
    Case(id="memory-error-swallowed", call=memory.swallowed.call(_MOST), limits=_LIMIT,
         timeout=1.0, trusted=_OOM,
         without={"cgroup-memory": AnyOf((exceeded("memory"), timed_out(), value("unbounded")))}),
    Case(id="shared-mapping", call=memory.shared_mapping.call(_MOST), limits=_LIMIT, trusted=_OOM,
         without={"cgroup-memory": _SHARED_WITHOUT}),
    Case(id="memfd", call=memory.memfd.call(_MOST), limits=_LIMIT, trusted=_OOM,
         without={"cgroup-memory": _SHARED_WITHOUT}),
    # A private /dev/shm has a size of its own, which may be reached first.
    Case(id="shm-file", call=memory.file_in.call("/dev/shm", MARK, _MOST), limits=_LIMIT,
         trusted=_OOM, untrusted=AnyOf((_OOM, failed("Error"))), tidy=_tidy,
         without={"cgroup-memory": _SHARED_WITHOUT}),
    Case(id="sysv-segment", call=memory.sysv_segment.call(IPC_KEY, _MOST), limits=_LIMIT,
         trusted=_OOM, untrusted=AnyOf((_OOM, failed("Error"))), tidy=_tidy,
         without={"cgroup-memory": _SHARED_WITHOUT}),
    Case(id="in-a-child", call=memory.in_a_child.call(_MOST, 20.0), limits=_LIMIT, timeout=3.0,
         trusted=exceeded("memory"),
         without={"cgroup-memory": AnyOf((timed_out(), exceeded("memory")))}),
    # The task itself may be done before anybody looks; its result stands then.
    Case(id="in-a-child-and-on", call=memory.in_a_child.call(_MOST, 0.0), limits=_LIMIT,
         trusted=AnyOf((exceeded("memory"), value(-9))),
         without={"cgroup-memory": AnyOf((exceeded("memory"), succeeded()))}),
    Case(id="locked", call=memory.locked.call(_MOST), limits=_LIMIT,
         trusted=AnyOf((_OOM, failed("Error"))),
         without={"cgroup-memory": _SHARED_WITHOUT}),
    Case(id="huge-pages", call=memory.huge_pages.call(_MOST), limits=_LIMIT,
         trusted=AnyOf((failed("OSError"), crashed("SIGBUS")))),
    Case(id="address-space", call=memory.address_space.call(), limits=_LIMIT,
         trusted=value("mapped 1"), without={"cgroup-memory": AnyOf((
             value("mapped 1"), failed("OSError"), _RAISED))}),
    Case(id="within-the-limit", call=memory.heap.call(24 * MIB), limits=_LIMIT,
         trusted=Expect(Status.SUCCEEDED, where={
             "its peak is its own": lambda o: 20 * MIB < o.usage.memory < 60 * MIB}),
         without={"cgroup-memory": value("unbounded")}),
    *(Case(id=f"kernel-{kind}", call=memory.kernel_objects.call(kind, most),
           limits=Limits(memory=64 * MIB, open_files=256),
           trusted=AnyOf((exceeded("memory"), failed("Error"), value("unbounded"))),
           # An address space that is full leaves no room to say why either.
           without={"cgroup-memory": AnyOf((exceeded("memory"), failed("Error"), exited(70),
                                            value("unbounded")))})
      for kind, most in {"pipes": 2000, "sockets": 2000, "epoll": 2000, "inotify": 2000,
                         "names": 20_000, "maps": 80_000}.items()),
    Case(id="inflated-argument", call=memory.inflate.call(zlib.compress(bytes(_MOST))),
         limits=_LIMIT, trusted=_OOM, without={"cgroup-memory": AnyOf((
             exceeded("memory"), _RAISED, value(_MOST)))}),
    Case(id="ten-times-the-limit", call=memory.heap.call(_MOST), limits=Limits(memory=16 * MIB),
         trusted=exceeded("memory"), without={"cgroup-memory": _HEAP_WITHOUT}),

    # Arguments that a decoder in the manager would fall over: they are refused by the job.
    *(Case(id=f"arguments-{name}", call=memory.take_anything.call(), arguments=data,
           trusted=Expect(Status.REJECTED))
      for name, data in {
          "deep": b"\x92\x91" + b"\x91" * 5000 + b"\xc0\x80",
          "wide": b"\x92\xdd\xff\xff\xff\xff\x80",
          "cut-off": b"\x92\x91\xa5hel",
          "surrogate": b"\x92\x91\xa3\xed\xa0\x80\x80",
          "no-text-for-names": b"\x92\x90\x81\x01\x02",
          "no-array": b"\x81\xa1a\x01",
          "a-bomb-of-arrays": b"\x92\x91" + b"\xdd\x00\x0f\xff\xff" * 1000 + b"\x80",
          "empty": b"",
          "trailing": b"\x92\x90\x80\x00\x00",
      }.items()),
    Case(id="arguments-many-names", call=memory.take_anything.call(), timeout=20.0,
         arguments=b"\x92\x90\xdf\x00\x00\x75\x30" + b"".join(
             b"\xa6k%05d\xc0" % number for number in range(30_000)),
         trusted=AnyOf((value(30_000), Expect(Status.REJECTED), failed("TypeError")))),
]  # fmt: skip
