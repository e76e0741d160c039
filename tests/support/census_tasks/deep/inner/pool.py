from __future__ import annotations

import threading

stopped = threading.Event()
threading.Thread(target=stopped.wait, name="deep-pool", daemon=True).start()
