"""Fixtures that every suite may use."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count

import pytest
from support.rabbitmq import PrivateNode

_numbers = count(1)


@pytest.fixture(scope="session")
def rabbit() -> Iterator[PrivateNode]:
    """One private RabbitMQ node for all tests that leave it in peace."""
    with PrivateNode() as node:
        yield node


@pytest.fixture
def fresh_rabbit() -> Iterator[PrivateNode]:
    """A node of its own for a test that hurts it."""
    with PrivateNode() as node:
        yield node


@pytest.fixture
def queue_name() -> str:
    """A queue name that no other test uses: cheaper than a vhost for each."""
    return f"q{next(_numbers)}"
