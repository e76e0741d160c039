"""Errors that only a producer can meet; the others are in ``fumehood.common.errors``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fumehood.common.errors import EnqueueError, FumehoodError

if TYPE_CHECKING:
    from fumehood.client.handle import JobHandle


class ClientMisused(FumehoodError, RuntimeError):
    """The client was used before it was started, or from another event loop than its own."""


class PartlyEnqueued(EnqueueError):
    """Some calls of an ``enqueue_many`` were not accepted; its ``__cause__`` is the first error.

    ``handles`` has one entry per call, in their order: a handle where the broker accepted the job,
    None where it did not. ``errors`` has the error of each call that was sent in vain, by its
    index. A call with neither was never sent.
    """

    def __init__(
        self, handles: Sequence[JobHandle[Any] | None], errors: Mapping[int, FumehoodError]
    ) -> None:
        self.handles = list(handles)
        self.errors = dict(errors)
        accepted = sum(handle is not None for handle in self.handles)
        index, first = min(self.errors.items())
        super().__init__(
            f"{accepted} of {len(self.handles)} calls were enqueued, {len(self.errors)} failed; "
            f"call {index}: {type(first).__name__}: {first}"
        )
