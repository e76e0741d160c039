"""The tasks of the demonstration: six that try a node's patience, and one that works."""

from __future__ import annotations

import ast
import ctypes
import gc
import os
import signal
import time
import tokenize
from dataclasses import dataclass
from typing import Any

from fumehood.common import task

#: What the grandchild prints before its process id.
GRANDCHILD = "grandchild"


@task
def fine(a: int, b: int) -> int:
    """Do as one should."""
    return a + b


@task
def raises() -> None:
    """Raise an exception."""
    raise ValueError("no such luck")


@task
def oversleeps(seconds: float) -> None:
    """Sleep past the timeout."""
    time.sleep(seconds)


@task
def segfaults() -> None:
    """Read the memory at address 0."""
    ctypes.string_at(0)


@task
def exits() -> None:
    """Leave without a word, and claim success."""
    os._exit(0)


@task
def clings(seconds: float) -> None:
    """Ignore SIGTERM, and leave a process in a session of its own behind."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(1, f"{GRANDCHILD} {os.getpid()}\n".encode())
            time.sleep(seconds)
        os._exit(0)
    time.sleep(seconds)


@dataclass(frozen=True, slots=True)
class FileFacts:
    """What one source file holds."""

    path: str
    lines: int
    functions: int
    classes: int
    nesting: int  # blocks inside blocks, at most
    complexity: int  # ways through the most branching function


@task
def measure(path: str) -> FileFacts:
    """Parse a Python file and measure it. A file that is no Python raises ``SyntaxError``."""
    gc.disable()  # nothing here is garbage before the process ends
    with tokenize.open(path) as file:
        source = file.read()
    counts = _count(ast.parse(source, path))
    return FileFacts(
        path=path,
        lines=source.count("\n"),
        functions=len(counts.ways),
        classes=counts.classes,
        nesting=counts.nesting,
        complexity=max(counts.ways, default=0),
    )


@dataclass(slots=True)
class _Counts:
    classes: int
    nesting: int
    ways: list[int]  # through each function


_FUNCTIONS = {ast.FunctionDef, ast.AsyncFunctionDef}
_BLOCKS = {ast.If, ast.For, ast.AsyncFor, ast.While, ast.Try, ast.With, ast.AsyncWith, ast.Match}
_BRANCHES = {
    ast.If, ast.IfExp, ast.For, ast.AsyncFor, ast.While, ast.ExceptHandler, ast.BoolOp,
    ast.comprehension, ast.match_case,
}  # fmt: skip


def _count(tree: ast.AST) -> _Counts:
    counts = _Counts(0, 0, [])
    # A list, not recursion, for some files nest on purpose: node, depth, its function's number.
    waiting: list[tuple[ast.AST, int, int]] = [(tree, 0, -1)]
    while waiting:
        node, depth, function = waiting.pop()
        kind = type(node)
        if kind in _FUNCTIONS:
            function = len(counts.ways)
            counts.ways.append(1)
        elif kind is ast.ClassDef:
            counts.classes += 1
        if kind in _BRANCHES and function >= 0:
            counts.ways[function] += 1
        elif_: object = None
        if kind in _BLOCKS:
            depth += 1
            counts.nesting = max(counts.nesting, depth)
            elif_ = _elif_of(node)  # it stands no deeper than its "if"
        for name in kind._fields:
            waiting += [
                (child, depth - (child is elif_), function)
                for child in _parts(getattr(node, name, None))
                if isinstance(child, ast.AST) and child._fields
            ]
    return counts


def _parts(field: Any) -> list[Any]:
    return field if isinstance(field, list) else [field]  # pyright: ignore[reportUnknownVariableType]


def _elif_of(node: ast.AST) -> ast.AST | None:
    if isinstance(node, ast.If) and len(node.orelse) == 1 and isinstance(node.orelse[0], ast.If):
        return node.orelse[0]
    return None
