"""One epoll set for all descriptors of all sandboxes, itself one descriptor of the event loop.

A sandbox brings three descriptors and takes them away a millisecond later. Registering them with
asyncio would cost more than everything else that the manager does for a job.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable

READ = select.EPOLLIN
URGENT = select.EPOLLPRI
_SOON = 0.005  # seconds; a job that fills its pipes before waits no longer for a reader


class Poller:
    """Calls back for descriptors that are ready, level-triggered, in the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._epoll = select.epoll()
        self._callbacks: dict[int, Callable[[], object]] = {}
        self._other_events: dict[int, int] = {}  # of those that wait for something else than READ
        self._soon: list[Callable[[], None]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._ghosts: set[int] = set()  # ready, and known to nobody, the last time
        loop.add_reader(self._epoll.fileno(), self._on_ready)

    def add(self, fd: int, callback: Callable[[], object], events: int = READ) -> None:
        """Watch ``fd`` from now on."""
        self._callbacks[fd] = callback
        if events != READ:
            self._other_events[fd] = events
        elif self._other_events:
            self._other_events.pop(fd, None)
        self._epoll.register(fd, events)

    def forget(self, fd: int) -> None:
        """Stop watching ``fd``, which is closed next: the kernel drops what is closed by itself."""
        self._callbacks.pop(fd, None)

    def remove(self, fd: int) -> None:
        """Stop watching ``fd``, which stays open. Unknown descriptors are ignored."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def soon(self, begin: Callable[[], None]) -> None:
        """Call ``begin`` within some milliseconds, together with others: one timer for them all."""
        self._soon.append(begin)
        if len(self._soon) == 1:
            self._timer = self._loop.call_later(_SOON, self._begin_all)

    def _begin_all(self) -> None:
        due, self._soon = self._soon, []
        for begin in due:
            begin()

    def close(self) -> None:
        """Stop watching everything."""
        if self._timer is not None:
            self._timer.cancel()
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._callbacks.clear()

    def _on_ready(self) -> None:
        ghosts: set[int] | None = None
        for fd, _ in self._epoll.poll(0):
            # An earlier callback of this round may have removed it; that another descriptor has
            # the number by now does no harm, for callbacks never block and look for themselves.
            callback = self._callbacks.get(fd)
            if callback is not None:
                callback()
            elif fd in self._ghosts:
                self._lay_ghosts()
                break
            else:
                ghosts = ghosts or set()
                ghosts.add(fd)
        if ghosts or self._ghosts:
            self._ghosts = ghosts or set()

    def _lay_ghosts(self) -> None:
        """Start over with the descriptors that are known.

        The kernel drops a closed one only when nobody has it any more, and this process may have
        forked: the copy would be reported as ready for ever, and no call could take it out.
        """
        self._loop.remove_reader(self._epoll.fileno())
        self._epoll.close()
        self._epoll = select.epoll()
        for fd in self._callbacks:
            self._epoll.register(fd, self._other_events.get(fd, READ))
        self._loop.add_reader(self._epoll.fileno(), self._on_ready)
