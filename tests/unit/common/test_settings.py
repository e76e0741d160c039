"""Where settings come from, which source wins, and what is said about wrong ones."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fumehood.common import ConfigurationError, Settings, load_settings
from fumehood.common.settings import hide_password

Write = Callable[[str], Path]

APP = """
from fumehood.common import Settings
from pydantic_settings import SettingsConfigDict

class Plain(Settings):
    concurrency: int = 3
    colour: str = "red"

class Prefixed(Settings):
    model_config = SettingsConfigDict(env_prefix="APP_")
    colour: str = "red"

class Leaky(Settings):
    broker_url: str = "amqp://me:secret@host/"

class Other:
    pass
"""


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty folder to work in, and an environment without settings."""
    monkeypatch.chdir(tmp_path)
    for name in os.environ:
        if name.startswith("FUMEHOOD_"):
            monkeypatch.delenv(name)


@pytest.fixture
def toml(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        path = tmp_path / "fumehood.toml"
        path.write_text(text)
        return path

    return write


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a module with settings of an app's own."""
    (tmp_path / "settings_of_app.py").write_text(APP)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "settings_of_app", raising=False)
    return "settings_of_app"


def test_later_sources_win(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings().max_timeout == 86400.0
    toml("max_timeout = 100.0\nconcurrency = 2\n")
    assert load_settings().max_timeout == 100.0
    monkeypatch.setenv("FUMEHOOD_MAX_TIMEOUT", "200")
    assert load_settings().max_timeout == 200.0
    assert load_settings(max_timeout=300.0, broker_url=None).max_timeout == 300.0
    assert load_settings().concurrency == 2
    assert load_settings().broker_url == "amqp://guest:guest@127.0.0.1:5672/"


def test_the_file_may_stand_elsewhere(
    toml: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml("concurrency = 2\n")
    (tmp_path / "other.toml").write_text("concurrency = 5\n")
    monkeypatch.setenv("FUMEHOOD_CONFIG", "other.toml")
    assert load_settings().concurrency == 5
    monkeypatch.setenv("FUMEHOOD_CONFIG", "")
    assert load_settings().concurrency == 2


def test_sizes_may_be_text(toml: Write) -> None:
    toml('max_output = "2MiB"\nmax_result = 5\n')
    settings = load_settings(max_arguments="1kB")
    assert (settings.max_output, settings.max_result, settings.max_arguments) == (2 << 20, 5, 1000)
    assert (settings.limits.output, settings.limits.result) == (2 << 20, 5)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ({"concurrency": 0}, "concurrency: "),
        ({"concurrency": "many"}, "concurrency: "),
        ({"max_timeout": float("inf")}, "max_timeout: "),
        ({"max_output": "much"}, "max_output: "),
        ({"sandbox_ctx": "thread"}, "sandbox_ctx: "),
        ({"max_timeout": 5.0}, "sandbox_default_timeout (30 s) is above max_timeout (5 s)"),
        ({"concurrency": 0, "max_deliveries": 0}, "; max_deliveries: "),
    ],
)
def test_a_bad_value_is_one_line(overrides: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(**overrides)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_bad_variable_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUMEHOOD_CONCURRENCY", "many")
    with pytest.raises(ConfigurationError, match=r"^concurrency: [^\n]+$"):
        load_settings()


def test_a_bad_file_is_one_line_that_names_it(toml: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    path = toml("concurrency = = 2\n")
    with pytest.raises(ConfigurationError, match=r"^fumehood\.toml: [^\n]+$"):
        load_settings()
    with pytest.raises(ConfigurationError, match=r"^fumehood\.toml: "):
        Settings()
    path.rename(path.with_name("mine.toml"))
    monkeypatch.setenv("FUMEHOOD_CONFIG", "mine.toml")
    with pytest.raises(ConfigurationError, match=r"^mine\.toml: "):
        load_settings()


def test_a_file_that_is_named_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUMEHOOD_CONFIG", "gone.toml")
    with pytest.raises(ConfigurationError, match=r"FUMEHOOD_CONFIG names 'gone\.toml'"):
        load_settings()


def test_an_app_changes_defaults_and_adds_its_own(
    app: str, toml: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: Any = load_settings(f"{app}:Plain")
    assert (settings.concurrency, settings.colour) == (3, "red")
    monkeypatch.setenv("FUMEHOOD_SETTINGS", f"{app}:Plain")
    monkeypatch.setenv("FUMEHOOD_COLOUR", "blue")
    toml("concurrency = 4\n")
    settings = load_settings()
    assert (settings.concurrency, settings.colour) == (4, "blue")
    assert type(load_settings(f"{app}:Prefixed")).__name__ == "Prefixed"


def test_a_prefix_of_an_app_leaves_ours_in_force(app: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APP_COLOUR", "blue")
    monkeypatch.setenv("FUMEHOOD_CONCURRENCY", "7")
    monkeypatch.setenv("FUMEHOOD_MAX_TIMEOUT", "100")
    monkeypatch.setenv("APP_MAX_TIMEOUT", "200")
    settings: Any = load_settings(f"{app}:Prefixed")
    assert (settings.colour, settings.concurrency, settings.max_timeout) == ("blue", 7, 200.0)


@pytest.mark.parametrize("spec", ["no_such_module:Class", "{}:Gone", "{}", "{}:Other", ":", "a b"])
def test_settings_that_cannot_be_found(app: str, spec: str) -> None:
    spec = spec.format(app)
    with pytest.raises(ConfigurationError) as caught:
        load_settings(spec)
    assert repr(spec) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_password_is_shown(app: str) -> None:
    for settings in (
        Settings(broker_url="amqps://me:secret@host:5671/shop"),
        load_settings(f"{app}:Leaky"),
    ):
        assert "secret" in settings.broker_url
        assert "secret" not in repr(settings)
        assert "secret" not in str(settings)
        assert "://me:***@host" in repr(settings)
    with pytest.raises(ValueError, match="broker_url") as caught:
        Settings(broker_url=["amqp://me:secret@host"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("amqp://me:se@cr/et@host/", "amqp://me:***@host/"),
        ("amqp://me:secret@one,amqp://me:secret@two", "amqp://me:***@two"),
        ("amqp://host:5672/", "amqp://host:5672/"),
        ("memory://", "memory://"),
    ],
)
def test_passwords_in_urls(url: str, shown: str) -> None:
    assert hide_password(url) == shown


def test_settings_are_frozen() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load_settings().concurrency = 5
