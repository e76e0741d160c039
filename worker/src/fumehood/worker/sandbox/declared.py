"""What a task says of itself where it is declared, as a zygote reports it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fumehood.common.limits import Limits
from fumehood.common.task import Profile


@dataclass(frozen=True, slots=True)
class Declared:
    """The options of one task that matter to a node. Timeouts are seconds."""

    profile: Profile = "trusted"
    wire_limits: Mapping[str, int | float] = field(default_factory=dict[str, "int | float"])
    timeout: float | None = None
    soft_timeout: float | None = None

    @property
    def limits(self) -> Limits:
        """The limits that the task declares."""
        return Limits.from_wire(self.wire_limits)
