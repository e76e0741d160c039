"""When another zygote is to take the place of one that still works.

Every fork of a zygote has the same hash seed and the same addresses, which one hostile job may tell
the next; and a module that is imported late comes from the code that is on disk by then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fumehood.worker.sandbox.codewatch import CodeWatch


@dataclass(frozen=True, slots=True)
class Lifetime:
    """How long a zygote serves: at most so many sandboxes, and so many seconds."""

    forks: int = 50_000
    age: float = 3600.0


class Renewal:
    """The clock, the counter and the code of the current zygote."""

    def __init__(self, lifetime: Lifetime) -> None:
        self._lifetime = lifetime
        self._watch = CodeWatch({})
        self._born = time.monotonic()
        self._forks = 0
        self._failed_with = ""  # the digest of the code that could not be started

    def begin(self, code: Mapping[str, Any]) -> None:
        """Another zygote serves from now on, and ``code`` is what it runs, for ``CodeWatch``."""
        self._watch = CodeWatch(code)
        self._born, self._forks, self._failed_with = time.monotonic(), 0, ""

    def count(self) -> None:
        """One more sandbox was asked for."""
        self._forks += 1

    def failed(self) -> None:
        """The one that was to take over could not be started: not until the code is another."""
        self._failed_with = self._watch.digest()
        self._born, self._forks = time.monotonic(), 0

    def is_due(self) -> str:
        """Why the zygote is to be replaced; empty while it is not."""
        if self._forks >= self._lifetime.forks:
            return f"it has made {self._forks} sandboxes"
        if time.monotonic() - self._born >= self._lifetime.age:
            return f"it is {self._lifetime.age:g} s old"
        changed = self._watch.changed()
        if changed and self._watch.digest() != self._failed_with:
            more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
            return f"the code on disk has changed: {changed[0]}{more}"
        return ""
