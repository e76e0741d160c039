"""The right to run a job: a bounded number at a time, given in the order of arrival."""

from __future__ import annotations

import asyncio
from collections import OrderedDict


class Slots:
    """``count`` slots. Whoever waits for one is known by a name and can be told to stop waiting."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._waiting: OrderedDict[str, asyncio.Future[bool]] = OrderedDict()
        self._held = False
        self._closed = False

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    async def take(self, name: str) -> bool:
        """Wait for a slot; to be followed by ``free``. False when told to wait no longer."""
        if self._closed:
            return False
        if self._free and not self._held and not self._waiting:
            self._free -= 1
            return True
        turn: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting[name] = turn
        try:
            return await turn
        except asyncio.CancelledError:
            self._waiting.pop(name, None)
            if turn.done() and not turn.cancelled() and turn.result():
                self.free()
            raise

    def free(self) -> None:
        """Give a slot back."""
        self._free += 1
        while self._free and self._waiting and not self._held:
            _, turn = self._waiting.popitem(last=False)
            if not turn.done():
                self._free -= 1
                turn.set_result(True)

    def drop(self, name: str) -> None:
        """Tell one to wait no longer."""
        turn = self._waiting.pop(name, None)
        if turn is not None and not turn.done():
            turn.set_result(False)

    def hold(self) -> None:
        """Give no more slots; those who wait go on waiting until ``close``."""
        self._held = True

    def close(self) -> None:
        """Give no more slots, and tell everyone to wait no longer."""
        self._held = self._closed = True
        for name in list(self._waiting):
            self.drop(name)
