"""Code run in a fresh interpreter, for what must not happen in the one that runs the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

#: Packages that are named like libraries which misbehave at import, and do as these do.
FAKES = Path(__file__).parent / "fakes"

# It loads nothing itself: what others load is looked at.
_PROLOGUE = """
import os, sys
sys.path[:0] = filter(None, sys.argv[1].split(os.pathsep))
_answer = os.dup(1)

def report(value):
    import json
    data = json.dumps(value).encode()
    while data:
        data = data[os.write(_answer, data):]
    os._exit(0)

"""

_TAKE = """
from importlib import import_module
from fumehood.worker.sandbox.census import Census

with Census() as census:
    for name in {modules!r}:
        import_module(name)
{then}
report({{
    "findings": [
        [f.kind, f.module, list(f.through), f.detail, f.remedy, str(f), f.is_serious]
        for f in census.findings
    ],
    "threads_left": census.threads_left,
    "modules": census.modules,
    "extra": globals().get("extra"),
}})
"""


def installed(distribution: str) -> bool:
    """Whether this environment has it: what needs it is skipped otherwise."""
    try:
        version(distribution)
    except PackageNotFoundError:
        return False
    return True


def run(code: str, path: Iterable[Path] = (), env: Mapping[str, str] | None = None) -> Any:
    """What ``code`` gives to ``report()``; ``path`` comes first on its ``sys.path``."""
    ran = subprocess.run(
        [sys.executable, "-c", _PROLOGUE + code, os.pathsep.join(map(str, path))],
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, **(env or {})},
    )
    if ran.returncode or not ran.stdout:
        raise AssertionError(f"ended with {ran.returncode}:\n{ran.stderr.decode()}")
    return json.loads(ran.stdout)


class Found:
    """A finding, as the fresh process told of it."""

    def __init__(self, fields: list[Any]) -> None:
        self.kind, self.module, self.through, self.detail, self.remedy, self.line, *rest = fields
        (self.is_serious,) = rest


class Taken:
    """A census, as the fresh process told of it; ``extra`` is whatever ``then`` left in it."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.findings = [Found(fields) for fields in answer["findings"]]
        self.threads_left: int = answer["threads_left"]
        self.modules: list[str] = answer["modules"]
        self.extra: Any = answer["extra"]

    @property
    def kinds(self) -> list[str]:
        return [found.kind for found in self.findings]

    def only(self, kind: str) -> Found:
        """The one finding of this kind."""
        (found,) = [found for found in self.findings if found.kind == kind]
        return found


def take(
    *modules: str, path: Iterable[Path] = (), then: str = "", env: Mapping[str, str] | None = None
) -> Taken:
    """A census of importing ``modules``; ``then`` is code that runs after it."""
    return Taken(run(_TAKE.format(modules=list(modules), then=then), path, env))
