"""``Settings``: one validated object, built at the edge and passed down.

Later wins: defaults, the file ``fumehood.toml`` (or the one that ``FUMEHOOD_CONFIG`` names),
environment variables ``FUMEHOOD_*``, what the command line or the caller sets.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, ValidationError, model_validator
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from fumehood.common.errors import ConfigurationError
from fumehood.common.limits import ENCODING_ALLOWANCE, Limits, parse_size


def _size(value: object) -> int:
    try:
        return parse_size(value)
    except ConfigurationError as cause:
        raise ValueError(str(cause)) from None  # so that pydantic adds the setting's name


Size = Annotated[int, BeforeValidator(_size)]


def _split(value: object) -> object:
    return (
        tuple(part.strip() for part in value.split(",") if part.strip())
        if isinstance(value, str)
        else value
    )


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]

#: What an untrusted job is promised at least; the rest is reported where it is degraded.
DEFAULT_REQUIRES = (
    "kill", "memory", "processes", "private-memory", "no-signals", "no-tcp", "no-udp", "no-unix",
    "read-only-code", "private-tmp",
)  # fmt: skip  # fmt: skip
Count = Annotated[int, Field(ge=1)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Settings(BaseSettings):
    """What an operator decides. Subclass it in your app to change defaults or add your own."""

    model_config = SettingsConfigDict(
        env_prefix="FUMEHOOD_",
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # an input may be a URL with a password
        validate_default=True,
    )

    broker_url: str = "amqp://guest:guest@127.0.0.1:5672/"
    """Where jobs are kept: ``amqp://``, ``amqps://`` (commas between hosts) or ``memory://``."""
    connect_timeout: Seconds = 10.0
    """Seconds until a first connection must stand."""
    publish_timeout: Seconds = 30.0
    """Seconds until a publish must be confirmed, reconnections included."""
    declare_queues: bool = False
    """Whether a client makes a job queue that does not exist yet; without it that is an error."""

    max_timeout: Seconds = 86400.0
    """Seconds; the largest ``timeout`` that a job may ask for."""
    max_arguments: Size = (8 << 20) + ENCODING_ALLOWANCE
    """Bytes; the largest body of encoded arguments. By default 8 MiB of data fit."""
    max_result: Size = (8 << 20) + ENCODING_ALLOWANCE
    """Bytes; the largest encoded value, the most that the ``result`` limit can be."""
    max_output: Size = 1 << 20
    """Bytes kept of stdout and of stderr, each; the default of the ``output`` limit."""

    max_memory: Size | None = None
    """Bytes; the most that an attempt may hold, and what it gets that asks for no limit."""
    max_cpu: Seconds | None = None
    """Seconds of CPU time of an attempt; like the others below: a cap, and a default."""
    max_processes: Count | None = None
    """Processes and threads of an attempt at one time."""
    max_file_size: Size | None = None
    """Bytes of one file that an attempt writes."""
    max_open_files: Count | None = None
    """Descriptors of one process of an attempt."""
    max_tmp: Size | None = None
    """Bytes in the private temporary folders of an untrusted attempt."""

    sandbox_enabled: bool = True
    """Whether jobs run in sandboxes. Without, a job can hang, crash and leak into its node."""
    sandbox_default_timeout: Seconds = 30.0
    """Seconds; the timeout of a job that names none."""
    sandbox_ctx: Literal["fork", "forkserver", "spawn"] = "fork"
    """How sandboxes are made. ``fork`` and ``forkserver``: from a zygote; ``spawn``: each anew."""
    sandbox_fallback: bool = False
    """Whether a node runs a trusted task inline when no sandbox could be started for it."""
    sandbox_start_timeout: Seconds = 30.0
    """Seconds; how long importing the task modules may take."""

    sandbox_env: Names = ()
    """More environment variables that tasks may see, with ``*``; ``A,B_*`` in the environment."""
    sandbox_disable: Names = ()
    """Mechanisms not to use, to test or to work around a host: ``cgroup``, ``cgroup-memory``,
    ``cgroup-pids``, ``landlock``, ``seccomp``, ``userns``, ``pidfd``."""
    untrusted_queues: Names = ()
    """Queues, with ``*``, whose jobs all run as ``untrusted``, whatever their tasks declare."""
    untrusted_requires: Names = DEFAULT_REQUIRES
    """Guarantees without which no untrusted job runs here, as ``fumehood doctor`` names them."""
    sandbox_max_forks: int = Field(default=50_000, ge=1)
    """Sandboxes made from one zygote before another one takes its place."""
    sandbox_max_age: Seconds = 3600.0
    """Seconds after which another zygote takes the place of one."""
    sandbox_watch_code: bool = True
    """Whether a zygote is replaced when the code of the task modules has changed on disk."""

    concurrency: int = Field(default_factory=lambda: os.cpu_count() or 1, ge=1, le=1024)
    """Sandboxes that a node runs at a time."""
    drain_grace: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 30.0
    """Seconds that running jobs get to finish when a node is told to stop."""
    max_deliveries: int = Field(default=20, ge=1)
    """How often a job may be handed out without a verdict before it is given up as LOST."""

    @model_validator(mode="after")
    def _timeouts_fit(self) -> Self:
        if self.sandbox_default_timeout > self.max_timeout:
            raise ValueError(
                f"sandbox_default_timeout ({self.sandbox_default_timeout:g} s) is above "
                f"max_timeout ({self.max_timeout:g} s)"
            )
        return self

    @property
    def limits(self) -> Limits:
        """The most that any attempt may use."""
        return Limits(
            memory=self.max_memory,
            cpu=self.max_cpu,
            processes=self.max_processes,
            file_size=self.max_file_size,
            open_files=self.max_open_files,
            tmp=self.max_tmp,
            output=self.max_output,
            result=self.max_result,
        )

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        """What ``repr`` and ``str`` show: passwords in URLs are left out. Called by pydantic."""
        for name, value in super().__repr_args__():
            yield name, hide_password(value) if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The order of the sources, strongest first. Called by pydantic-settings."""
        # An app may give its own settings a prefix of their own; ours are found under ours, too.
        ours = EnvSettingsSource(settings_cls, env_prefix="FUMEHOOD_")
        return init_settings, env_settings, ours, _toml(settings_cls)


def _toml(settings_cls: type[BaseSettings]) -> TomlConfigSettingsSource:
    named = os.environ.get("FUMEHOOD_CONFIG")
    path = Path(named or "fumehood.toml")
    if named and not path.is_file():
        raise ConfigurationError(f"FUMEHOOD_CONFIG names {named!r}, which is not a file")
    try:
        return TomlConfigSettingsSource(settings_cls, path)
    except (OSError, ValueError) as cause:
        raise ConfigurationError(f"{path}: {_one_line(cause)}") from None


def hide_password(text: str) -> str:
    """``text`` with the password of a URL in it, if any, replaced by ``***``."""
    return _PASSWORD.sub(r"\1***@", text)


# Up to the last @: an unquoted password may hold one itself.
_PASSWORD = re.compile(r"(://[^:@/\s]*:)\S*@")


def load_settings(spec: str | None = None, **overrides: Any) -> Settings:
    """Build the settings. ``spec``, else ``FUMEHOOD_SETTINGS``, is ``module:Class`` of an app.

    ``overrides`` that are None are left out. Raises ``ConfigurationError``, a single line.
    """
    kind = _settings_class(spec or os.environ.get("FUMEHOOD_SETTINGS"))
    try:
        return kind(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as cause:
        faults = [
            f"{'.'.join(map(str, e['loc'])) or 'settings'}: {e['msg']}" for e in cause.errors()
        ]
        raise ConfigurationError(_one_line("; ".join(faults))) from None
    except SettingsError as cause:
        raise ConfigurationError(_one_line(cause)) from None


def _one_line(cause: object) -> str:
    return " ".join(str(cause).split())


def _settings_class(spec: str | None) -> type[Settings]:
    if not spec:
        return Settings
    module, _, name = spec.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except Exception as cause:  # an app's module may raise anything while it is imported
        raise ConfigurationError(
            f"settings {spec!r}: {_one_line(cause)} (it is written module:Class)"
        ) from cause
    if not (isinstance(found, type) and issubclass(found, Settings)):
        raise ConfigurationError(f"settings {spec!r} is not a subclass of fumehood.common.Settings")
    return found
