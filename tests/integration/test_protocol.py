"""``docs/protocol.md`` from the other side: pika and msgpack, and not a line of ours.

The node is a real ``fumehood worker`` on a real RabbitMQ.
"""

from __future__ import annotations

import math
import os
import re
import secrets
import struct
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgpack
import pika
import pika.data
import pika.exceptions
import pytest
from pika.adapters.blocking_connection import BlockingChannel
from support.node_process import worker
from support.rabbitmq import PrivateNode

pytestmark = pytest.mark.rabbitmq

PROTOCOL = Path(__file__).parents[2] / "docs/protocol.md"
QUEUE = "foreign"
TASKS = """
import time
from fumehood.common import task

@task
def add(a, b=0):
    return a + b

@task
def show(value):
    return f"{type(value).__name__} {value!r}"

@task
def back():
    return (1, {2})

@task
def nap(seconds):
    print("going to sleep", flush=True)
    time.sleep(seconds)

@task
def fail():
    raise LookupError("not here")
"""

Body = dict[str, Any]


_encode_value = pika.data.encode_value


def _encode_with_floats(pieces: list[Any], value: Any) -> int:
    """What other libraries can and pika cannot: a header that is a double."""
    if not isinstance(value, float):
        return int(_encode_value(pieces, value))
    pieces.append(struct.pack(">cd", b"d", value))
    return 9


class ForeignProducer:
    """Enqueues and listens with a plain AMQP library."""

    def __init__(self, url: str) -> None:
        self._connection = pika.BlockingConnection(pika.URLParameters(url))
        self._channel: BlockingChannel = self._connection.channel()
        self._channel.confirm_delivery()
        self.address = f"guest.{secrets.token_hex(8)}"
        self._queue = self._channel.queue_declare("", exclusive=True).method.queue
        self._channel.queue_bind(self._queue, "fumehood.replies", self.address)

    def send(
        self,
        task: str = "wire.add",
        body: bytes | None = None,
        *,
        headers: Body | None = None,
        **properties: Any,
    ) -> str:
        """Publish a job; its id."""
        job_id = uuid.uuid4().hex
        plain: dict[str, Any] = {
            "type": "job",
            "content_type": "application/msgpack",
            "correlation_id": job_id,
            "reply_to": self.address,
            "delivery_mode": 2,
        }
        self._channel.basic_publish(
            "fumehood.jobs",
            QUEUE,
            msgpack.packb([[2, 3], {}]) if body is None else body,
            pika.BasicProperties(
                headers={"task": task, **(headers or {})}, **{**plain, **properties}
            ),
            mandatory=True,
        )
        return job_id

    def cancel(self, job_id: str) -> None:
        """Tell every node that the job is not wanted any more."""
        self._channel.basic_publish(
            "fumehood.control",
            "",
            msgpack.packb({"do": "cancel"}),
            pika.BasicProperties(
                type="control", content_type="application/msgpack", correlation_id=job_id
            ),
        )

    def receive(self, timeout: float = 20.0) -> tuple[pika.BasicProperties, Body]:
        """The next outcome."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            method, properties, body = self._channel.basic_get(self._queue, auto_ack=True)
            if method is not None and properties is not None and body is not None:
                assert properties.type == "outcome"
                assert properties.content_type == "application/msgpack"
                found = msgpack.unpackb(body)
                assert properties.headers == {"status": found["status"]}
                return properties, found
            self._connection.sleep(0.01)
        raise AssertionError("no outcome came")

    def outcome(self, job_id: str) -> Body:
        """The next outcome, which must be that of this job."""
        properties, body = self.receive()
        assert properties.correlation_id == job_id
        return body

    def close(self) -> None:
        if self._connection.is_open:
            self._connection.close()


@pytest.fixture(scope="module")
def node(rabbit: PrivateNode, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A worker that serves the foreign queue; the URL of its broker."""
    folder = tmp_path_factory.mktemp("wire")
    (folder / "wire.py").write_text(TASKS)
    settings = {"FUMEHOOD_MAX_TIMEOUT": "60"}
    arguments = ("wire", "-q", QUEUE, "-c", "2", "--broker", rabbit.url)
    with worker(*arguments, cwd=folder, env=settings):
        yield rabbit.url


@pytest.fixture
def producer(node: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[ForeignProducer]:
    monkeypatch.setattr(pika.data, "encode_value", _encode_with_floats)
    found = ForeignProducer(node)
    yield found
    found.close()


def test_a_job_succeeds(producer: ForeignProducer) -> None:
    started = time.time()
    job_id = producer.send(headers={"timeout": 5.0})
    body = producer.outcome(job_id)
    assert (body["status"], body["blame"], body["task"]) == ("succeeded", "nobody", "wire.add")
    assert msgpack.unpackb(body["value"]) == 5
    assert (body["attempt"], body["exit_code"]) == (1, 0)
    assert len(body["usage"]) == 4
    assert all(isinstance(used, float | int) and used >= 0 for used in body["usage"])
    assert isinstance(body["node"], str)
    assert started <= body["finished_at"] <= time.time()


def test_a_timeout_is_honoured(producer: ForeignProducer) -> None:
    started = time.monotonic()
    job_id = producer.send(
        "wire.nap", msgpack.packb([[], {"seconds": 60}]), headers={"timeout": 0.3}
    )
    body = producer.outcome(job_id)
    assert (body["status"], body["blame"], body["limit"]) == ("timed_out", "limit", "timeout")
    assert body["signal"] == "SIGKILL"
    assert body["stdout"] == b"going to sleep\n"
    assert "time.sleep" in body["stack"] or "nap" in body["stack"]
    assert 0.3 <= body["usage"][0] < 2.0
    assert time.monotonic() - started < 15


def test_an_integer_is_a_timeout_too(producer: ForeignProducer) -> None:
    job_id = producer.send("wire.nap", msgpack.packb([[60], {}]), headers={"timeout": 1})
    assert producer.outcome(job_id)["status"] == "timed_out"


def test_a_failure_comes_with_its_error(producer: ForeignProducer) -> None:
    body = producer.outcome(producer.send("wire.fail", msgpack.packb([[], {}])))
    kind, message, trace = body["error"]
    assert (body["status"], body["blame"]) == ("failed", "task")
    assert (kind, message) == ("LookupError", "not here")
    assert "in fail" in trace


def test_an_expired_job_is_not_started(producer: ForeignProducer) -> None:
    job_id = producer.send(headers={"expires": int(time.time() * 1000) - 1})
    assert producer.outcome(job_id)["status"] == "expired"


def test_a_running_job_is_cancelled(producer: ForeignProducer) -> None:
    job_id = producer.send("wire.nap", msgpack.packb([[50], {}]), headers={"timeout": 55.0})
    time.sleep(0.5)
    producer.cancel(job_id)
    body = producer.outcome(job_id)
    assert (body["status"], body["blame"]) == ("cancelled", "policy")


def test_a_result_over_its_limit_is_not_sent(producer: ForeignProducer) -> None:
    body = msgpack.packb([["x" * 100], {"b": "y"}])
    found = producer.outcome(producer.send(body=body, headers={"limit-result": 50}))
    assert (found["status"], found["limit"]) == ("limit_exceeded", "result")


@pytest.mark.parametrize(
    ("headers", "names"),
    [
        ({"timeout": "nan"}, "timeout"),
        ({"timeout": -1.0}, "timeout"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "x"}, "timeout"),
        ({"timeout": True}, "timeout"),
        ({"timeout": 61.0}, "timeout"),
        ({"expires": -1}, "expires"),
        ({"expires": "soon"}, "expires"),
        ({"attempt": 0}, "attempt"),
        ({"limit-result": -1}, "limit-result"),
        ({"limit-colour": 5}, "limit-colour"),
        ({"task": "wire.nothing"}, "wire.nothing"),
        ({"task": 7}, "task"),
        ({"task": ""}, "task"),
    ],
    ids=str,
)
def test_a_bad_header_is_rejected(producer: ForeignProducer, headers: Body, names: str) -> None:
    body = producer.outcome(producer.send(headers=headers))
    assert (body["status"], body["blame"]) == ("rejected", "policy")
    assert names in body["reason"]
    assert "value" not in body


@pytest.mark.parametrize("timeout", [math.nan, math.inf])
def test_no_broker_carries_a_timeout_that_is_no_number(
    producer: ForeignProducer, timeout: float
) -> None:
    with pytest.raises(pika.exceptions.ConnectionClosedByBroker):
        producer.send(headers={"timeout": timeout})


@pytest.mark.parametrize(
    "body",
    [b"", b"\xc1", b"not msgpack at all", msgpack.packb([[1]]), msgpack.packb({"a": 1})],
    ids=["empty", "reserved", "text", "one part", "a map"],
)
def test_a_garbage_body_is_rejected(producer: ForeignProducer, body: bytes) -> None:
    found = producer.outcome(producer.send(body=body))
    assert (found["status"], found["blame"]) == ("rejected", "policy")


def test_a_wrong_content_type_is_rejected(producer: ForeignProducer) -> None:
    body = producer.outcome(producer.send(content_type="application/json"))
    assert body["status"] == "rejected"
    assert "content_type" in body["reason"]


def test_a_wrong_type_is_rejected(producer: ForeignProducer) -> None:
    body = producer.outcome(producer.send(type="task"))
    assert body["status"] == "rejected"


def test_a_missing_correlation_id_is_rejected(producer: ForeignProducer) -> None:
    producer.send(correlation_id=None)
    properties, body = producer.receive()
    assert not properties.correlation_id
    assert body["status"] == "rejected"
    assert "correlation_id" in body["reason"]


def test_without_a_reply_address_nothing_is_answered(producer: ForeignProducer) -> None:
    producer.send("wire.nothing", reply_to=None)
    producer.send(reply_to=None)
    after = producer.send()
    assert producer.outcome(after)["status"] == "succeeded"


EXTENSIONS = [
    (1, msgpack.packb([1, "a"]), "tuple (1, 'a')"),
    (2, msgpack.packb([1]), "set {1}"),
    (3, msgpack.packb([1]), "frozenset frozenset({1})"),
    (
        4,
        msgpack.packb(["2030-01-02T03:04:05", 3_600_000_000, 0]),
        (
            "datetime datetime.datetime(2030, 1, 2, 3, 4, 5, "
            "tzinfo=datetime.timezone(datetime.timedelta(seconds=3600)))"
        ),
    ),
    (
        4,
        msgpack.packb(["2030-01-02T03:04:05", "Europe/Berlin", 0]),
        (
            "datetime datetime.datetime(2030, 1, 2, 3, 4, 5, "
            "tzinfo=zoneinfo.ZoneInfo(key='Europe/Berlin'))"
        ),
    ),
    (5, b"2030-01-02", "date datetime.date(2030, 1, 2)"),
    (6, msgpack.packb(["03:04:05", None, 0]), "time datetime.time(3, 4, 5)"),
    (
        7,
        msgpack.packb([1, 2, 3]),
        "timedelta datetime.timedelta(days=1, seconds=2, microseconds=3)",
    ),
    (8, bytes(15) + b"\x01", "UUID UUID('00000000-0000-0000-0000-000000000001')"),
    (9, b"1.50", "Decimal Decimal('1.50')"),
    (10, msgpack.packb([1.0, -2.0]), "complex (1-2j)"),
    (11, b"/tmp/x", "PosixPath PosixPath('/tmp/x')"),
    (12, b"-10000000000000000", f"int {-(1 << 64)}"),
]


@pytest.mark.parametrize(
    ("code", "payload", "shown"), EXTENSIONS, ids=[e[2][:20] for e in EXTENSIONS]
)
def test_an_extension_type_arrives(
    producer: ForeignProducer, code: int, payload: bytes, shown: str
) -> None:
    body = msgpack.packb([[msgpack.ExtType(code, payload)], {}])
    outcome = producer.outcome(producer.send("wire.show", body))
    assert outcome["status"] == "succeeded", outcome
    assert msgpack.unpackb(outcome["value"]) == shown


def test_an_extension_type_comes_back(producer: ForeignProducer) -> None:
    outcome = producer.outcome(producer.send("wire.back", msgpack.packb([[], {}])))
    value = msgpack.unpackb(outcome["value"])
    assert value.code == 1
    one, two = msgpack.unpackb(value.data)
    assert (one, two) == (1, msgpack.ExtType(2, msgpack.packb([2])))


def test_an_unknown_extension_type_is_rejected(producer: ForeignProducer) -> None:
    body = msgpack.packb([[msgpack.ExtType(99, b"")], {}])
    outcome = producer.outcome(producer.send("wire.show", body))
    assert outcome["status"] == "rejected"
    assert "99" in outcome["reason"]


def test_the_example_of_the_specification_works(node: str, tmp_path: Path) -> None:
    found = re.search(r"```python\n(.*?)```", PROTOCOL.read_text(), re.DOTALL)
    assert found is not None
    source = found[1].replace('"app.tasks.add"', '"wire.add"').replace('"default"', f'"{QUEUE}"')
    (tmp_path / "example.py").write_text(source)
    done = subprocess.run(
        [sys.executable, "example.py"],
        cwd=tmp_path,
        env={**os.environ, "AMQP_URL": node},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "succeeded 5\n"
