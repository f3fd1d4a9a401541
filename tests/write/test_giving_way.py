"""While programs close file after file, uploads give way to them: for a bounded time, and not when room gets short or somebody waits."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from forebay.cache.write import writeback
from forebay.tests.support.multipart_bucket import MultipartBucket
from forebay.tests.support.write_lab import Lab

CALM_S = 1.0
BOUND_S = 60.0
FOREVER_S = 3600.0


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Longer than a busy machine may stop between two closes."""
    monkeypatch.setattr(writeback, "CALM_S", CALM_S)
    monkeypatch.setattr(writeback, "PATIENCE_S", FOREVER_S)


async def closing(lab: Lab, until: Callable[[], bool]) -> float:
    """Close file after file until something is so; the longest pause between two of them. AssertionError after BOUND_S."""
    deadline = time.monotonic() + BOUND_S
    longest_s, last = 0.0, time.monotonic()
    number = 0
    while not until():
        assert time.monotonic() < deadline, "file after file was closed, and nothing happened"
        lab.write(b"f%d" % number, b"x" * 100)
        now = time.monotonic()
        longest_s, last = max(longest_s, now - last), now
        number += 1
        await asyncio.sleep(0.02)
    return longest_s


@pytest.fixture
async def lab(tmp_path: Path, request: pytest.FixtureRequest) -> AsyncIterator[Lab]:
    options: dict[str, Any] = getattr(request, "param", {})
    lab = await Lab.start(tmp_path, MultipartBucket(), **{"writeback_delay_s": CALM_S, **options})
    yield lab
    await lab.side.close()


def uploads(lab: Lab) -> int:
    return lab.bucket.calls["put"]


def oldest_age_s(lab: Lab) -> float:
    return lab.side.status().oldest_age_s


async def test_nothing_is_begun_while_files_are_closed_and_then_everything(lab: Lab) -> None:
    pause_s = await closing(lab, lambda: oldest_age_s(lab) > 2.5 * CALM_S or uploads(lab) > 0)
    if pause_s < CALM_S / 2:  # else this machine stood still, and the programs with it
        assert uploads(lab) == 0
        assert oldest_age_s(lab) > 2 * lab.side.options.writeback_delay_s
    async with asyncio.timeout(BOUND_S):
        while lab.side.state.dirty:
            await lab.side.writeback.changed()
    assert len(lab.bucket.contents()) == uploads(lab)


async def test_they_give_way_for_a_bounded_time(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writeback, "PATIENCE_S", 0.5)
    await closing(lab, lambda: uploads(lab) > 0)
    assert lab.bucket.contents(), "begun while files were closed"


@pytest.mark.parametrize(
    "lab",
    [pytest.param({"max_dirty_files": 100}, id="files"), pytest.param({"max_dirty_bytes": 10_000}, id="bytes")],
    indirect=True,
)
async def test_they_do_not_when_room_gets_short(lab: Lab) -> None:
    await closing(lab, lambda: uploads(lab) > 0)


async def test_they_do_not_when_somebody_waits(lab: Lab) -> None:
    lab.write(b"wanted", b"x")
    flush = asyncio.create_task(lab.side.flush(b"wanted", timeout_s=BOUND_S))
    await closing(lab, flush.done)
    await flush
    assert "wanted" in lab.bucket.contents()
