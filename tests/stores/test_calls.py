"""Deadlines, retries, slots and the circuit breaker, without any store."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from forebay.errors import ObjectNotFound, StoreCorrupt, StoreDenied, StoreError, StoreUnavailable
from forebay.tiers.stores.breaker import PROBE_INTERVAL_S, Breaker
from forebay.tiers.stores.calls import CORRUPT_ATTEMPTS, Calls


def calls(timeout_s: float = 30.0, max_connections: int = 4) -> Calls:
    return Calls("test://store", timeout_s=timeout_s, max_connections=max_connections)


def failing(*errors: StoreError) -> Callable[[], Awaitable[str]]:
    """An attempt that fails with these, one after the other, and then succeeds."""
    left = list(errors)

    async def attempt() -> str:
        if left:
            raise left.pop(0)
        return "done"

    return attempt


async def until_answered(run: Calls) -> str:
    """Ask until the breaker lets the question through."""
    deadline = time.monotonic() + 120
    while True:
        try:
            return await run.run("get", "x", failing())
        except StoreUnavailable:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)


async def test_passing_failures_are_tried_again() -> None:
    run = calls()
    assert await run.run("get", "x", failing(StoreUnavailable("1"), StoreCorrupt("2"), StoreUnavailable("3"))) == "done"
    assert run.counters.requests["get"] == 4
    assert run.counters.retries == 3
    assert run.counters.errors == {}


@pytest.mark.parametrize("error", [StoreDenied("no"), ObjectNotFound("no")])
async def test_answers_are_not_tried_again(error: StoreError) -> None:
    run = calls()
    with pytest.raises(type(error)):
        await run.run("get", "x", failing(error))
    assert run.counters.requests["get"] == 1
    assert run.counters.errors == {error.kind: 1}


async def test_corrupt_answers_are_tried_a_few_times() -> None:
    run = calls()
    with pytest.raises(StoreCorrupt):
        await run.run("get", "x", failing(*[StoreCorrupt("bad")] * 20))
    assert run.counters.requests["get"] == CORRUPT_ATTEMPTS


async def test_the_message_says_what_failed_how_often_and_why() -> None:
    with pytest.raises(StoreUnavailable, match=r"test://store: read of 'k' failed \d+ times .* at last: refused"):
        await calls(0.3).run("get", "read of 'k'", failing(*[StoreUnavailable("refused")] * 100))


async def test_an_attempt_that_hangs_leaves_time_for_another() -> None:
    hung = 0

    async def attempt() -> str:
        nonlocal hung
        hung += 1
        if hung == 1:
            await asyncio.sleep(3600)
        return "done"

    started = time.monotonic()
    assert await calls(3).run("get", "x", attempt) == "done"
    assert time.monotonic() - started < 60


async def test_slots_are_bounded_and_given_back() -> None:
    run = calls(max_connections=3)
    running = most = 0

    async def attempt() -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await asyncio.sleep(0.01)
        finally:
            running -= 1

    tasks = [asyncio.ensure_future(run.run("get", "x", attempt)) for _ in range(20)]
    await asyncio.sleep(0)
    tasks[0].cancel()
    tasks[19].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert most == 3
    assert run.counters.in_flight == run.counters.waiting == 0


async def test_a_cancelled_probe_leaves_the_way_free_for_the_next() -> None:
    run = calls(0.2)
    with pytest.raises(StoreUnavailable):
        await run.run("get", "x", failing(*[StoreUnavailable("down")] * 100))
    assert run.counters.down_reason == "down"
    asked = asyncio.Event()

    async def hanging() -> None:
        asked.set()
        await asyncio.sleep(3600)

    async def probe() -> None:
        while not asked.is_set():
            try:
                await run.run("get", "x", hanging)
            except StoreUnavailable:
                await asyncio.sleep(0.01)

    task = asyncio.ensure_future(probe())
    await asyncio.wait_for(asked.wait(), 30)
    with pytest.raises(StoreUnavailable, match="not tried, the store is down since"):
        await run.run("get", "x", failing())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert await until_answered(run) == "done"
    assert run.counters.down_since_s is None


def test_the_breaker_opens_only_when_nothing_at_all_was_answered() -> None:
    breaker = Breaker()
    breaker.failed(10)
    breaker.answered(15)
    breaker.gave_up(started_s=10, reason="unlucky")
    assert breaker.reason == ""
    breaker.failed(16)
    breaker.gave_up(started_s=16, reason="down")
    assert breaker.down_since_s == 16
    assert breaker.start_probe(20)
    assert not breaker.start_probe(20)
    breaker.end_probe(21)
    assert not breaker.probe_due(21 + PROBE_INTERVAL_S / 2)
    assert breaker.start_probe(21 + PROBE_INTERVAL_S)
    breaker.answered(22)
    assert breaker.down_since_s is None
