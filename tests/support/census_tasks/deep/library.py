from __future__ import annotations

from importlib import import_module

pool = import_module("support.census_tasks.deep.inner.pool")
