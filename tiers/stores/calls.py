"""One call to an under store: deadline, retries with jitter, bounded concurrency, the circuit breaker, counting.

A store writes one *attempt* as a coroutine function that returns or raises an error of `errors.py`; this file decides
what happens next, by the class of the error:

    StoreUnavailable   tried again until the deadline (full jitter, so that many callers do not come back in step)
    StoreCorrupt       tried again, CORRUPT_ATTEMPTS times in all: another answer may be whole
    everything else    an answer; raised at once

An attempt gets half of what is left of the deadline (at least MIN_ATTEMPT_S), so that one connection that hangs leaves
time for another. The deadline starts when the call has a connection slot; calls that wait for one are let through or
refused as those before them end, which all have deadlines themselves.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from ...errors import StoreCorrupt, StoreError, StoreUnavailable
from .breaker import Breaker
from .counters import StoreCounters

T = TypeVar("T")

FIRST_BACKOFF_S = 0.1
MAX_BACKOFF_S = 2.0
MIN_ATTEMPT_S = 1.0
PROBE_TIMEOUT_S = 5.0
CORRUPT_ATTEMPTS = 4


class Calls:
    """Runs the calls of one store. `name` is the store's id, for messages. For one event loop."""

    def __init__(self, name: str, *, timeout_s: float, max_connections: int) -> None:
        self.name = name
        self.timeout_s = timeout_s
        self.counters = StoreCounters()
        self._breaker = Breaker()
        self._slots = asyncio.Semaphore(max_connections)

    async def run(self, kind: str, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        """The result of `attempt`, tried as often as the deadline allows; or the error to give to the caller.

        `what` completes the sentence "<store>: ... failed" in messages, as in "get of 'a/b'".
        """
        counters = self.counters
        if self._breaker.is_open and not self._breaker.probe_due(time.monotonic()):
            raise self._refusal(what)
        counters.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            counters.waiting -= 1
        counters.in_flight += 1
        try:
            return await self._run_in_slot(kind, what, attempt)
        except StoreError as error:
            counters.errors[error.kind] += 1
            raise
        finally:
            counters.in_flight -= 1
            self._slots.release()

    async def _run_in_slot(self, kind: str, what: str, attempt: Callable[[], Awaitable[T]]) -> T:
        breaker, counters = self._breaker, self.counters
        started_s = time.monotonic()
        deadline_s = started_s + self.timeout_s
        tries = 0
        while True:
            now_s = time.monotonic()
            probing = False
            if breaker.is_open:
                if not breaker.start_probe(now_s):
                    raise self._refusal(what)
                probing = True
            left_s = deadline_s - now_s
            limit_s = min(left_s, PROBE_TIMEOUT_S) if probing else min(left_s, max(left_s / 2, MIN_ATTEMPT_S))
            tries += 1
            counters.requests[kind] += 1
            failure: StoreUnavailable | StoreCorrupt
            try:
                async with asyncio.timeout(limit_s):
                    result = await attempt()
            except TimeoutError:
                failure = StoreUnavailable(f"no answer within {limit_s:.1f} s")
            except StoreUnavailable as error:
                failure = error
            except StoreCorrupt as error:
                self._answered()
                counters.corrupt_answers += 1
                failure = error
            except StoreError:
                self._answered()
                raise
            except BaseException:
                if probing:
                    breaker.end_probe(time.monotonic())
                raise
            else:
                self._answered()
                return result
            now_s = time.monotonic()
            if isinstance(failure, StoreUnavailable):
                breaker.failed(now_s)
                if probing:
                    breaker.end_probe(now_s)
                    raise self._refusal(what)
            pause_s = random.uniform(0, min(MAX_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(tries, 10)))
            if isinstance(failure, StoreCorrupt):
                if tries >= CORRUPT_ATTEMPTS or now_s + pause_s >= deadline_s:
                    raise failure
            elif now_s + pause_s >= deadline_s:
                breaker.gave_up(started_s, failure.message)
                self._show_breaker()
                raise StoreUnavailable(
                    f"{self.name}: {what} failed {tries} times in {now_s - started_s:.1f} s, at last: {failure.message}",
                    remedy=failure.remedy,
                ) from failure
            counters.retries += 1
            await asyncio.sleep(pause_s)

    def _answered(self) -> None:
        was_open = self._breaker.is_open
        self._breaker.answered(time.monotonic())
        if was_open:
            self._show_breaker()

    def _show_breaker(self) -> None:
        breaker, counters = self._breaker, self.counters
        if breaker.down_since_s is None:
            counters.down_since_s = counters.down_reason = None
        else:
            counters.down_since_s = time.time() - (time.monotonic() - breaker.down_since_s)
            counters.down_reason = breaker.reason

    def _refusal(self, what: str) -> StoreUnavailable:
        self.counters.refused_fast += 1
        since = time.strftime("%H:%M:%S", time.localtime(self.counters.down_since_s))
        return StoreUnavailable(
            f"{self.name}: {what} not tried, the store is down since {since} ({self._breaker.reason})",
            remedy="it is asked again as soon as it answers",
        )
