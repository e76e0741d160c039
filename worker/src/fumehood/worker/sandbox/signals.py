"""The interpreter's own signal module.

``signal`` wraps it in enumerations, for which it loads ``enum``, ``re`` and what these load: too
much for a process that is forked a thousand times a second.
"""

from __future__ import annotations

__all__ = [
    "SIGCHLD",
    "SIGINT",
    "SIGKILL",
    "SIGPIPE",
    "SIGRTMAX",
    "SIGSTOP",
    "SIGTERM",
    "SIG_DFL",
    "SIG_IGN",
    "SIG_SETMASK",
    "default_int_handler",
    "pthread_sigmask",
    "signal",
    "valid_signals",
]

TYPE_CHECKING = False
if TYPE_CHECKING:
    from signal import (
        SIG_DFL,
        SIG_IGN,
        SIG_SETMASK,
        SIGCHLD,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGRTMAX,
        SIGSTOP,
        SIGTERM,
        default_int_handler,
        pthread_sigmask,
        signal,
        valid_signals,
    )
else:
    from _signal import (
        SIG_DFL,
        SIG_IGN,
        SIG_SETMASK,
        SIGCHLD,
        SIGINT,
        SIGKILL,
        SIGPIPE,
        SIGRTMAX,
        SIGSTOP,
        SIGTERM,
        default_int_handler,
        pthread_sigmask,
        signal,
        valid_signals,
    )
