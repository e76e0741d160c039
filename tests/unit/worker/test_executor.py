"""The executor: every way that a delivery can take, with a runner that does as told."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from support.aio import async_test, until
from support.bench import FINE, NO_ARGUMENTS, NO_SANDBOX, QUEUE, TASK, Bench, FakeRunner, bench

from fumehood.broker.interface import Delivery
from fumehood.broker.memory import MemoryBroker
from fumehood.broker.options import BrokerOptions
from fumehood.common.codec import encode
from fumehood.common.errors import BrokerUnavailable, ConfigurationError, PayloadTooLarge
from fumehood.common.limits import Limits
from fumehood.common.message import TYPE_JOB, Message
from fumehood.common.outcome import Blame, Outcome, Status
from fumehood.common.task import task
from fumehood.worker import unclaimed
from fumehood.worker.remembered import Cancels, Recent, UnsentOutcomes
from fumehood.worker.sandbox.verdict import KillReason

GONE = "memory.nobody"


@task(name="tests.hostile", profile="untrusted")
def hostile() -> None: ...


# --- the common way ------------------------------------------------------------------------


@async_test
async def test_the_outcome_is_confirmed_before_the_job_is_acked() -> None:
    async with bench() as on:
        await on.send("a", timeout=7.0, attempt=3, limits=Limits(result=1000))
        outcome = await on.outcome()
        await on.idle()
        assert on.record == ["publish a", "confirmed a", "ack a"]
    assert (outcome.status, outcome.value) == (Status.SUCCEEDED, "fine")
    assert (outcome.job_id, outcome.task, outcome.node) == ("a", TASK, "node-1")
    assert outcome.attempt == 3
    assert abs(outcome.finished_at - time.time()) < 60
    (job,) = on.runner.jobs
    assert (job.timeout, job.attempt, job.result_max, job.arguments) == (7.0, 3, 1000, NO_ARGUMENTS)
    assert job.output_max == on.settings.max_output


@async_test
async def test_what_a_message_leaves_open_is_the_nodes_to_say() -> None:
    async with bench(sandbox_default_timeout=11.0, max_result=2000) as on:
        await on.send("a", limits=Limits(result=3000))
        await on.idle()
        await on.outcome()
        assert (on.runner.jobs[0].timeout, on.runner.jobs[0].result_max) == (11.0, 2000)


@async_test
async def test_a_job_that_wants_no_reply_is_acked_without_one() -> None:
    async with bench() as on:
        await on.send("a", reply=False)
        await on.recorded("ack a")
        assert on.record == ["ack a"]


@async_test
async def test_a_reply_address_that_is_gone_does_not_keep_the_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(unclaimed, "_PATIENCE", 0.2)
    async with bench() as on:
        await on.send("a", reply_to=GONE)
        await on.send("b", reply_to=GONE)
        await on.recorded("ack a")
        await on.recorded("ack b")
        waiting = on.executor._outbox._unclaimed
        await until(lambda: not len(waiting), "the end of patience")
        offers = on.record.count("confirmed a")
        assert offers > 1  # it was offered again for a while
        await on.send("c", reply_to=GONE)
        await on.recorded("ack c")
        assert len(waiting) == 0  # the next one is not waited for
        assert (on.outcomes, waiting._size, waiting._waiting) == ([], 0, {})
        assert on.record.count("confirmed a") == offers


@async_test
async def test_a_producer_that_comes_back_late_gets_its_outcomes() -> None:
    async with bench() as on:
        assert on.replies is not None
        await on.replies.close()
        for name in "abc":
            await on.send(name)
            await on.recorded(f"ack {name}")
        on.broker.failures = [BrokerUnavailable("not yet either")]
        assert on.outcomes == []
        await on.producer.open_replies("producer", on._on_reply)
        await on.outcome(3)
        assert [outcome.job_id for outcome in on.outcomes] == ["a", "b", "c"]
        await until(lambda: not on.executor._outbox._unclaimed._waiting, "all taken")
        assert on.executor._outbox._unclaimed._size == 0
        assert on.runner.ids == ["a", "b", "c"]


@async_test
async def test_no_more_jobs_run_than_there_are_slots_and_in_order() -> None:
    async with bench(hold=True, slots=2) as on:
        for name in "abcde":
            await on.send(name)
        await on.running("a", "b")
        for done, running in (("a", "bc"), ("b", "cd"), ("d", "ce"), ("c", "e"), ("e", "")):
            on.runner.finish(done)
            await on.running(*running)
        await on.outcome(5)
        assert on.runner.ids == list("abcde")
        assert on.runner.most == 2


# --- not run at all ------------------------------------------------------------------------


def raw(**changes: Any) -> Message:
    facts: dict[str, Any] = {"body": NO_ARGUMENTS, "type": TYPE_JOB, "correlation_id": "a"}
    facts["headers"] = {"task": TASK, **changes.pop("headers", {})}
    return Message(**{**facts, **changes})


REFUSED = {
    "another type": (raw(type="outcome"), "type is 'outcome'"),
    "another content type": (raw(content_type="application/json"), "application/json"),
    "no task": (raw(headers={"task": 7}), "'task' must be text"),
    "an unknown task": (raw(headers={"task": "tests.unknown"}), "no task is named 'tests.unknown'"),
    "a timeout above the most": (raw(headers={"timeout": 61.0}), "max_timeout"),
    "a timeout that is no number": (raw(headers={"timeout": "soon"}), "timeout"),
    "a timeout of nan": (raw(headers={"timeout": math.nan}), "finite"),
    "an infinite timeout": (raw(headers={"timeout": math.inf}), "finite"),
    "a negative timeout": (raw(headers={"timeout": -1.0}), "above 0"),
    "a timeout of zero": (raw(headers={"timeout": 0}), "above 0"),
    "a limit that is none": (raw(headers={"limit-colour": 5}), "limit-colour"),
    "a strange expiry": (raw(headers={"expires": "now"}), "expires"),
    "a reason without end": (raw(headers={"task": 7, "timeout": "x" * 100_000}), "task"),
}


@pytest.mark.parametrize(("message", "why"), REFUSED.values(), ids=list(REFUSED))
@async_test
async def test_what_cannot_be_run_is_rejected_with_its_reason(message: Message, why: str) -> None:
    async with bench(max_timeout=60.0) as on:
        facts = {
            name: getattr(message, name) for name in ("body", "type", "content_type", "headers")
        }
        await on.send_message(Message(**facts, correlation_id="a", reply_to=on.reply_to))
        outcome = await on.outcome()
        assert (outcome.status, outcome.blame) == (Status.REJECTED, Blame.POLICY)
        assert why in outcome.reason
        assert len(outcome.reason) <= 2000
        assert (outcome.job_id, outcome.node) == ("a", "node-1")
        await on.idle()
        assert on.record == ["publish a", "confirmed a", "ack a"]
        # Nobody to tell: settled all the same.
        await on.send_message(message)
        await on.recorded("ack a", 2)
        assert on.runner.jobs == []


@async_test
async def test_a_message_without_an_id_is_rejected_and_gone() -> None:
    async with bench() as on:
        await on.send_message(raw(correlation_id=""))
        await on.recorded("ack ")
        await on.send_message(raw(correlation_id="", reply_to=on.reply_to))
        await on.recorded("ack ", 2)
        assert on.runner.jobs == []


@async_test
async def test_a_job_that_came_too_late_is_not_run() -> None:
    async with bench() as on:
        await on.send("a", expires=int(time.time() * 1000) - 1)
        outcome = await on.outcome()
        assert outcome.status is Status.EXPIRED
        await on.send("b", expires=int(time.time() * 1000) + 60_000)
        assert (await on.outcome(2)).ok
        assert on.runner.ids == ["b"]


@async_test
async def test_a_job_that_expires_while_it_waits_for_a_slot_is_not_run() -> None:
    async with bench(hold=True, slots=1) as on:
        await on.send("a")
        await on.running("a")
        expires = int(time.time() * 1000) + 30
        await on.send("b", expires=expires)
        await until(lambda: time.time() * 1000 > expires + 5, "the expiry")
        on.runner.finish("a")
        assert (await on.outcome(2)).status is Status.EXPIRED
        assert on.runner.ids == ["a"]


@async_test
async def test_a_job_handed_out_too_often_is_lost() -> None:
    async with bench(hold=True, max_deliveries=2) as on:
        await on.send("a")
        await on.running("a")
        on.runner.kill_all(KillReason.SHUTDOWN)  # as if its node had died
        await until(lambda: len(on.runner.jobs) == 2 and on.runner.running, "the second run")
        on.runner.kill_all(KillReason.SHUTDOWN)
        outcome = await on.outcome()
        assert (outcome.status, outcome.blame) == (Status.LOST, Blame.INFRA)
        assert "2 times" in outcome.reason
        await on.idle()
        assert on.record[-1] == "ack a"
        assert len(on.runner.jobs) == 2


# --- cancelling ----------------------------------------------------------------------------


@async_test
async def test_a_cancel_is_remembered_for_a_job_that_is_on_its_way() -> None:
    async with bench() as on:
        await on.cancel("a")
        await on.send("a")
        outcome = await on.outcome()
        assert (outcome.status, outcome.blame) == (Status.CANCELLED, Blame.POLICY)
        assert on.runner.jobs == []
        await on.send("a")  # asked for once
        assert (await on.outcome(2)).ok


@async_test
async def test_a_running_job_is_cancelled() -> None:
    async with bench(hold=True) as on:
        await on.send("a")
        await on.running("a")
        await on.cancel("a")
        assert (await on.outcome()).status is Status.CANCELLED
        on.runner.hold = False
        await on.send("a")
        assert (await on.outcome(2)).ok


@async_test
async def test_a_job_is_cancelled_while_its_sandbox_is_awaited() -> None:
    async with bench(hold=True) as on:
        await on.send("a")
        await on.running("a")
        on.runner.deaf = 3
        await on.cancel("a")
        assert (await on.outcome()).status is Status.CANCELLED


@async_test
async def test_a_job_that_waits_for_a_slot_is_cancelled_at_once() -> None:
    async with bench(hold=True, slots=1) as on:
        for name in "abc":
            await on.send(name)
        await on.running("a")
        await on.cancel("b")
        outcome = await on.outcome()
        assert (outcome.job_id, outcome.status) == ("b", Status.CANCELLED)
        on.runner.finish("a")
        await on.running("c")
        assert on.runner.ids == ["a", "c"]


@async_test
async def test_a_cancel_that_comes_too_late_never_hits_the_next_job_of_that_id() -> None:
    async with bench() as on:
        await on.send("a")
        await on.outcome()
        await on.idle()
        await on.cancel("a")
        await on.send("a")
        assert (await on.outcome(2)).ok
        # The same while the outcome is on its way out.
        await on.send("b")
        await on.recorded("publish b")
        await on.cancel("b")
        await on.outcome(3)
        await on.idle()
        await on.send("b")
        assert [outcome.status for outcome in on.outcomes] == [Status.SUCCEEDED] * 3
        assert (await on.outcome(4)).ok


# --- trouble with the broker ---------------------------------------------------------------


@async_test
async def test_an_outcome_is_published_again_until_it_is_confirmed() -> None:
    async with bench(publish_timeout=30.0) as on:
        on.broker.failures = [BrokerUnavailable("lost"), BrokerUnavailable("still")]
        await on.send("a")
        assert (await on.outcome()).ok
        await on.idle()
        assert on.record == ["publish a", "confirmed a", "ack a"]
        assert on.runner.ids == ["a"]


@async_test
async def test_a_job_that_comes_back_after_a_failed_publish_does_not_run_again() -> None:
    async with bench(publish_timeout=0.1) as on:
        on.broker.failures = [BrokerUnavailable("down")] * 2
        await on.send("a")
        assert (await on.outcome()).ok
        await on.idle()
        assert on.record == ["give_back a", "give_back a", "publish a", "confirmed a", "ack a"]
        assert on.runner.ids == ["a"]
        # Another job under the same id is another job.
        on.broker.failures = [BrokerUnavailable("down")]
        await on.send("a", reply_to=GONE)
        await on.idle()
        await on.send("a")
        assert (await on.outcome(2)).ok
        assert on.runner.ids == ["a", "a", "a"]


@async_test
async def test_an_outcome_too_large_for_the_broker_becomes_one_that_says_so() -> None:
    large = Outcome(Status.SUCCEEDED, value_bytes=encode("x" * 1000), stdout=b"y" * 1000)
    async with bench(answer=large) as on:
        on.broker.failures = [PayloadTooLarge("a body of 17 MiB is over 16 MiB")]
        await on.send("a")
        outcome = await on.outcome()
        assert (outcome.status, outcome.limit) == (Status.LIMIT_EXCEEDED, "message")
        assert "17 MiB" in outcome.reason
        assert (outcome.value_bytes, outcome.stdout, outcome.output_dropped) == (None, b"", 1000)
        await on.recorded("ack a")
        # Whatever is still refused cannot be helped, here or on another node.
        on.broker.failures = [PayloadTooLarge("x"), PayloadTooLarge("x")]
        await on.send("b")
        await on.recorded("ack b")
        on.broker.failures = [ConfigurationError("no exchange")]
        await on.send("c")
        await on.recorded("ack c")
        assert "publish c" not in on.record
        assert on.runner.ids == ["a", "b", "c"]


@pytest.mark.parametrize("foreign", [False, True])
@async_test
async def test_a_redelivered_job_that_still_runs_here_is_not_run_twice(foreign: bool) -> None:
    async with bench(hold=True) as on:
        on.foreign = foreign
        await on.send("a")
        await on.running("a")
        await on.lose_connection()
        await on.send("b")
        await on.running("a", "b")  # b came after the second delivery of a
        assert on.runner.ids == ["a", "b"]
        on.runner.finish("a")
        on.runner.finish("b")
        assert {(await on.outcome(n)).job_id for n in (1, 2)} == {"a", "b"}
        await on.idle()
        assert on.record.count("publish a") == 1
        assert on.record.count("ack a") == 2  # of which the first does nothing
        await on.lose_connection()
        assert on.runner.ids == ["a", "b"]


@async_test
async def test_a_job_whose_ack_was_lost_is_acked_again_and_not_run() -> None:
    async with bench(hold=True) as on:
        await on.send("a")
        await on.running("a")
        await on.broker_gone_for_a_while()
        on.runner.finish("a")
        await on.recorded("ack a")
        await on.idle()
        await on.consume()
        await on.recorded("ack a", 2)
        assert on.runner.ids == ["a"]
        assert len(on.outcomes) == 1
        # The same id again, as a new job: it runs, though another node had it first.
        await on.broker_gone_for_a_while()
        async with node_that_dies(on) as taken:
            await on.send("a")
            await until(lambda: taken, "its delivery elsewhere")
        await on.consume()
        await on.running("a")
        on.runner.finish("a")
        assert (await on.outcome(2)).ok


@asynccontextmanager
async def node_that_dies(on: Bench) -> AsyncIterator[list[Delivery]]:
    """Takes jobs and is gone."""
    taken: list[Delivery] = []
    other = MemoryBroker(on.name, BrokerOptions())
    await other.start()
    await other.consume_jobs(QUEUE, 10, taken.append)
    yield taken
    await other.stop()


@async_test
async def test_the_second_delivery_takes_over_when_the_first_cannot_publish() -> None:
    async with bench(hold=True, publish_timeout=0.1) as on:
        await on.send("a")
        await on.running("a")
        on.broker.failures = [BrokerUnavailable("down")]
        await on.lose_connection()
        on.runner.finish("a")
        assert (await on.outcome()).ok
        await on.idle()
        assert on.runner.ids == ["a"]
        assert on.record == ["give_back a", "publish a", "confirmed a", "ack a"]


@async_test
async def test_a_second_job_of_the_same_id_waits_for_the_first_and_then_runs() -> None:
    async with bench(hold=True) as on:
        await on.send("a")
        await on.send("a")
        await on.send("b")
        await on.running("a", "b")
        on.runner.finish("a")
        await on.outcome()
        await until(lambda: on.runner.ids == ["a", "b", "a"], "the second run")
        on.runner.finish("a")
        assert (await on.outcome(2)).job_id == "a"


# --- sandboxes that cannot be had ----------------------------------------------------------


@async_test
async def test_the_fallback_runs_what_no_sandbox_could_be_started_for() -> None:
    inline = FakeRunner(answer=Outcome(Status.SUCCEEDED, value_bytes=encode("inline")))
    async with bench(answer=NO_SANDBOX, fallback=inline) as on:
        await on.send("a")
        assert (await on.outcome()).value == "inline"
        assert (on.runner.ids, inline.ids) == (["a"], ["a"])


@async_test
async def test_without_a_fallback_a_failed_start_is_the_outcome() -> None:
    async with bench(answer=NO_SANDBOX) as on:
        await on.send("a")
        outcome = await on.outcome()
        assert (outcome.status, outcome.blame) == (Status.START_FAILED, Blame.INFRA)


@pytest.mark.parametrize("status", [s for s in Status if s is not Status.START_FAILED])
@async_test
async def test_nothing_else_ever_goes_to_the_fallback(status: Status) -> None:
    inline = FakeRunner()
    async with bench(answer=Outcome(status, blame=Blame.TASK), fallback=inline) as on:
        await on.send("a")
        assert (await on.outcome()).status is status
        assert inline.jobs == []


@async_test
async def test_a_job_of_the_fallback_is_cancelled_and_given_back_too() -> None:
    inline = FakeRunner(hold=True)
    async with bench(answer=NO_SANDBOX, fallback=inline) as on:
        await on.send("a")
        await until(lambda: inline.running, "the job")
        await on.cancel("a")
        assert (await on.outcome()).status is Status.CANCELLED
        await on.send("b")
        await until(lambda: inline.running, "the job")
        on.executor.stop()
        await on.recorded("give_back b")


# --- the end -------------------------------------------------------------------------------


@async_test
async def test_draining_lets_running_jobs_finish_and_gives_the_others_back() -> None:
    async with bench(hold=True, slots=1) as on:
        for name in "abc":
            await on.send(name)
        await on.running("a")
        on.executor.drain()
        await on.send("d")
        on.runner.finish("a")
        assert (await on.outcome()).job_id == "a"
        await on.recorded("ack a")
        assert on.record == ["publish a", "confirmed a", "ack a"]  # the others wait
        assert on.consumer is not None
        await on.consumer.close()
        on.executor.give_back_waiting()
        await on.idle()
        assert on.record[3:] == ["give_back b", "give_back c", "give_back d"]
        assert on.runner.ids == ["a"]


@async_test
async def test_a_job_that_waits_is_cancelled_while_draining() -> None:
    async with bench(hold=True, slots=1) as on:
        await on.send("a")
        await on.send("b")
        await on.running("a")
        on.executor.drain()
        await on.cancel("b")
        assert (await on.outcome()).job_id == "b"
        await on.cancel("a")
        assert (await on.outcome(2)).job_id == "a"


@async_test
async def test_stopping_gives_running_jobs_back() -> None:
    async with bench(hold=True) as on:
        await on.send("a")
        await on.running("a")
        assert on.consumer is not None
        await on.consumer.close()
        on.executor.stop()
        await on.idle()
        assert on.record == ["give_back a"]
        assert on.outcomes == []


@async_test
async def test_what_ends_by_itself_as_the_node_stops_is_settled() -> None:
    async with bench(hold=True) as on:
        await on.send("a")
        await on.running("a")
        on.runner.finish("a")
        on.executor.stop()
        assert (await on.outcome()).ok
        await on.recorded("ack a")


@async_test
async def test_a_start_that_fails_because_the_node_stops_is_no_verdict() -> None:
    inline = FakeRunner()
    async with bench(hold=True, fallback=inline) as on:
        await on.send("a")
        await on.running("a")
        on.runner.finish("a", NO_SANDBOX)
        assert on.consumer is not None
        await on.consumer.close()
        on.executor.stop()
        await on.idle()
        assert on.record == ["give_back a"]
        assert inline.jobs == []


@async_test
async def test_a_fault_of_the_runner_leaves_no_trace_behind() -> None:
    async with bench() as on:
        on.runner.error = OSError("no more descriptors")
        await on.send("a")
        await until(lambda: on.tasks, "the delivery")
        (failed,) = await asyncio.gather(*on.tasks, return_exceptions=True)
        assert isinstance(failed, OSError)
        on.tasks.clear()
        on.runner.error = None
        await on.lose_connection()
        assert (await on.outcome()).ok
        for name in "bcdef":  # every slot is there again
            await on.send(name)
        await on.outcome(6)


def test_what_is_remembered_is_bounded() -> None:
    names = Recent(3)
    for number in range(10):
        names.add(str(number))
    assert [name for name in map(str, range(10)) if name in names] == ["7", "8", "9"]
    cancels = Cancels()
    for number in range(30_000):
        cancels.ask(f"a{number}")
        cancels.end(f"e{number}")
    assert len(cancels._asked) <= 10_000
    assert len(cancels._ended) <= 10_000
    assert cancels.take("a29999")
    assert not cancels.take("a29999")
    unsent = UnsentOutcomes()
    big = Outcome(Status.SUCCEEDED, value_bytes=bytes(8 << 20))
    messages = [Message(b"", TYPE_JOB, f"{n}", "r", message_id=f"m{n}") for n in range(2000)]
    for message in messages[:20]:
        unsent.add(message, big)
    assert len(unsent) < 8
    assert unsent.take(messages[19]) is big
    for message in messages:
        unsent.add(message, FINE)
    assert len(unsent) == 1000
    for message in messages:
        unsent.take(message)
    assert (len(unsent), unsent._size) == (0, 0)
