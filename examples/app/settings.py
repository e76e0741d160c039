"""Settings of a small application: defaults of its own, and a setting of its own."""

from __future__ import annotations

from fumehood.common import Settings as FumehoodSettings


class Settings(FumehoodSettings):
    """Environment variables such as FUMEHOOD_CONCURRENCY still win over what stands here."""

    sandbox_default_timeout: float = 20.0
    concurrency: int = 2
    declare_queues: bool = True
    greeting: str = "hello"
