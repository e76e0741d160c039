"""``@task``: a function that can be called here, or sent to run in a sandbox elsewhere."""

from __future__ import annotations

import os
import sys

from fumehood.common.callables import (
    arity_of,
    is_annotated_plainly,
    is_coroutine_function,
    is_generator_function,
    signature_of,
)
from fumehood.common.errors import ConfigurationError, InvalidArguments, UnknownTask
from fumehood.common.limits import Limits
from fumehood.common.values import Generic, ParamSpec, TypeVar, Value, overload

TYPE_CHECKING = False
if TYPE_CHECKING:
    import inspect
    from collections.abc import Callable, Coroutine, Mapping
    from datetime import datetime
    from typing import Any, Literal, Protocol

    from fumehood.common.enqueuer import Enqueuer, Handle
    from fumehood.common.rebuild import Plan

    Profile = Literal["trusted", "untrusted"]
else:
    Profile = str

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)

#: What ``Task.enqueue`` keeps for itself and does not hand to the task.
ENQUEUE_OPTIONS = ("timeout", "expires", "queue", "job_id", "limits", "reply")


class Call(Value, Generic[R_co]):
    """A task with its arguments. Data: making one runs nothing."""

    __slots__ = ("args", "kwargs", "task")

    task: Task[..., R_co]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def __init__(
        self, task: Task[..., R_co], args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> None:
        self._set(task=task, args=args, kwargs=kwargs)

    def __repr__(self) -> str:
        """The call as one would write it."""
        parts = [repr(a) for a in self.args] + [f"{k}={v!r}" for k, v in self.kwargs.items()]
        return f"{self.task.name}({', '.join(parts)})"


class TaskOptions(Value):
    """What a declaration says about every job of a task; a call may say otherwise.

    ``timeout`` and ``soft_timeout`` are seconds; without a timeout it is the client's
    ``sandbox_default_timeout``. With ``progress``, ``current_job().progress()`` reports.
    """

    __slots__ = ("limits", "profile", "progress", "queue", "soft_timeout", "timeout")

    queue: str
    timeout: float | None
    soft_timeout: float | None
    limits: Limits
    profile: Profile
    progress: bool

    def __init__(
        self,
        queue: str = "default",
        timeout: float | None = None,
        soft_timeout: float | None = None,
        limits: Limits | None = None,
        profile: Profile = "trusted",
        *,
        progress: bool = False,
    ) -> None:
        self._set(
            queue=queue, timeout=timeout, soft_timeout=soft_timeout, limits=limits or Limits(),
            profile=profile, progress=progress,
        )  # fmt: skip


class Task(Generic[P, R_co]):
    """A declared function. ``R`` is the type of a job's value, for async functions too."""

    def __init__(self, function: Callable[P, Any], name: str, options: TaskOptions) -> None:
        self.function = function
        self.name = name
        self.options = options
        self._known_signature: inspect.Signature | None = None
        self._arity = arity_of(function)
        self._plan: Plan | None = None
        self.__doc__ = function.__doc__
        self.__wrapped__ = function
        self.module = _module(function)  # what a node has to import to know this task
        self.is_async = is_coroutine_function(function)
        self.__module__ = getattr(function, "__module__", "")
        self.__name__ = getattr(function, "__name__", name)
        self.__qualname__ = getattr(function, "__qualname__", name)

    @property
    def task_id(self) -> str:
        """The task's name, under which nodes know it."""
        return self.name

    @property
    def _signature(self) -> inspect.Signature:
        if self._known_signature is None:
            self._known_signature = signature_of(self.function)
        return self._known_signature

    @property
    def takes_plain_values(self) -> bool:
        """Whether arguments can be used just as they were decoded: there is nothing to rebuild."""
        return is_annotated_plainly(self.function) or self.plan.is_empty

    @property
    def plan(self) -> Plan:
        """How arguments and result are rebuilt from plain values."""
        if self._plan is None:
            from fumehood.common.rebuild import Plan

            self._plan = Plan(self.function)
        return self._plan

    def call(self, *args: P.args, **kwargs: P.kwargs) -> Call[R_co]:
        """This task with these arguments. Raises ``InvalidArguments`` when they do not fit."""
        return self.bind(args, kwargs)

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call[R_co]:
        """``call`` for arguments whose types are not known, such as those of a command line."""
        if (
            kwargs or len(args) not in self._arity
        ):  # else they fit: binding would cost most of a call
            try:
                self._signature.bind(*args, **kwargs)
            except TypeError as cause:
                raise InvalidArguments(f"{self.name}{self._signature}: {cause}") from None
        return Call(self, args, dict(kwargs))

    async def enqueue(
        self,
        client: Enqueuer,
        *args: Any,
        timeout: float | None = None,
        expires: float | datetime | None = None,
        queue: str | None = None,
        job_id: str | None = None,
        limits: Limits | None = None,
        reply: bool = True,
        **kwargs: Any,
    ) -> Handle[R_co]:
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


class SyncTask(Task[P, R_co]):
    """A task that is a plain function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Run the function here and now, in this process."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]


class AsyncTask(Task[P, R_co]):
    """A task that is a coroutine function."""

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, R_co]:
        """Run the coroutine function here; await the answer."""
        return self.function(*args, **kwargs)  # type: ignore[no-any-return]


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
            raise UnknownTask(
                f"no task is named {name!r} here: import the module that declares it"
            ) from None

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


if TYPE_CHECKING:
    # A coroutine function fits the second overload as well; the first that fits is the one meant.
    class _Decorator(Protocol):
        @overload
        def __call__(  # type: ignore[overload-overlap]
            self,
            function: Callable[P, Coroutine[Any, Any, R]],  # pyright: ignore[reportOverlappingOverload]
            /,
        ) -> AsyncTask[P, R]: ...
        @overload
        def __call__(self, function: Callable[P, R], /) -> SyncTask[P, R]: ...


@overload
def task(  # type: ignore[overload-overlap]  # pyright: ignore[reportOverlappingOverload]
    function: Callable[P, Coroutine[Any, Any, R]], /
) -> AsyncTask[P, R]: ...
@overload
def task(function: Callable[P, R], /) -> SyncTask[P, R]: ...
@overload
def task(
    *,
    name: str | None = None,
    queue: str = "default",
    timeout: float | None = None,
    soft_timeout: float | None = None,
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
    soft_timeout: float | None = None,
    limits: Limits | None = None,
    profile: Profile = "trusted",
    progress: bool = False,
) -> Any:
    """Declare a function as a task, plainly or with options.

    ``name`` defaults to ``module.qualname``. ``timeout`` is in seconds. After ``soft_timeout``
    seconds, fewer than those of the timeout, ``SoftTimeout`` is raised in the task. ``profile`` is
    ``trusted`` (the code may crash) or ``untrusted`` (the code may attack). With ``progress`` the
    task's ``current_job().progress()`` is sent to its node. Raises ``ConfigurationError``.
    """
    if timeout is not None:
        check_timeout(timeout)
    if profile not in ("trusted", "untrusted"):
        raise ConfigurationError(f"profile must be 'trusted' or 'untrusted', not {profile!r}")
    if soft_timeout is not None:
        check_timeout(soft_timeout, timeout or _NO_BOUND, name="soft_timeout")
    options = TaskOptions(queue, timeout, soft_timeout, limits, profile, progress=progress)

    def declare(function: Callable[..., Any]) -> Task[..., Any]:
        return _declare(function, name, options)

    return declare if function is None else declare(function)


def _declare(function: object, name: str | None, options: TaskOptions) -> Task[..., Any]:
    if not callable(function) or isinstance(function, (Task, type)):
        raise ConfigurationError(f"@task is for functions, not for {function!r}")
    if is_generator_function(function):
        raise ConfigurationError(f"{function!r} is a generator: a task returns one value")
    name = name or _name(function)
    if len(name.encode()) > 255:
        raise ConfigurationError(f"a task's name may have 255 bytes at most: {name!r}")
    kind: Any = AsyncTask if is_coroutine_function(function) else SyncTask
    declared: Task[..., Any] = kind(function, name, options)
    registry.add(declared)
    return declared


def _name(function: Callable[..., Any]) -> str:
    try:
        return f"{_module(function)}.{function.__qualname__}"
    except AttributeError:
        raise ConfigurationError(f"{function!r} has no name of its own: @task(name=...)") from None


def _module(function: Callable[..., Any]) -> str:
    """The module under which others import ``function``.

    A script is ``__main__`` to itself alone: its tasks are named by its file, as a node that
    imports that file will name them.
    """
    module: str = getattr(function, "__module__", "")
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    if spec is not None:
        return str(spec.name.removesuffix(".__main__"))
    return os.path.splitext(os.path.basename(file))[0] if file else module  # noqa: PTH119, PTH122


_NO_BOUND = float("inf")


def check_timeout(timeout: object, maximum: float = _NO_BOUND, name: str = "timeout") -> float:
    """``timeout`` as seconds: a finite number above 0 and at most ``maximum``.

    Raises ``InvalidArguments``.
    """
    if isinstance(timeout, bool) or not isinstance(timeout, (int, float)):
        raise InvalidArguments(f"it must be a number of seconds, not {timeout!r}", name)
    try:
        seconds = float(timeout)
    except OverflowError:
        raise InvalidArguments("it must be a number of seconds, not one that large", name) from None
    if not 0 < seconds < _NO_BOUND:  # false for NaN as well
        raise InvalidArguments(f"it must be a finite number above 0, not {timeout!r}", name)
    if seconds > maximum:
        above = "max_timeout" if name == "timeout" else "the timeout"
        raise InvalidArguments(f"{seconds:g} s is above {above}, {maximum:g} s", name)
    return seconds
