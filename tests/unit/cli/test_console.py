"""How an error of a command is told."""

from __future__ import annotations

import pytest
import typer

from fumehood.common import (
    BrokerUnavailable,
    ClientClosed,
    ConfigurationError,
    InvalidArguments,
    JobTimedOut,
    Outcome,
    PayloadTooLarge,
    QueueFull,
    SandboxUnavailable,
    Status,
    UnknownQueue,
    console,
    exit_codes,
)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigurationError("x"), 2),
        (InvalidArguments("x"), 2),
        (PayloadTooLarge("x"), 2),
        (SandboxUnavailable("x"), 2),
        (BrokerUnavailable("x"), 3),
        (QueueFull("x"), 3),
        (UnknownQueue("x"), 3),
        (ClientClosed("x"), 3),
        (JobTimedOut("x", Outcome(Status.TIMED_OUT)), 4),
        (TimeoutError("x"), 5),
        (KeyboardInterrupt(), 130),
        (RuntimeError("x"), 1),
        (KeyError(), 1),
    ],
    ids=lambda found: type(found).__name__ if isinstance(found, BaseException) else "",
)
def test_an_error_becomes_one_line_and_a_code(
    error: BaseException, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as leaving, console.one_line_errors("try"):
        raise error
    shown = capsys.readouterr().err
    assert leaving.value.exit_code == code
    assert shown.startswith("fumehood try: ")
    assert shown.count("\n") == 1


def test_lines_of_a_message_become_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(typer.Exit), console.one_line_errors("try"):
        raise ConfigurationError("one\n  two")
    assert capsys.readouterr().err == "fumehood try: one two\n"


def test_an_unexpected_error_says_how_to_see_more(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for setting, traced in (("", False), ("0", False), ("1", True)):
        monkeypatch.setenv(console.DEBUG, setting)
        with pytest.raises(typer.Exit), console.one_line_errors("try"):
            raise KeyError("lost")
        shown = capsys.readouterr().err
        assert shown.endswith(
            "fumehood try: unexpected KeyError: 'lost' (FUMEHOOD_DEBUG=1 shows where)\n"
        )
        assert ("Traceback" in shown) is traced


@pytest.mark.parametrize("leaving", [typer.Exit(7), typer.Abort(), BrokenPipeError()])
def test_ways_out_that_are_no_errors_pass(leaving: Exception) -> None:
    with pytest.raises(type(leaving)), console.one_line_errors("try"):
        raise leaving


def test_the_table_describes_each_code_once() -> None:
    assert sorted(exit_codes.MEANINGS) == [0, 1, 2, 3, 4, 5, 6, 7, 130]
    assert exit_codes.describe(0, 130) == "Exit codes: 0 done; 130 interrupted."
