"""A node's log: lines for people, objects for machines."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

from fumehood.worker.logs import JsonFormatter, TextFormatter


def record(message: str = "it %s", *args: object, **facts: Any) -> logging.LogRecord:
    made = logging.makeLogRecord(
        {"name": "fumehood.worker", "levelname": "INFO", "msg": message, "args": args or ("is",)}
    )
    vars(made).update(created=1_900_000_000.25, msecs=250.0, **facts)
    return made


def test_a_line_for_people_ends_with_the_facts() -> None:
    line = TextFormatter().format(record(queues=["a", "b"], cause="two words", none=""))
    assert line == (
        '2030-03-17T17:46:40.250Z INFO fumehood.worker: it is queues=a,b cause="two words" none=""'
    )


def test_nothing_can_begin_a_line_of_its_own() -> None:
    forged = "one\n2030 ERROR forged"
    assert "\n" not in TextFormatter().format(record("%s", forged, cause=forged))


def test_a_line_for_machines_is_one_object() -> None:
    line = JsonFormatter().format(record(queues=["a"], cause=OSError("no"), level="mine"))
    assert json.loads(line) == {
        "time": "2030-03-17T17:46:40.250Z",
        "level": "info",
        "logger": "fumehood.worker",
        "message": "it is",
        "queues": ["a"],
        "cause": "no",
    }


def test_a_traceback_comes_along() -> None:
    made = record()
    try:
        raise ValueError("here")
    except ValueError:
        made.exc_info = sys.exc_info()
    assert "ValueError: here" in TextFormatter().format(made)
    line = JsonFormatter().format(made)
    assert "\n" not in line
    assert "ValueError: here" in json.loads(line)["traceback"]
