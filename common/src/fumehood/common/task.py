"""``@task``: a function that can be called here, or sent to run in a sandbox elsewhere."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal, ParamSpec, Protocol, TypeVar, cast, overload

from fumehood.common.errors import ConfigurationError, InvalidArguments, UnknownTask
from fumehood.common.limits import Limits

if TYPE_CHECKING:
    from fumehood.common.outcome import Outcome
    from fumehood.common.rebuild import Plan

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
Profile = Literal["trusted", "untrusted"]

#: What ``Task.enqueue`` keeps for itself and does not hand to the task.
ENQUEUE_OPTIONS = ("timeout", "expires", "queue", "job_id", "limits", "reply")


class Handle(Protocol[R_co]):
    """A job that a broker accepted (``fumehood.client.JobHandle``, seen from here)."""

    @property
    def id(self) -> str: ...
    def done(self) -> bool: ...
    def result(self, timeout: float | None = None) -> Awaitable[R_co]: ...
    def outcome(self, timeout: float | None = None) -> Awaitable[Outcome]: ...
    def cancel(self) -> Awaitable[None]: ...


class Enqueuer(Protocol):
    """Whatever can enqueue a call: a ``fumehood.client.Client``."""

    def enqueue(self, call: Call[R], /, **options: Any) -> Awaitable[Handle[R]]: ...


@dataclass(frozen=True, slots=True)
class Call(Generic[R]):
    """A task with its arguments. Data: making one runs nothing."""

    task: Task[..., R]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __repr__(self) -> str:
        """The call as one would write it."""
        parts = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.task.name}({', '.join(parts)})"


@dataclass(frozen=True, slots=True)
class TaskOptions:
    """What a declaration says about every job of a task; a call may say otherwise."""

    queue: str = "default"
    timeout: float | None = None  # seconds; None: the client's sandbox_default_timeout
    limits: Limits = field(default_factory=Limits)
    profile: Profile = "trusted"
    progress: bool = False  # whether current_job().progress() reports anywhere


class Task(Generic[P, R]):
    """A declared function. ``R`` is the type of a job's value, for async functions too."""

    def __init__(self, function: Callable[P, Any], name: str, options: TaskOptions) -> None:
        self.function = function
        self.name = name
        self.options = options
        self._signature = inspect.signature(function)
        self._plan: Plan | None = None
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.__module__ = function.__module__
        self.__name__ = getattr(function, "__name__", name)
        self.__qualname__ = getattr(function, "__qualname__", name)

    @property
    def task_id(self) -> str:
        """The task's name, under which nodes know it."""
        return self.name

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function."""
        return inspect.iscoroutinefunction(self.function)

    @property
    def plan(self) -> Plan:
        """How arguments and result are rebuilt from plain values."""
        if self._plan is None:
            from fumehood.common.rebuild import Plan

            self._plan = Plan(self.function)
        return self._plan

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R]:
        """This task with these arguments. Raises ``InvalidArguments`` when they do not fit."""
        return self.bind(args, kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call[R]:
        """``call`` for arguments whose types are not known, such as those of a command line."""
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as cause:
            raise InvalidArguments(f"{self.name}{self._signature}: {cause}") from None
        return Call(self, args, dict(kwargs))

    async def enqueue(
        self,
        client: Enqueuer,
        *args: Any,
        timeout: float | None = None,  # noqa: ASYNC109 - the job's, not this coroutine's
        expires: float | None = None,
        queue: str | None = None,
        job_id: str | None = None,
        limits: Limits | None = None,
        reply: bool = True,
        **kwargs: Any,
    ) -> Handle[R]:
        """Enqueue a call of this task; options as in ``Client.enqueue``.

        The arguments are checked when this runs, not by a type checker: prefer
        ``client.enqueue(task.call(...))`` where types matter. A task that has a parameter with the
        name of an option must be enqueued that way.
        """
        clash = [name for name in ENQUEUE_OPTIONS if name in self._signature.parameters]
        if clash:
            raise InvalidArguments(
                f"{self.name} has parameters named like options of enqueue ({', '.join(clash)}): "
                "write client.enqueue(task.call(...), ...)"
            )
        return await client.enqueue(
            self.bind(args, kwargs),
            timeout=timeout,
            expires=expires,
            queue=queue,
            job_id=job_id,
            limits=limits,
            reply=reply,
        )

    def __repr__(self) -> str:
        """Such as ``<Task app.tasks.add queue=default>``."""
        return f"<Task {self.name} queue={self.options.queue}>"


class SyncTask(Task[P, R]):
    """A task that is a plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the function here and now, in this process."""
        return cast("R", self.function(*args, **kwargs))


class AsyncTask(Task[P, R]):
    """A task that is a coroutine function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R]:
        """Run the coroutine function here; await the answer."""
        return cast("Coroutine[Any, Any, R]", self.function(*args, **kwargs))


class Registry:
    """The tasks that this process knows, by name."""

    def __init__(self) -> None:
        self._tasks: dict[str, Task[..., Any]] = {}

    def add(self, task: Task[..., Any]) -> None:
        """Make a task known. Two different functions of one name are refused."""
        known = self._tasks.get(task.name)
        if known is not None and _source(known) != _source(task):
            raise ConfigurationError(
                f"two tasks are named {task.name!r} ({_source(known)} and {_source(task)}): "
                "give one of them @task(name=...)"
            )
        self._tasks[task.name] = task

    def get(self, name: str) -> Task[..., Any]:
        """The task of that name. Raises ``UnknownTask``."""
        try:
            return self._tasks[name]
        except KeyError:
            raise UnknownTask(f"no task is named {name!r} here: import the module that declares it") from None

    def names(self) -> list[str]:
        """Every known name, sorted."""
        return sorted(self._tasks)

    def __contains__(self, name: object) -> bool:
        """Whether a task of that name is known."""
        return name in self._tasks


def _source(task: Task[..., Any]) -> str:
    # A module loaded twice (reload, __main__) declares the same function again: that is no clash.
    code = getattr(task.function, "__code__", None)
    return f"{code.co_filename}:{code.co_firstlineno}" if code else repr(task.function)


#: The tasks that ``@task`` declares.
registry = Registry()


class _Decorator(Protocol):
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
    @overload
    def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


@overload
def task(function: Callable[P, Coroutine[Any, Any, R]], /) -> AsyncTask[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    queue: str = "default",
    timeout: float | None = None,
    limits: Limits | None = None,
    profile: Profile = "trusted",
    progress: bool = False,
) -> _Decorator: ...
def task(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    queue: str = "default",
    timeout: float | None = None,
    limits: Limits | None = None,
    profile: Profile = "trusted",
    progress: bool = False,
) -> Any:
    """Declare a function as a task, plainly or with options.

    ``name`` defaults to ``module.qualname``. ``timeout`` is in seconds. ``profile`` is ``trusted``
    (the code may crash) or ``untrusted`` (the code may attack). With ``progress`` the task's
    ``current_job().progress()`` is sent to its node. Raises ``ConfigurationError``.
    """
    if timeout is not None:
        check_timeout(timeout)
    if profile not in ("trusted", "untrusted"):
        raise ConfigurationError(f"profile must be 'trusted' or 'untrusted', not {profile!r}")
    options = TaskOptions(queue, timeout, limits or Limits(), profile, progress)

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        return _declare(function, name, options)

    return declare if function is None else declare(function)


def _declare(function: Callable[..., Any], name: str | None, options: TaskOptions) -> Task[..., Any]:
    if not callable(function) or isinstance(function, Task):
        raise ConfigurationError(f"@task is for functions, not for {function!r}")
    name = name or f"{function.__module__}.{function.__qualname__}"
    if len(name.encode()) > 255:
        raise ConfigurationError(f"a task's name may have 255 bytes at most: {name!r}")
    kind = AsyncTask if inspect.iscoroutinefunction(function) else SyncTask
    declared: Task[..., Any] = kind(function, name, options)
    registry.add(declared)
    return declared


def check_timeout(timeout: object, maximum: float = math.inf) -> float:
    """``timeout`` as seconds: a finite number above 0, at most ``maximum``; else ``InvalidArguments``."""
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidArguments(f"timeout must be a number of seconds, not {timeout!r}", "timeout")
    if not math.isfinite(timeout) or timeout <= 0:
        raise InvalidArguments(f"timeout must be a finite number above 0, not {timeout!r}", "timeout")
    if timeout > maximum:
        raise InvalidArguments(f"timeout {timeout:g} s is above max_timeout, {maximum:g} s", "timeout")
    return float(timeout)
