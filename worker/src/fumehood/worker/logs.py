"""What a node logs, and how: lines for people, or one JSON object per line for machines."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Mapping
from typing import Any

# Attributes that every record has; what a call passed as ``extra`` stands beside them.
_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class TextFormatter(logging.Formatter):
    """Such as ``2026-01-31T09:00:00Z INFO fumehood.worker: the node is ready queues=default``."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a traceback below it where there is one."""
        facts = "".join(f" {name}={_shown(fact)}" for name, fact in _extras(record).items())
        message = record.getMessage().replace("\n", "\\n")
        head = f"{_when(record)} {record.levelname} {record.name}: {message}{facts}"
        return f"{head}\n{self.formatException(record.exc_info)}" if record.exc_info else head


class JsonFormatter(logging.Formatter):
    """One object per line: ``time``, ``level``, ``logger``, ``message``, then the facts."""

    def format(self, record: logging.LogRecord) -> str:
        """One line, whatever it holds."""
        line: dict[str, Any] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {name: fact for name, fact in _extras(record).items() if name not in line}
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def configure(level: str, *, as_json: bool) -> None:
    """Send the records of this process to stderr. For a process that is a node and nothing else."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)


def _extras(record: logging.LogRecord) -> Mapping[str, Any]:
    return {name: fact for name, fact in vars(record).items() if name not in _OWN}


def _shown(fact: Any) -> str:
    if isinstance(fact, (list, tuple, set, frozenset)):
        fact = ",".join(map(str, fact))  # pyright: ignore[reportUnknownArgumentType]
    text = " ".join(str(fact).split())
    return json.dumps(text, ensure_ascii=False) if " " in text or not text else text


def _when(record: logging.LogRecord) -> str:
    seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{seconds}.{int(record.msecs):03d}Z"
