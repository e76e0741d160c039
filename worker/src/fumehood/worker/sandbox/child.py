"""The sandbox: what happens in a forked process from its first instruction to ``_exit``.

An ordered list of steps. Each is named before it is taken, so that a failure tells its stage; up to
READY nothing is the task's fault, after it everything is judged by the manager from outside.

After a fork every page that is touched is copied at its first touch, even by a reference count. The
code on the common path is therefore plain: few objects, no exceptions, no context managers. What
can be done once is done in the zygote and inherited (signals, faulthandler, limits).
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from _socket import MSG_DONTWAIT, socket
from collections.abc import Callable
from functools import partial
from marshal import loads
from typing import Any, NoReturn

from msgpack import Packer, unpackb

from fumehood.common import context
from fumehood.common.arguments import decode_arguments
from fumehood.common.codec import READING, SKIM_ABOVE, encode
from fumehood.common.errors import DecodeError, InvalidArguments
from fumehood.common.task import registry
from fumehood.worker.sandbox import fault, memfd, protocol

#: Asks a sandbox for its Python stack. A real-time signal, for tasks use the named ones.
DUMP_SIGNAL = signal.SIGRTMAX - 1

# Where descriptors lie in every sandbox.
STDOUT, STDERR, JOB, DIAG, LIFELINE, _FIRST_UNUSED = 1, 2, 3, 4, 5, 6
_LAST_FD = 1 << 20
_PROGRESS_PERIOD = 0.05  # seconds; reports in between are dropped, all but those that say 1.0
pack = Packer(strict_types=True, use_bin_type=True).pack
_EXIT_BROKEN = 70  # EX_SOFTWARE: this file's own failure, never a task's


def become_subreaper() -> None:
    """Set by the zygote where there are no cgroups: how a sandbox keeps its orphans below it."""


#: Tasks that need nothing but a call: sync, and without values to rebuild. Filled before forking.
plain_tasks: dict[str, Callable[..., Any]] = {}


def live(  # noqa: PLR0917 - named arguments cost a fresh process more
    job: int, stdout: int, stderr: int, diag: int, lifeline: int, procs: int
) -> NoReturn:
    """Set up, wait for a job, run it, hand over its result, end. Never returns.

    The arguments are descriptors of the zygote; ``procs`` is -1 where there are no cgroups.
    """
    stage = "cgroup"
    try:
        if procs >= 0:
            os.write(procs, b"0")
        else:
            become_subreaper()
        stage = "group"
        os.setpgid(0, 0)  # not setsid: the zygote's session has no terminal, and a new one is dear
        stage = "descriptors"
        os.dup2(stdout, STDOUT)
        os.dup2(stderr, STDERR)
        os.dup2(job, JOB, False)
        os.dup2(diag, DIAG, False)
        os.dup2(lifeline, LIFELINE, False)
        os.closerange(_FIRST_UNUSED, _LAST_FD)
    except BaseException as exc:
        _report_setup_failure(job, stage, exc)
        os._exit(_EXIT_BROKEN)
    try:
        _serve()
    finally:
        os._exit(_EXIT_BROKEN)


def _report_setup_failure(job: int, stage: str, exc: BaseException) -> None:
    number = exc.errno if isinstance(exc, OSError) else None
    frame = protocol.pack(protocol.SETUP_FAILED, stage, number, fault.message_of(exc)[:500])
    for fd in (job, JOB):
        with contextlib.suppress(OSError):
            os.write(fd, frame)
            return


# --- the job --------------------------------------------------------------------------------


def _serve() -> None:
    """The job, from its frame to its end; the plain one without a call but the task's own."""
    frame = os.read(JOB, protocol.JOB_MAX)
    if not frame:
        os._exit(0)  # the manager has no use for this sandbox any more
    fields = loads(frame)  # noqa: S302 - from the manager, which runs the same interpreter
    _, name, _, _, _, result_max, arguments = fields
    context.entered.append(partial(_current_job, fields, time.monotonic()))
    os.write(JOB, protocol.READY)
    try:
        try:
            if arguments is None or len(arguments) > SKIM_ABOVE:
                args, kwargs = decode_arguments(arguments or _receive_arguments())
            else:
                args, kwargs = _unpack(arguments)
        except DecodeError as exc:
            os.write(JOB, protocol.pack(protocol.REFUSED, str(exc)[:2000]))
            _leave(0)
        function = plain_tasks.get(name)
        value = _run(name, args, kwargs) if function is None else function(*args, **kwargs)
        try:
            data = pack(value)
        except Exception:  # rarer types, or what cannot be carried at all
            data = _encode(value)
        if len(data) <= result_max and len(data) <= protocol.INLINE_MAX:
            os.write(JOB, protocol.VALUE + data)
        else:
            _send_large(data, result_max)
    except SystemExit as exc:
        _leave(_exit_code(exc.code))
    except BaseException as exc:  # whatever a task raises is its answer
        _send_error(exc)
    _leave(0)


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
    job_id, name, attempt, token, timeout, _, _ = fields
    report = _reporter() if registry.get(name).options.progress else None
    return context.CurrentJob(job_id, name, attempt, token, timeout, started + timeout, report)


def _receive_arguments() -> bytes:
    """Large arguments: the next frame brings the memfd that they lie in."""
    channel = socket(fileno=JOB)
    _, fds = protocol.receive(channel, bytearray(16), max_fds=1)
    channel.detach()
    with open(fds[0], "rb") as file:
        return file.read()


def _run(name: str, args: list[Any], kwargs: dict[str, Any]) -> Any:
    task = registry.get(name)
    args, kwargs = task.plan.arguments(args, kwargs)
    if not task.is_async:
        return task.function(*args, **kwargs)
    import asyncio

    return asyncio.run(task.function(*args, **kwargs))


def _encode(value: Any) -> bytes:
    try:
        return encode(value, "result")
    except InvalidArguments as exc:
        exc.args = (f"the task's value cannot be carried: {exc}",)
        raise exc.with_traceback(None) from None


def _send_large(data: bytes, result_max: int) -> None:
    if len(data) > result_max:
        os.write(JOB, protocol.pack(protocol.TOO_LARGE, len(data)))
        return
    protocol.send(socket(fileno=JOB), protocol.VALUE_FD, [memfd.sealed(data)])


def _send_error(exc: BaseException) -> None:
    kind, message, trace = fault.describe(exc, skip=__file__)
    frame = protocol.pack(protocol.ERROR, kind[:1000], message, trace)
    while len(frame) > protocol.INLINE_MAX:
        message, trace = message[: len(message) // 2], trace[: len(trace) // 2]
        frame = protocol.pack(protocol.ERROR, kind[:200], message, trace)
    os.write(JOB, frame)


def _reporter() -> context.ReportProgress:
    channel = socket(fileno=os.dup(JOB))
    last = [0.0]

    def report(fraction: float, message: str, data: Any) -> None:
        now = time.monotonic()
        if now - last[0] < _PROGRESS_PERIOD and fraction < 1.0:
            return
        last[0] = now
        frame = protocol.PROGRESS + encode([fraction, message, data], "progress")
        if len(frame) > protocol.INLINE_MAX:
            raise InvalidArguments(f"may take {protocol.INLINE_MAX} bytes encoded", "progress")
        with contextlib.suppress(BlockingIOError):  # a report is worth no waiting
            channel.send(frame, MSG_DONTWAIT)

    return report


# --- the end --------------------------------------------------------------------------------


def _exit_code(code: Any) -> int:
    """What the interpreter would exit with for ``SystemExit(code)``."""
    if code is None:
        return 0
    if isinstance(code, int):
        return code & 0xFF
    with contextlib.suppress(Exception):
        sys.stderr.write(f"{code}\n")
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
    os._exit(code)
