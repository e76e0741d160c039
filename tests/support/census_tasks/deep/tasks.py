from __future__ import annotations

import os

from support.census_tasks.deep import library

os.umask(0o077)

from support.census_tasks.deep import innocent  # noqa: E402 - after what it must not be blamed for

USED = library.pool, innocent.VALUE
