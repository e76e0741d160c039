"""Like sentry_sdk: the thread has the library's name."""

from __future__ import annotations

import threading

_stopped = threading.Event()


def init() -> None:
    threading.Thread(target=_stopped.wait, name="sentry-sdk.BackgroundWorker", daemon=True).start()
