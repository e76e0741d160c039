"""Holds the product code to its size budgets: lines per file, and lines per function body.

Docstrings do not count towards a function, so that explaining it costs nothing. A nested function
counts towards the function around it, for a reader has to hold both.
"""

import argparse
import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FILE_LIMIT, FILE_AIM = 400, 250
FUNCTION_LIMIT, FUNCTION_AIM = 50, 20


@dataclass(frozen=True, slots=True)
class Size:
    """How many lines a file or a function has, and how many it should and may have."""

    where: str
    lines: int
    aim: int
    limit: int


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    body = function.body
    if ast.get_docstring(function, clean=False) is not None:
        body = body[1:]
    if not body:
        return 0
    return (function.end_lineno or body[0].lineno) - body[0].lineno + 1


def sizes(root: Path) -> Iterator[Size]:
    for path in sorted({*root.glob("src/**/*.py"), *root.glob("*/src/**/*.py")}):
        source = path.read_text(encoding="utf-8")
        where = path.relative_to(root).as_posix()
        yield Size(where, len(source.splitlines()), FILE_AIM, FILE_LIMIT)
        for node in ast.walk(ast.parse(source, where)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{where}:{node.lineno} {node.name}"
                yield Size(place, body_lines(node), FUNCTION_AIM, FUNCTION_LIMIT)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--root", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--report", action="store_true", help="list what exceeds the aims as well")
    options = parser.parse_args()
    measured = sorted(sizes(options.root), key=lambda size: size.lines / size.limit, reverse=True)
    if not measured:
        # A moved tree must not look like a clean one.
        print(f"budgets: no product code under {options.root}", file=sys.stderr)
        return 1
    broken = [size for size in measured if size.lines > size.limit]
    for size in broken:
        print(f"{size.where}: {size.lines} lines, {size.limit} at most")
    if options.report:
        for size in measured:
            if size.aim < size.lines <= size.limit:
                print(f"{size.where}: {size.lines} lines, aim at {size.aim}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
