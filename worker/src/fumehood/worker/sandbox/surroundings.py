"""What all sandboxes of a manager share."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fumehood.common.task import Profile
from fumehood.worker.sandbox.poller import Poller

if TYPE_CHECKING:
    from fumehood.worker.sandbox.process import SandboxProcess


@dataclass(slots=True)
class Surroundings:
    """A loop, what watches descriptors in it, a buffer for frames, and who hears of ends.

    Nothing of it changes but ``guarantees``, which may be known only after the start.
    """

    loop: asyncio.AbstractEventLoop
    poller: Poller
    buffer: bytearray
    on_end: Callable[[SandboxProcess], None]
    profile: Profile = "trusted"
    guarantees: tuple[str, ...] = ()  # what is enforced here for this profile
    own_uids: bool = False  # whether each seat has a user id that nobody else has
