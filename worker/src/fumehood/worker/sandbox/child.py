"""The sandbox: what happens in a forked process from its first instruction to ``_exit``.

An ordered list of steps. Each is named before it is taken, so that a failure tells its stage; up to
READY nothing is the task's fault, after it everything is judged by the manager from outside.

After a fork every page that is touched is copied at its first touch, even by a reference count. The
code on the common path is therefore plain: few objects, no exceptions, no context managers. What
can be done once is done in the zygote and inherited (signals, faulthandler, limits).
"""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, MSG_DONTWAIT, SOCK_SEQPACKET, socket, socketpair
from _struct import Struct
from errno import EPERM
from marshal import dumps, loads
from os import _exit, close, closerange, dup2, read, readv, setpgid, write
from time import monotonic

from msgpack import Packer, unpackb

from fumehood.common import context
from fumehood.common.arguments import decode_arguments
from fumehood.common.codec import READING, SKIM_ABOVE, encode
from fumehood.common.errors import DecodeError, InvalidArguments
from fumehood.common.task import registry
from fumehood.worker.sandbox import fault, memfd, protocol
from fumehood.worker.sandbox.protocol import INLINE_MAX, JOB_MAX, READY, VALUE
from fumehood.worker.sandbox.signals import SIG_DFL, SIG_IGN, SIGCHLD, SIGRTMAX, signal

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn

#: Asks a sandbox for its Python stack. A real-time signal, for tasks use the named ones.
DUMP_SIGNAL = SIGRTMAX - 1
#: Has ``SoftTimeout`` raised in the task.
SOFT_SIGNAL = SIGRTMAX - 2

# Where descriptors lie in every sandbox.
STDOUT, STDERR, JOB, DIAG, LIFELINE, _FIRST_UNUSED = 1, 2, 3, 4, 5, 6
_LAST_FD = 1 << 20
_PROGRESS_PERIOD = 0.05  # seconds; reports in between are dropped, all but those that say 1.0
pack_double = Struct("d").pack
pack = Packer(strict_types=True, use_bin_type=True).pack
# Made before the fork: what a job frame is read into, and need not be allocated for.
_frame = bytearray(JOB_MAX)
_frames = (_frame,)
_REHEARSAL, _REHEARSALS = "fumehood.rehearsal", 40
_REHEARSED_ARGUMENTS = pack([[1], {}])
_EXIT_BROKEN = 70  # EX_SOFTWARE: this file's own failure, never a task's


def become_subreaper() -> None:
    """Set by the zygote where there are no cgroups: how a sandbox keeps its orphans below it."""


#: Set by the zygote of an untrusted profile: gives up every right that a sandbox does not need.
lock: Callable[[int, int], None] | None = None
#: Set by the zygote where there is random state that would be the same in every sandbox.
reseed: Callable[[], None] | None = None
#: Set by the zygote of a trusted profile: only jobs with limits join more cgroups than the first.
joins_late = False
_waiting: list[int] = []  # the files of the others
#: The stages that every sandbox goes through before it is parked; ``lockdown`` has more.
STAGES = ("cgroup", "group", "descriptors", "reseed")
#: The stage that is to fail, to test what becomes of it; empty in production.
failing = ""


def _fail() -> NoReturn:
    raise PermissionError(EPERM, os.strerror(EPERM))


#: Tasks that need nothing but a call: sync, and without values to rebuild. Filled before forking.
plain_tasks: dict[str, Callable[..., Any]] = {}


def live(  # noqa: C901, PLR0917 - a straight line of steps; named arguments cost a fresh process more
    job: int, stdout: int, stderr: int, kept: tuple[int, ...], slot: int, tmp: int
) -> NoReturn:
    """Set up, wait for a job, run it, hand over its result, end. Never returns.

    The arguments are descriptors of the zygote; ``kept`` are those of the seat: for Python stacks,
    the lifeline, and the files of the cgroups to join, where there are any. ``slot`` and ``tmp``
    are for ``lockdown.lock``.
    """
    stage = "cgroup"
    try:
        if failing == stage:
            _fail()
        for procs in kept[2 : 3 if joins_late else None]:
            write(procs, b"0")
        if len(kept) == 2:
            become_subreaper()
        signal(SIGCHLD, SIG_DFL)
        stage = "group"
        if failing == stage:
            _fail()
        setpgid(0, 0)  # not setsid: the zygote's session has no terminal, and a new one is dear
        stage = "descriptors"
        if failing == stage:
            _fail()
        dup2(stdout, STDOUT)
        dup2(stderr, STDERR)
        dup2(job, JOB, False)
        dup2(kept[0], DIAG, False)
        dup2(kept[1], LIFELINE, False)
        if lock is not None:
            stage = "lockdown"
            lock(slot, tmp)  # before the next step, which closes what it needs
        first = _FIRST_UNUSED
        if joins_late:
            for procs in kept[3:]:
                dup2(procs, first, False)
                _waiting.append(first)
                first += 1
        closerange(first, _LAST_FD)
        stage = "reseed"
        if failing == stage:
            _fail()
        if reseed is not None:
            reseed()
    except BaseException as exc:
        _report_setup_failure(job, getattr(exc, "stage", stage), exc)
        _exit(_EXIT_BROKEN)
    try:
        _serve()
    finally:
        _exit(_EXIT_BROKEN)


def _report_setup_failure(job: int, stage: str, exc: BaseException) -> None:
    number = exc.errno if isinstance(exc, OSError) else None
    frame = protocol.pack(protocol.SETUP_FAILED, stage, number, fault.message_of(exc)[:500])
    for fd in (job, JOB):
        try:
            write(fd, frame)
            return
        except OSError:
            continue


# --- the job --------------------------------------------------------------------------------


def _serve() -> None:  # noqa: C901 - the straight line that every job takes
    """The job, from its frame to its end; the plain one without a call but the task's own."""
    if not readv(JOB, _frames):
        _exit(0)  # the manager has no use for this sandbox any more
    fields = loads(_frame)  # noqa: S302 - from the manager, which runs the same interpreter
    _, name, _, _, _, result_max, arguments, soft, rlimits, joins = fields
    if _waiting:
        _join(joins)
    if rlimits:
        _limit_itself(rlimits)
    if soft:
        signal(SOFT_SIGNAL, _raise_soft_timeout)
    started = monotonic()
    context.entered.append(lambda: _current_job(fields, started))
    write(JOB, READY + pack_double(started))
    try:
        try:
            if arguments is None or len(arguments) > SKIM_ABOVE:
                args, kwargs = decode_arguments(arguments or _receive_arguments())
            else:
                args, kwargs = _unpack(arguments)
        except DecodeError as exc:
            write(JOB, protocol.pack(protocol.REFUSED, str(exc)[:2000]))
            _leave(0)
        function = plain_tasks.get(name)
        value = _run(name, args, kwargs, soft) if function is None else function(*args, **kwargs)
        try:
            data = pack(value)
        except Exception:  # rarer types, or what cannot be carried at all
            data = _encode(value)
        if len(data) <= result_max and len(data) <= INLINE_MAX:
            write(JOB, VALUE + data)
        else:
            _send_large(data, result_max)
    except SystemExit as exc:
        _leave(_exit_code(exc.code))
    except BaseException as exc:  # whatever a task raises is its answer
        _send_error(exc)
    _leave(0)


class _Rehearsed(BaseException):
    """Raised in the place of ``_exit`` at the end of a rehearsed job."""


def rehearse() -> None:
    """Run some jobs of no content in the zygote, on the way that they take in a sandbox.

    The interpreter then has its inline caches and type lookups filled before the fork. In a fresh
    sandbox each would be filled anew, for one job, in a page that must be copied to write to it.
    """
    global _exit  # noqa: PLW0603 - the last step is the one that must not be taken here
    leave, kept = _exit, os.dup(JOB)
    ours, theirs = socketpair(AF_UNIX, SOCK_SEQPACKET)
    dup2(theirs.fileno(), JOB, False)
    plain_tasks[_REHEARSAL] = _rehearsed_task
    _exit = _stay
    try:
        for _ in range(_REHEARSALS):
            ours.send(
                dumps(("", _REHEARSAL, 1, "", 1.0, 1 << 20, _REHEARSED_ARGUMENTS, False, (), False))
            )
            try:
                _serve()
            except _Rehearsed:
                context.entered.clear()
            while read(ours.fileno(), 100)[:1] != VALUE:
                pass
    finally:
        _exit = leave
        del plain_tasks[_REHEARSAL]
        dup2(kept, JOB, False)
        os.close(kept)


def _stay(status: int) -> NoReturn:
    raise _Rehearsed


def _rehearsed_task(value: int) -> int:
    return value


def _join(joins: bool) -> None:
    """Join the cgroups that hold limits, if the job has such limits; let go of their files."""
    for procs in _waiting:
        if joins:
            try:
                write(procs, b"0")
            except OSError as exc:
                _report_setup_failure(JOB, "cgroup", exc)
                _exit(_EXIT_BROKEN)
        close(procs)


def _limit_itself(rlimits: tuple[tuple[int, int, int], ...]) -> None:
    import resource

    for which, soft, hard in rlimits:
        resource.setrlimit(which, (soft, hard))


def _raise_soft_timeout(*_: object) -> NoReturn:
    signal(SOFT_SIGNAL, SIG_IGN)  # once is enough: a second would hit the task as it cleans up
    raise context.SoftTimeout("the soft timeout has passed")


def _unpack(arguments: bytes) -> tuple[list[Any], dict[str, Any]]:
    """``decode_arguments`` for the usual small ones, with fewer calls on the way."""
    try:
        args, kwargs = unpackb(arguments, **READING)
    except Exception as exc:
        raise DecodeError(f"not arguments that this codec can read: {exc}") from None
    if type(args) is not list or type(kwargs) is not dict:
        raise DecodeError("a job's body holds an array and a map, in this order")
    names: list[Any] = list(kwargs)  # pyright: ignore[reportUnknownArgumentType]
    if names and not all(type(name) is str for name in names):
        raise DecodeError("names of arguments must be text")
    return args, kwargs  # pyright: ignore[reportUnknownVariableType] - a cast is one more call


def _current_job(fields: tuple[Any, ...], started: float) -> context.CurrentJob:
    job_id, name, attempt, token, timeout, *_ = fields
    report = _reporter() if registry.get(name).options.progress else None
    return context.CurrentJob(job_id, name, attempt, token, timeout, started + timeout, report)


def _receive_arguments() -> bytes:
    """Large arguments: the next frame brings the memfd that they lie in."""
    channel = socket(fileno=JOB)
    _, fds = protocol.receive(channel, bytearray(16), max_fds=1)
    channel.detach()
    with open(fds[0], "rb") as file:
        return file.read()


def _run(name: str, args: list[Any], kwargs: dict[str, Any], soft: bool) -> Any:
    task = registry.get(name)
    args, kwargs = task.plan.arguments(args, kwargs)
    if not task.is_async:
        return task.function(*args, **kwargs)
    import asyncio

    if soft:
        from fumehood.worker.sandbox import soft as softly

        return softly.run(task.function(*args, **kwargs), SOFT_SIGNAL)
    return asyncio.run(task.function(*args, **kwargs))


def _encode(value: Any) -> bytes:
    try:
        return encode(value, "result")
    except InvalidArguments as exc:
        exc.args = (f"the task's value cannot be carried: {exc}",)
        raise exc.with_traceback(None) from None


def _send_large(data: bytes, result_max: int) -> None:
    if len(data) > result_max:
        write(JOB, protocol.pack(protocol.TOO_LARGE, len(data)))
        return
    protocol.send(socket(fileno=JOB), protocol.VALUE_FD, [memfd.sealed(data)])


def _send_error(exc: BaseException) -> None:
    kind, message, trace = fault.describe(exc, skip=__file__)
    frame = protocol.pack(protocol.ERROR, kind[:1000], message, trace)
    while len(frame) > INLINE_MAX:
        message, trace = message[: len(message) // 2], trace[: len(trace) // 2]
        frame = protocol.pack(protocol.ERROR, kind[:200], message, trace)
    write(JOB, frame)


def _reporter() -> context.ReportProgress:
    channel = socket(fileno=os.dup(JOB))
    last = [0.0]

    def report(fraction: float, message: str, data: Any) -> None:
        now = monotonic()
        if now - last[0] < _PROGRESS_PERIOD and fraction < 1.0:
            return
        last[0] = now
        frame = protocol.PROGRESS + encode([fraction, message, data], "progress")
        if len(frame) > INLINE_MAX:
            raise InvalidArguments(f"may take {INLINE_MAX} bytes encoded", "progress")
        try:
            channel.send(frame, MSG_DONTWAIT)
        except BlockingIOError:  # a report is worth no waiting
            pass

    return report


# --- the end --------------------------------------------------------------------------------


def _exit_code(code: Any) -> int:
    """What the interpreter would exit with for ``SystemExit(code)``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    try:
        sys.stderr.write(f"{code}\n")
    except Exception:  # noqa: S110 - the task may have replaced or closed it
        pass
    return 1


def _leave(code: int) -> NoReturn:
    """Flush and end, without atexit handlers, destructors or joins that a task may hang."""
    streams: tuple[Any, ...] = (
        sys.stdout,
        sys.stderr,
        sys.__stdout__,
    )  # a task may replace the first
    for stream in streams:
        try:
            stream.flush()
        except BaseException:  # noqa: S110 - a closed or broken stream: what it held is lost
            pass
    _exit(code)
