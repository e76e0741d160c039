"""From a call and its options to the job that is published."""

from __future__ import annotations

import inspect
import math
import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict

from fumehood.broker.names import check_queue_name
from fumehood.client.ids import JobIds, check_job_id
from fumehood.client.trace import current_trace
from fumehood.common.arguments import encode_arguments
from fumehood.common.envelope import Envelope
from fumehood.common.errors import InvalidArguments
from fumehood.common.limits import Limits
from fumehood.common.settings import Settings
from fumehood.common.task import Call, Task, check_timeout

Expires = float | datetime

_NO_LIMITS = Limits()


class JobOptions(TypedDict, total=False):
    """What every way to enqueue understands; ``Client.enqueue`` documents each."""

    timeout: float | None
    expires: Expires | None
    queue: str | None
    limits: Limits | None


@dataclass(frozen=True, slots=True)
class Job:
    """A job ready to publish: where to, and what."""

    queue: str
    envelope: Envelope


class JobMaker:
    """Makes jobs under one client's settings; refuses what must not be published."""

    def __init__(self, settings: Settings) -> None:
        # Read once: every access to a pydantic model costs, and this is paid per job.
        self._default_timeout = settings.sandbox_default_timeout
        self._max_timeout = settings.max_timeout
        self._max_arguments = settings.max_arguments
        self._cap = settings.limits
        self.ids = JobIds()

    def make(
        self,
        call: object,
        reply_to: str,
        *,
        timeout: float | None = None,
        expires: Expires | None = None,
        queue: str | None = None,
        job_id: str | None = None,
        limits: Limits | None = None,
    ) -> Job:
        """The job for ``call``. Raises ``InvalidArguments``, ``PayloadTooLarge``."""
        found = check_call(call)
        options = found.task.options
        if timeout is None:
            timeout = self._default_timeout if options.timeout is None else options.timeout
        envelope = Envelope(
            job_id=self.ids.fresh() if job_id is None else check_job_id(job_id),
            task=found.task.name,
            arguments=encode_arguments(found, self._max_arguments),
            timeout=check_timeout(timeout, self._max_timeout),
            expires=None if expires is None else _expires_at(expires),
            reply_to=reply_to,
            limits=self._limits(options.limits, limits),
            trace=current_trace(),
        )
        return Job(check_queue_name(options.queue if queue is None else queue), envelope)

    def _limits(self, declared: Limits, given: Limits | None) -> Limits:
        """What the call asks for, else what the task declares, never above the settings.

        A bound that neither names is not sent: it is for the settings of the node.
        """
        if given is None and declared == _NO_LIMITS:
            return _NO_LIMITS
        if given is not None and not isinstance(given, Limits):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise InvalidArguments(f"must be Limits, not {given!r}", "limits")
        asked = {**declared.to_wire(), **(given.to_wire() if given else {})}
        capped = Limits.from_wire(asked).tightened(self._cap).to_wire()
        return Limits.from_wire({name: capped[name] for name in asked})


def check_call(call: object) -> Call[Any]:
    """``call`` if it is one, else an ``InvalidArguments`` that names the remedy."""
    if isinstance(call, Call):
        return call  # pyright: ignore[reportUnknownVariableType]
    if isinstance(call, Task):
        remedy = f"a call is wanted, not the task itself: write {call.__name__}.call(...)"
    elif inspect.iscoroutine(call):
        call.close()  # it will never be awaited, and a warning about that would only distract
        remedy = f"a call is wanted, not a coroutine: write {call.__name__}.call(...)"
    elif callable(call):
        name = getattr(call, "__name__", "task")
        remedy = f"a call is wanted, not a function: declare it with @task, then {name}.call(...)"
    else:
        remedy = f"a call is wanted, not {type(call).__name__}: write task.call(...)"
    raise InvalidArguments(remedy)


def _expires_at(expires: object) -> int:
    """``expires`` as epoch milliseconds."""
    if isinstance(expires, datetime):
        if expires.utcoffset() is None:
            raise InvalidArguments(
                f"{expires!r} has no time zone: pass an aware datetime", "expires"
            )
        moment = expires.timestamp()
    elif isinstance(expires, bool) or not isinstance(expires, (int, float)):
        raise InvalidArguments(f"must be seconds or an aware datetime, not {expires!r}", "expires")
    elif not math.isfinite(expires) or expires <= 0:
        raise InvalidArguments(f"must be a finite number above 0, not {expires!r}", "expires")
    else:
        moment = time.time() + expires
    milliseconds = int(moment * 1000)
    if not 0 <= milliseconds < 1 << 63:
        raise InvalidArguments(f"{expires!r} lies outside of what can be sent", "expires")
    return milliseconds
