"""What becomes of tasks that fill, litter and lock what they find."""

from __future__ import annotations

import errno
import fcntl
import os
from typing import Any

from fumehood.common import Limits, Outcome, Status
from hostile.case import (
    AnyOf,
    Case,
    Expect,
    NotRun,
    crashed,
    exceeded,
    failed,
    one_of,
    succeeded,
    timed_out,
    value,
)
from hostile.outside import IPC_KEY, MARK, Outside, sweep
from hostile.tasks import disk

MIB = 1 << 20
_TMP = Limits(tmp=16 * MIB, memory=128 * MIB)
_FILE = Limits(file_size=4 * MIB, tmp=64 * MIB)


def _errno(*numbers: int) -> Expect:
    """An OSError that says one of these."""

    def said(outcome: Outcome) -> bool:
        text = outcome.error.message if outcome.error else ""
        return any(f"[Errno {number}]" in text for number in numbers)

    names = "_or_".join(errno.errorcode[number] for number in numbers)
    return failed("OSError", **{f"it_says_{names}": said})


_FULL = _errno(errno.ENOSPC, errno.EDQUOT)


def _tidy(_: Any) -> None:
    sweep()


def _lock_is_free(outside: Outside) -> str:
    fd = os.open(outside.secret_file, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return "a lock of the job's is still held"
    finally:
        os.close(fd)
    return ""


def _no_secret_written(outside: Outside) -> str:
    same = outside.secret_file.read_text() == outside.secret
    return "" if same else "a file outside was overwritten"


_TREES = ("deep", "closed", "names", "links", "loops", "fifo", "socket", "traps")

CASES = [
    Case(id="file-too-large", call=disk.fill.call(MARK, 16 * MIB), limits=_FILE, tidy=_tidy,
         trusted=exceeded("file_size")),
    Case(id="file-too-large-ignored", call=disk.ignore_the_file_limit.call(MARK, 16 * MIB),
         limits=_FILE, tidy=_tidy, trusted=_errno(errno.EFBIG)),
    Case(id="memfd-too-large", call=disk.sparse.call(MARK, 1 << 50), limits=_FILE, tidy=_tidy,
         trusted=exceeded("file_size")),
    Case(id="sparse", call=disk.sparse.call(MARK, 1 << 50), limits=_TMP, tidy=_tidy,
         # A hole takes no room; what a file system refuses differs.
         trusted=AnyOf((exceeded("file_size"), _errno(errno.EFBIG), value(1 << 50)))),
    Case(id="full-tmp", call=disk.fill.call(MARK, 64 * MIB), limits=_TMP, tidy=_tidy,
         trusted=value("unbounded"), untrusted=_FULL,
         without={"untrusted:namespaces": AnyOf((_FULL, value("unbounded"), failed("OSError")))}),
    Case(id="full-tmp-of-many", call=disk.fill_with_many.call(MARK, 64 << 10, 1000),
         limits=_TMP, tidy=_tidy, trusted=value("unbounded"), untrusted=_FULL,
         without={"untrusted:namespaces": AnyOf((_FULL, value("unbounded"), failed("OSError")))}),
    Case(id="full-tmp-caught", call=disk.fill_and_catch.call(MARK, 64 * MIB), limits=_TMP,
         tidy=_tidy, trusted=value(["done", "done"]), untrusted=value(["ENOSPC", "done"]),
         without={"untrusted:namespaces": AnyOf((succeeded(), failed("OSError")))}),
    Case(id="fallocate", call=disk.allocate.call(MARK, 64 * MIB), limits=_TMP, tidy=_tidy,
         trusted=value("unbounded"), untrusted=_FULL,
         without={"untrusted:namespaces": AnyOf((_FULL, value("unbounded"), failed("OSError")))}),
    Case(id="fallocate-huge", call=disk.allocate.call(MARK, 1 << 42), limits=_FILE, tidy=_tidy,
         trusted=exceeded("file_size")),
    Case(id="inodes", call=disk.many_names.call(MARK, 60_000), limits=_TMP, tidy=_tidy,
         trusted=NotRun("its own to do, and long to take away"), untrusted=_FULL,
         without={"untrusted:namespaces": NotRun("no inode limit but the host's")}),

    Case(id="persistence", call=disk.persist.call(MARK), trusted=succeeded(), tidy=_tidy),
    # What the case before has left is not there for the next.
    Case(id="persistence-seen", call=disk.look_for.call(MARK), trusted=value([]), alone=True),
    Case(id="ipc-residue", call=disk.ipc_residue.call(MARK, IPC_KEY), trusted=succeeded(),
         tidy=_tidy),
    *(Case(id=f"tree-{how}", call=disk.awkward_tree.call(MARK, how), trusted=value("made"),
           limits=Limits(tmp=32 * MIB), tidy=_tidy, after=_no_secret_written)
      for how in _TREES),
    Case(id="tree-immutable", call=disk.awkward_tree.call(MARK, "immutable"), tidy=_tidy,
         trusted=one_of("done", "EPERM", "ENOTTY", "EOPNOTSUPP"),
         untrusted=one_of("EPERM", "ENOTTY", "EOPNOTSUPP", "EACCES")),
    Case(id="cwd-gone", call=disk.bury_cwd.call(MARK), trusted=value("ENOENT"), tidy=_tidy),

    Case(id="descriptors", call=disk.exhaust_descriptors.call(5000),
         limits=Limits(open_files=64), trusted=_errno(errno.EMFILE)),
    Case(id="descriptors-in-flight", call=disk.pass_descriptors_to_itself.call(2000),
         limits=Limits(open_files=256), trusted=value("passed")),
    Case(id="open-files-limit", call=disk.open_files_limit.call(), limits=Limits(open_files=64),
         trusted=value(64)),
    Case(id="core", call=disk.dump_core.call(MARK), trusted=crashed("SIGABRT", "in dump_core"),
         tidy=_tidy),
    Case(id="everything-changed", call=disk.change_everything.call(), trusted=value("changed")),
    Case(id="lock", call=lambda o: disk.lock_and_hang.call(str(o.secret_file)), timeout=0.3,
         trusted=timed_out("in lock_and_hang"), after=_lock_is_free,
         untrusted=AnyOf((timed_out(), failed("Error")))),
    Case(id="lock-by-daemon", call=lambda o: disk.lock_by_daemon.call(str(o.secret_file)),
         trusted=value("left"), after=_lock_is_free,
         untrusted=AnyOf((value("left"), failed("Error")))),
    Case(id="file-size-of-output", call=disk.fill.call(MARK, 0), limits=_FILE, tidy=_tidy,
         trusted=Expect(Status.SUCCEEDED)),
]  # fmt: skip
