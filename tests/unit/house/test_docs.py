"""What the documents list is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fumehood.common import Blame, Settings, Status, codec, exit_codes
from fumehood.common.envelope import outcome_to_message
from fumehood.common.outcome import ErrorInfo, Outcome

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted(DOCS.rglob("*.md"))]


def section(page: str, title: str) -> str:
    """The text below a heading, up to the next of its level or above."""
    text = (DOCS / page).read_text()
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None, f"{page} has no section {title!r}"
    return found[1]


def cells(text: str, column: int) -> list[str]:
    """One column of the tables in a text, without code marks."""
    rows = [line.split("|")[1:-1] for line in text.splitlines() if line.startswith("|")]
    return [row[column].strip().strip("`") for row in rows if len(row) > column]


def test_the_guide_has_every_setting_and_its_variable() -> None:
    text = section("guide.md", "Settings")
    assert set(cells(text, 0)[2:]) == set(Settings.model_fields)
    variables = dict(zip(cells(text, 0)[2:], cells(text, 1)[2:], strict=True))
    assert variables == {name: f"FUMEHOOD_{name.upper()}" for name in Settings.model_fields}


def test_the_protocol_has_every_status_and_blame() -> None:
    text = section("protocol.md", "An outcome")
    assert {status.value for status in Status} <= set(cells(text, 0))
    for blame in Blame:
        assert f"`{blame.value}`" in text


def test_the_protocol_has_every_field_of_an_outcome() -> None:
    full = Outcome(
        Status.FAILED, "j", "t", Blame.TASK, "r", b"v", ErrorInfo("e", "m"), "s", 1, "S", "l", 2.0,
        3.0, "g", b"o", b"e", 1, 1, profile="trusted", guarantees=("kill",), node="n",
        finished_at=1.0,
    )  # fmt: skip
    sent = codec.decode(outcome_to_message(full).body)
    named = set(re.findall(r"`(\w+)`", " ".join(section("protocol.md", "An outcome").split("\n"))))
    assert set(sent) <= named


def test_the_protocol_has_every_extension_type() -> None:
    numbers = {value for name, value in vars(codec).items() if name.startswith("EXT_")}
    assert {int(cell) for cell in cells(section("protocol.md", "Values"), 0)[2:]} == numbers


def test_operations_has_the_exit_codes_of_a_worker() -> None:
    listed = {int(cell) for cell in cells(section("operations.md", "A node"), 0)[2:]}
    assert listed == {
        exit_codes.OK,
        exit_codes.FAILURE,
        exit_codes.USAGE,
        exit_codes.BROKER,
    }


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        path, _, anchor = target.partition("#")
        if "://" in target:
            continue
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", found.read_text(), re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}
            assert anchor in slugs, target
