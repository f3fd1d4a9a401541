"""The wall clock may jump: nothing is lost, nothing waits longer or shorter for it, and files keep the times they were given."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.cache.write.ages import SLACK, Ages
from forebay.cache.write.object_metadata import TAG, attributes_of
from forebay.tests.support.multipart_bucket import Fault, MultipartBucket, Stored, etag_of
from forebay.tests.support.write_lab import Lab

HOUR_NS = 3600 * 1_000_000_000


class Clock:
    """A wall clock that is set by tests."""

    def __init__(self) -> None:
        self.offset_ns = 0

    def now_ns(self) -> int:
        return time.time_ns() + self.offset_ns


async def until(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():  # noqa: ASYNC110 (what is waited for has no event)
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("jump_ns", [HOUR_NS, -HOUR_NS])
async def test_a_delay_is_neither_cut_short_nor_drawn_out(tmp_path: Path, jump_ns: int) -> None:
    clock = Clock()
    lab = await Lab.start(tmp_path, MultipartBucket(), now_ns=clock.now_ns, writeback_delay_s=1.5)
    lab.write(b"f", b"x")
    begun = time.monotonic()
    await until(lambda: lab.side.status().oldest_age_s > 0.2)
    clock.offset_ns = jump_ns
    lab.write(b"g", b"x")
    assert lab.side.status().oldest_age_s < 60
    await until(lambda: "f" in lab.bucket.contents())
    assert time.monotonic() - begun >= 1.5
    await until(lambda: "g" in lab.bucket.contents())
    await lab.side.close()


@pytest.mark.parametrize("jump_ns", [HOUR_NS, -HOUR_NS])
async def test_what_was_dirty_before_a_jump_and_a_crash_is_uploaded_in_order(tmp_path: Path, jump_ns: int) -> None:
    clock = Clock()
    lab = await Lab.start(tmp_path, MultipartBucket(), now_ns=clock.now_ns)
    lab.bucket.fault = lambda kind, key: Fault.REFUSE
    names = [b"%02d" % (index * 7 % 20) for index in range(20)]
    for name in names:
        lab.write(name, name)
        lab.side.set_attributes(name, mtime_ns=1_000_000_007)
    await lab.crash()
    clock.offset_ns = jump_ns
    put: list[str] = []

    def note(kind: str, key: str) -> None:
        if kind == "put":
            put.append(key)

    lab.bucket.fault = note
    lab = await Lab.start(tmp_path, lab.bucket, now_ns=clock.now_ns, upload_files=1)
    await until(lambda: not lab.side.state.dirty)
    assert put == [name.decode() for name in names]
    assert lab.bucket.contents() == {name.decode(): name for name in names}
    assert all(attributes_of(one.metadata).mtime_ns == 1_000_000_007 for one in lab.bucket.objects.values())
    await lab.side.close()


@pytest.mark.parametrize("jump_ns", [HOUR_NS, -HOUR_NS])
async def test_a_late_answer_is_waited_for_though_the_clock_jumps(tmp_path: Path, jump_ns: int) -> None:
    """The second look at a key whose publish has no known outcome comes after the time-out of a request, not before."""
    clock = Clock()
    lab = await Lab.start(tmp_path, MultipartBucket(), now_ns=clock.now_ns, recheck_s=1.0)
    lab.bucket.fault = lambda kind, key: Fault.REFUSE if kind == "put" else None
    lab.write(b"f", b"late")
    await until(lambda: lab.bucket.calls["put"] > 0)
    (attempt,) = lab.side.state.attempts.values()
    lab.unlink(b"f")
    await until(lambda: not lab.side.state.attempts)
    clock.offset_ns = jump_ns
    lab.side.writeback.wake()
    await asyncio.sleep(0.3)
    assert b"f" in lab.side.state.doomed
    lab.bucket.objects["f"] = Stored(b"late", {TAG: attempt.tag}, etag_of(b"late"))
    lab.bucket.fault = lambda kind, key: None
    await until(lambda: not lab.side.state.doomed)
    assert lab.bucket.contents() == {}
    await lab.side.close()


def test_ages_count_from_the_first_look_and_what_went_is_forgotten() -> None:
    now = 100.0
    ages = Ages(lambda: now)
    assert ages.age_s("f", before_s=5.0) == 5.0
    assert ages.age_s("g", before_s=-3600.0) == 0.0
    now = 101.0
    assert (ages.age_s("f"), ages.age_s("g")) == (6.0, 1.0)
    for index in range(SLACK + 3):
        ages.age_s(index)
    ages.forget(1, lambda what: what == "f")
    now = 102.0
    assert (ages.age_s("f"), ages.age_s("g")) == (7.0, 0.0)
