"""What a zygote imports of ours: every sandbox is forked from it and pays for its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

ZYGOTE = ("errors", "task", "codec", "limits", "context", "rebuild")
FORBIDDEN = {
    "asyncio", "pydantic", "pydantic_core", "aio_pika", "aiormq", "opentelemetry", "typer", "rich",
    "multiprocessing", "concurrent", "threading", "socket", "ssl", "logging", "subprocess",
    "uuid", "zoneinfo", "decimal", "pathlib", "urllib", "platform", "ipaddress", "tomllib", "json",
    "fumehood.common.settings", "fumehood.common.fault", "fumehood.broker",
}  # fmt: skip

REPORT = """
import sys
def resident():
    with open("/proc/self/statm") as statm:
        return int(statm.read().split()[1])
import msgpack
before, modules = resident(), set(sys.modules)
{imports}
added = sorted(set(sys.modules) - modules)
print([added, resident() - before])
"""


def added_by(imports: str) -> tuple[set[str], float]:
    """Modules, and MiB of memory, that ``imports`` add to Python with msgpack."""
    # -X frozen_modules and site hooks of the test environment are left as users have them.
    ran = subprocess.run(
        [sys.executable, "-c", REPORT.format(imports=imports)],
        capture_output=True,
        text=True,
        check=True,
        env={name: value for name, value in os.environ.items() if not name.startswith("COV")},
    )
    modules: list[str]
    modules, pages = json.loads(ran.stdout.replace("'", '"'))
    return set(modules), pages * os.sysconf("SC_PAGESIZE") / (1 << 20)


def forbidden_in(modules: set[str]) -> set[str]:
    return {name for name in modules if FORBIDDEN & {name, name.split(".")[0]}}


@pytest.fixture(scope="module")
def zygote() -> tuple[set[str], float]:
    return added_by("\n".join(f"import fumehood.common.{name}" for name in ZYGOTE))


def test_a_zygote_imports_nothing_large(zygote: tuple[set[str], float]) -> None:
    modules, _ = zygote
    assert forbidden_in(modules) == set()
    assert {f"fumehood.common.{name}" for name in ZYGOTE} <= modules


def test_a_zygote_stays_small(zygote: tuple[set[str], float]) -> None:
    modules, mib = zygote
    assert len(modules) <= 55
    assert mib <= 6.0


def test_the_package_alone_imports_nothing_large() -> None:
    modules, _ = added_by("import fumehood.common; fumehood.common.task, fumehood.common.JobError")
    assert forbidden_in(modules) == set()
    modules, _ = added_by("import fumehood.common; fumehood.common.Settings")
    assert "pydantic" in modules


def test_a_rare_type_is_imported_when_a_value_needs_it() -> None:
    decode = "from fumehood.common.codec import decode; decode({!r})"
    modules, _ = added_by(decode.format(b"\xc7\x03\x091.5"))
    assert "decimal" in modules
    assert not {"uuid", "zoneinfo", "pathlib"} & modules


def test_every_public_name_is_there() -> None:
    from fumehood import common

    found: dict[str, Any] = {name: getattr(common, name) for name in common.__all__}
    assert callable(found["task"])
    assert found["task"] is common.task
    assert len(found) == len(set(common.__all__))
    with pytest.raises(AttributeError, match="no attribute 'gone'"):
        common.gone  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
