"""Like opentelemetry.sdk.trace.export: whoever makes a processor gets a thread."""

from __future__ import annotations

import threading


class BatchSpanProcessor:
    def __init__(self) -> None:
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self.worker, daemon=True)
        self._thread.start()

    def worker(self) -> None:
        self._stopped.wait()
