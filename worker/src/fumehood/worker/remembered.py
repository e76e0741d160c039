"""What a node remembers of jobs that it does not hold: bounded, the oldest goes first."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fumehood.common.message import Message
from fumehood.common.outcome import Outcome

_CANCELS_MAX = 10_000
_ENDED_MAX = 4_000  # jobs; a cancel or a delivery that crosses the end of its job comes soon
_UNSENT_MAX = 1_000
_UNSENT_BYTES = 64 << 20


class Recent:
    """The last ``most`` names that were added."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._names: OrderedDict[str, None] = OrderedDict()

    def __contains__(self, name: str) -> bool:
        """Whether the name is remembered."""
        return name in self._names

    def __len__(self) -> int:
        """How many are remembered."""
        return len(self._names)

    def add(self, name: str) -> None:
        """Remember a name, as the newest."""
        self._names[name] = None
        self._names.move_to_end(name)
        while len(self._names) > self._most:
            self._names.popitem(last=False)

    def discard(self, name: str) -> bool:
        """Forget a name; whether it was remembered."""
        if name not in self._names:
            return False
        del self._names[name]
        return True


class Cancels:
    """Cancels of jobs that are not here: they may be on their way, or have ended.

    A cancel reaches every node. One that comes when its job has ended here is for nobody: were it
    kept, it would hit the next job that is given the same id.
    """

    def __init__(self) -> None:
        self._asked = Recent(_CANCELS_MAX)
        self._ended = Recent(_ENDED_MAX)

    def ask(self, job_id: str) -> None:
        """Remember that this job is not wanted."""
        if job_id not in self._ended:
            self._asked.add(job_id)

    def take(self, job_id: str) -> bool:
        """Whether this job, which arrives now, is not wanted; asked once."""
        return self._asked.discard(job_id)

    def end(self, job_id: str) -> None:
        """The job has ended here."""
        self._asked.discard(job_id)
        self._ended.add(job_id)


class Settled:
    """Messages whose jobs were seen through here: one that comes back lost its connection first.

    Only messages with a ``message_id``, which differs for each publish: nothing else tells a
    message that is delivered again from a new job under an old id.
    """

    def __init__(self) -> None:
        self._messages = Recent(_ENDED_MAX)

    def add(self, message: Message) -> None:
        """The outcome of this message's job is where it belongs."""
        if message.message_id:
            self._messages.add(self._key(message))

    def knows(self, message: Message) -> bool:
        """Whether this very message was seen through."""
        return bool(message.message_id) and self._key(message) in self._messages

    @staticmethod
    def _key(message: Message) -> str:
        return f"{message.message_id} {message.correlation_id} {message.reply_to}"


@dataclass(frozen=True, slots=True)
class Unsent:
    """An outcome that could not be published, and the message that it belongs to."""

    message_id: str
    reply_to: str
    outcome: Outcome

    @property
    def size(self) -> int:
        """Bytes of what can be large."""
        outcome = self.outcome
        return len(outcome.value_bytes or b"") + len(outcome.stdout) + len(outcome.stderr) + 1000


class UnsentOutcomes:
    """Outcomes that could not be published: a job that comes back need not run again."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, Unsent] = OrderedDict()
        self._size = 0

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def add(self, message: Message, outcome: Outcome) -> None:
        """Keep the outcome of the job that came as ``message``."""
        self._drop(message.correlation_id)
        kept = Unsent(message.message_id, message.reply_to, outcome)
        self._kept[message.correlation_id] = kept
        self._size += kept.size
        while len(self._kept) > _UNSENT_MAX or self._size > _UNSENT_BYTES:
            self._drop(next(iter(self._kept)))

    def take(self, message: Message) -> Outcome | None:
        """The outcome of the job that comes again as the same message; it is not kept any more."""
        kept = self._kept.get(message.correlation_id)
        if kept is None:
            return None
        if (kept.message_id, kept.reply_to) != (message.message_id, message.reply_to):
            return None  # another job under the same id
        self._drop(message.correlation_id)
        return kept.outcome

    def _drop(self, job_id: str) -> None:
        kept = self._kept.pop(job_id, None)
        if kept is not None:
            self._size -= kept.size
